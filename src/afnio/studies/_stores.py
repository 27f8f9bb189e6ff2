"""Prompts out: from a result into a store of prompts, and from there into an app.

A store keeps versions of a text under a name, and aliases that point to one of them. Each is three methods: `push` a
version, `point` an alias to it, `pull` what an alias points to. Prompts that were tuned together must be used together,
so all versions are pushed before the first alias moves, each version has the digest of its set, and `load_prompts`
refuses a mixture.

Texts are stored as they are; they are no templates of the store. Each request has a deadline and reads a bounded reply.
Redirects are errors: the credentials would go along. These come from the variables that the store's own client reads,
and are written nowhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, Protocol, final
from urllib.parse import quote, urlencode, urlsplit

from afnio.studies._rows import check_text, digest

SECONDS: Final = 30.0
"""The longest that a request may take."""
LONGEST: Final = 8_000_000
"""Bytes of a reply that are read."""


class Store(Protocol):
    def push(self, name: str, text: str, message: str, about: str) -> str:
        """Add a version; returns its number or id."""

    def point(self, name: str, version: str, alias: str) -> None: ...

    def pull(self, name: str, alias: str) -> tuple[str, str]:
        """Return the text and `about` of a version. Raises a LookupError if there is none."""


def push_prompts(
    source: str, name: str, prompts: Mapping[str, str], *, alias: str, message: str, start: Mapping[str, str]
) -> None:
    """Push all prompts, then let the alias point to all of them."""
    store, entries = _opened(source), _entries(name, prompts)
    for prompt, text in prompts.items():
        check_text(f"prompt {prompt!r}", text)
    shared = digest(dict(prompts))
    versions = {
        entry: store.push(
            entry,
            prompts[prompt],
            message,
            json.dumps({"of": name, "prompt": prompt, "set": shared, "start": digest(start.get(prompt))}),
        )
        for prompt, entry in entries.items()
    }
    for entry, version in versions.items():
        store.point(entry, version, alias)


def load_prompts(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    prompts: Mapping[str, str] | Iterable[str] | None = None,
    alias: str | None = None,
) -> dict[str, str]:
    """Return prompts that `Result.push` or `Result.save` wrote, by name.

    It blocks; in an async app call it in a thread, or at the start.

    Args:
        source: "mlflow:http://…", "phoenix:http://…", "folder:…", or the path of a folder that `Result.save` wrote.
        name: the name that they were pushed under.
        prompts: the names that the app needs, or its own prompts by name. With texts it is an error if those that were
            pushed began from others: the tools or texts of the app have changed since. May be left out for a folder.
        alias: which version; "candidate" by default.

    Raises:
        LookupError: if a prompt or its alias isn't there (`FileNotFoundError` for a folder).
        ValueError: if the prompts are of different sets, began from other texts, or aren't those that are needed.
        ConnectionError: if the store can't be reached, or doesn't answer as one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     push_prompts(f"folder:{folder}", "router", {"system": "Be brief."}, alias="candidate", message="", start={})
    ...     load_prompts(f"folder:{folder}", "router", alias="candidate")
    {'system': 'Be brief.'}
    """
    text = os.fspath(source)
    if not _KIND.match(text):
        from afnio.studies._result import Result

        there = Result.load(text)
        wanted = list(there) if prompts is None else list(prompts)
        lacking = [one for one in wanted if one not in there]
        if lacking:
            raise LookupError(
                f"{text} must have the prompt {lacking[0]!r} (got {', '.join(there)}); save it there"
            )
        return {one: there[one] for one in wanted}
    if name is None:
        raise TypeError("name must be the name that the prompts were pushed under (got None)")
    store = _opened(text)
    if prompts is None and isinstance(store, Folder):
        entries = store.entries(name)
    elif prompts is None:
        raise TypeError(f"prompts must be the names to read from {text} (got None); pass the app's prompts")
    else:
        entries = _entries(name, prompts)
    found: dict[str, str] = {}
    sets: dict[str, str] = {}
    begun: Mapping[Any, Any] = prompts if isinstance(prompts, Mapping) else {}
    for prompt, entry in entries.items():
        pulled, described = store.pull(entry, alias or "candidate")
        try:
            about = json.loads(described)
            prompt = about["prompt"] if prompts is None else prompt
            sets[prompt] = about["set"]
            start = about["start"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{entry} in {text} must be a version that Result.push wrote (got another)"
            ) from None
        if begun and start not in (digest(begun[prompt]), digest(pulled)):
            raise ValueError(
                f"prompt {prompt!r} of the app must be the text that the version began from (got another, changed "
                "since); optimize anew, or pass names alone as prompts=[…]"
            )
        found[prompt] = pulled
    if set(sets.values()) != {digest(found)}:
        raise ValueError(
            f"the prompts of {name!r} must be of one set, tested together (got {len(set(sets.values()))} sets, "
            f"or other prompts than were pushed, at {alias or 'candidate'!r} in {text}); push the result again"
        )
    return found


def _entries(name: str, prompts: Iterable[str]) -> dict[str, str]:
    """Return the name in the store of each prompt: the letters, digits and hyphens that every store takes."""
    entries: dict[str, str] = {}
    for prompt in prompts:
        entry = re.sub(r"[^a-z0-9_]+", "-", f"{name}-{prompt}".lower()).strip("-_")
        if not entry or entry in entries.values():
            raise ValueError(
                f"names must differ in a store, which has a-z, 0-9, _ and - (got {prompt!r}); rename it"
            )
        entries[prompt] = entry
    if not entries:
        raise ValueError("prompts must not be empty (got none)")
    return entries


_KIND: Final = re.compile(r"(folder|mlflow|phoenix):")


def _opened(source: str) -> Store:
    kind = _KIND.match(source)
    if kind is None:
        raise ValueError(f"the store must be mlflow:<url>, phoenix:<url> or folder:<path> (got {source!r})")
    rest = source[kind.end() :]
    if kind[1] == "folder":
        return Folder(Path(rest))
    return MLflow(rest) if kind[1] == "mlflow" else Phoenix(rest)


# Folders


@final
class Folder:
    """`<entry>/<number>.json` for each version, and `<entry>/<alias>.alias`; readable by the current user only."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self, name: str) -> dict[str, str]:
        (stem,) = _entries(name, [""]).values()
        names = [
            path.parent.name for path in sorted(self._root.glob(f"{stem}-*/1.json")) if _of(path) == name
        ]
        if not names:
            raise FileNotFoundError(
                f"{self._root} must have prompts of {name!r} (got none); push a result there"
            )
        return {entry: entry for entry in names}

    def push(self, name: str, text: str, message: str, about: str) -> str:
        folder = self._root / name
        folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=0)
        written = _written(folder, json.dumps({"text": text, "about": about, "message": message}))
        try:
            while True:
                number += 1
                with suppress(FileExistsError):  # another process took the number
                    os.link(written, folder / f"{number}.json")
                    return str(number)
        finally:
            written.unlink()

    def point(self, name: str, version: str, alias: str) -> None:
        os.replace(_written(self._root / name, version), self._root / name / f"{_checked_alias(alias)}.alias")

    def pull(self, name: str, alias: str) -> tuple[str, str]:
        pointer = self._root / name / f"{_checked_alias(alias)}.alias"
        try:
            kept = json.loads((pointer.parent / f"{int(pointer.read_text())}.json").read_bytes())
            return str(kept["text"]), str(kept["about"])
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{name} must have the alias {alias!r} in {self._root} (got none)"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{pointer} must be a version that Result.push wrote (got {error})") from None


def _of(path: Path) -> Any:
    """Return the name of the set that a version in a folder is of."""
    with suppress(ValueError, KeyError, TypeError):
        return json.loads(json.loads(path.read_bytes())["about"])["of"]
    return None


def _checked_alias(alias: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", alias):
        raise ValueError(f"alias must be letters, digits, _ and - (got {alias!r})")
    return alias


def _written(folder: Path, text: str) -> Path:
    descriptor, path = tempfile.mkstemp(prefix=".prompt-", dir=folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


# Servers


@final
class MLflow:
    """MLflow's registry: a prompt is a registered model, whose versions have their text in a tag."""

    def __init__(self, url: str) -> None:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{one}") for one in ("USERNAME", "PASSWORD"))
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        header = ""
        if user and password:
            header = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
        elif token:
            header = f"Bearer {token}"
        self._server = Server(url, header)

    def _call(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        return self._server.call(method, f"/api/2.0/mlflow/{path}", body)

    def push(self, name: str, text: str, message: str, about: str) -> str:
        if len(text) > 100_000:
            raise ValueError(
                f"MLflow keeps texts of up to 100,000 characters (got {len(text):,} for {name!r})"
            )
        is_prompt = {"key": "mlflow.prompt.is_prompt", "value": "true"}
        try:
            self._call("POST", "registered-models/create", {"name": name, "tags": [is_prompt]})
        except RefusedError as error:
            if "RESOURCE_ALREADY_EXISTS" not in error.body:
                raise
        tags = {
            "mlflow.prompt.text": text, "_mlflow_prompt_type": "text", "afnio": about,
        }  # fmt: skip
        made = self._call(
            "POST",
            "model-versions/create",
            {
                "name": name,
                "source": "prompt-template",
                "description": message,
                "tags": [is_prompt, *({"key": key, "value": value} for key, value in tags.items())],
            },
        )
        return str(_in(made, "model_version", "version"))

    def point(self, name: str, version: str, alias: str) -> None:
        self._call("POST", "registered-models/alias", {"name": name, "alias": alias, "version": version})

    def pull(self, name: str, alias: str) -> tuple[str, str]:
        try:
            found = self._call("GET", "registered-models/alias", {"name": name, "alias": alias})
        except RefusedError as error:
            if error.status == 404 or "alias" in error.body:
                raise LookupError(f"{name} must have the alias {alias!r} in MLflow (got none)") from None
            raise
        tags = {one.get("key"): one.get("value") for one in _in(found, "model_version", "tags")}
        return str(tags.get("mlflow.prompt.text", "")), str(tags.get("afnio"))


@final
class Phoenix:
    """Phoenix's prompts: an alias is a tag of a version."""

    def __init__(self, url: str) -> None:
        key = os.environ.get("PHOENIX_API_KEY")
        self._server = Server(url, f"Bearer {key}" if key else "")

    def push(self, name: str, text: str, message: str, about: str) -> str:
        version = {
            "description": json.dumps({**json.loads(about), "message": message}),
            "model_provider": "OPENAI",
            "model_name": "any",
            "template": {"type": "chat", "messages": [{"role": "user", "content": text}]},
            "template_type": "CHAT",
            "template_format": "NONE",
            "invocation_parameters": {"type": "openai", "openai": {}},
        }
        made = self._server.call("POST", "/v1/prompts", {"prompt": {"name": name}, "version": version})
        return str(_in(made, "data", "id"))

    def point(self, name: str, version: str, alias: str) -> None:
        self._server.call("POST", f"/v1/prompt_versions/{quote(version, safe='')}/tags", {"name": alias})

    def pull(self, name: str, alias: str) -> tuple[str, str]:
        try:
            found = self._server.call("GET", f"/v1/prompts/{name}/tags/{quote(alias, safe='')}", {})
        except RefusedError as error:
            if error.status == 404:
                raise LookupError(f"{name} must have the tag {alias!r} in Phoenix (got none)") from None
            raise
        content = _in(found, "data", "template", "messages")[0]["content"]
        text = content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
        return text, str(_in(found, "data", "description"))


class RefusedError(ConnectionError):
    """A store's answer that isn't a success."""

    def __init__(self, said: str, status: int, body: str) -> None:
        super().__init__(said)
        self.status, self.body = status, body


@final
class Server:
    """A server at a URL, asked with a deadline, without redirects, for replies of a bounded size."""

    def __init__(self, url: str, authorization: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the store's address must begin with http:// or https:// (got {parts.scheme or 'none'})"
            )
        if "@" in parts.netloc:
            raise ValueError(
                "the store's address must have no password in it; put it into the store's variables"
            )
        self._url, self._authorization = url.rstrip("/"), authorization
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def call(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        url, data = f"{self._url}{path}", None
        if method == "GET":
            url += f"?{urlencode(body)}" if body else ""
        else:
            data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._authorization:
            headers["Authorization"] = self._authorization
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - checked above
        ends = time.monotonic() + SECONDS
        try:
            with self._opener.open(request, timeout=SECONDS) as response:
                content = _read(response, ends)
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(2_000).decode("utf-8", "replace")
            raise RefusedError(
                f"{self._url} must accept the request (got {error.code}: {text[:200]})", error.code, text
            ) from None
        except (OSError, HTTPException) as error:
            raise ConnectionError(f"{self._url} must answer (got {error}); is it running?") from None
        try:
            return json.loads(content or b"{}")
        except (ValueError, RecursionError):
            raise ConnectionError(f"{self._url} must answer with JSON (got {content[:60]!r})") from None


def _read(response: Any, ends: float) -> bytes:
    content = b""
    while chunk := response.read1(65_536):
        content += chunk
        if len(content) > LONGEST:
            raise OSError(f"more than {LONGEST:,} bytes")
        if time.monotonic() > ends:
            raise TimeoutError(f"no end of the reply in {SECONDS:.0f} s")
    return content


def _in(reply: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(reply, Mapping) or key not in reply:
            raise ConnectionError(
                f"the store must answer with {'.'.join(keys)!r} (got no {key!r}); is it the right one?"
            )
        reply = reply[key]
    return reply
