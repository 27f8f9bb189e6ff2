"""Prompts out: from a result into a store of prompts, and from there into an app.

A store keeps versions of a text under a name, and aliases that point to one of them. Prompts that were tuned together
must be used together, and no server has an entry for a set of them. So all versions are pushed before the first alias
moves, each version has the digest of its set, and `load_prompts` refuses a mixture. A folder keeps a set in one file.

Texts are stored as they are; they aren't templates of the store. A push and a load have one deadline for all of their
requests, and read bounded replies. Redirects are errors, because the credentials would go along. These come from the
variables that the store's own client reads, and are written nowhere.
"""

from __future__ import annotations

import base64
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeVar, final
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio

from afnio.cognitive._archive import replace
from afnio.errors import BlockingReadError
from afnio.runtime._blocking import run_blocking, task_group
from afnio.runtime._files import make_private_folder
from afnio.runtime._waiting import may_block
from afnio.studies._exports import RunPrompts
from afnio.studies._rows import check_text, digest
from afnio.tellurio._store import home_folder

if TYPE_CHECKING:
    import aiohttp

T = TypeVar("T")

# The longest that a push or a load may take.
SECONDS: Final = 30.0
# Bytes of a reply that are read.
LONGEST: Final = 8_000_000
# How many of the texts that came before a version it remembers, by digest.
REMEMBERED: Final = 20


@final
@dataclass(frozen=True, slots=True)
class Version:
    """A prompt as a store has it.

    Attributes:
        text: as it was pushed.
        of: the name of its set.
        whole: the digest of its set, by which a mixture is known.
        began: digests of the texts that it came from, the newest last.
        verdict: the result's, in words.
    """

    text: str
    of: str
    whole: str
    began: Sequence[str] = ()
    verdict: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """Everything but text and verdict, as JSON data."""
        return {"of": self.of, "set": self.whole, "began": [*self.began]}

    @classmethod
    def read(cls, where: str, text: Any, about: Any) -> Version:
        """Return the version that a store's text and `about` describe.

        Raises:
            ValueError: if `push_prompts` didn't write them.
        """
        if isinstance(about, str):
            with suppress(ValueError, RecursionError):
                about = json.loads(about)
        match about:
            case {"of": str(of), "set": str(whole), "began": list(began)} if isinstance(text, str):
                return cls(text, of, whole, tuple(map(str, began)))
        raise ValueError(
            f"{where} must be a version that Result.push wrote (got another); push a result there"
        )


class PromptStore(Protocol):
    """Where sets of prompts are kept.

    Attributes:
        longest: the most characters of a text, or None.
    """

    longest: int | None

    def push(self, name: str, versions: Mapping[str, Version], alias: str) -> None:
        """Add a version of each prompt, then let the alias point to all of them."""

    def pull(self, name: str, prompts: Iterable[str] | None, alias: str) -> dict[str, Version]:
        """Return the versions that an alias points to. Raises a LookupError if there are none."""


def push_prompts(
    source: str, name: str, prompts: Mapping[str, str], *, alias: str, verdict: str, start: Mapping[str, str]
) -> None:
    """Push prompts that were tuned together, from `start`, into a store."""
    store = _opened(source)
    _entries(name, prompts)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", alias):
        raise ValueError(f"alias must be letters, digits, _ and - (got {alias!r})")
    for prompt, text in prompts.items():
        check_text(f"prompt {prompt!r}", text)
        if len(text) > (store.longest or len(text)):
            raise ValueError(
                f"{type(store).__name__} keeps texts of up to {store.longest:,} characters (got {len(text):,} for "
                f"{prompt!r}); use another store"
            )
    began = {prompt: [digest(start[prompt])] for prompt in prompts if prompt in start}
    try:
        earlier = store.pull(name, prompts, alias)
    except (LookupError, ValueError):  # the first of its name, or of other prompts
        earlier = {}
    for version in earlier.values():
        if version.of != name:
            raise ValueError(
                f"name must differ from {version.of!r}, which is the same in {source} (got {name!r})"
            )
    if earlier and {prompt: version.text for prompt, version in earlier.items()} == dict(start):
        began = {prompt: [*earlier[prompt].began, *began[prompt]][-REMEMBERED:] for prompt in prompts}
    whole = digest(dict(prompts))
    versions = {
        prompt: Version(text, name, whole, began.get(prompt, ()), verdict) for prompt, text in prompts.items()
    }
    store.push(name, versions, alias)


def load_prompts(
    source: str | os.PathLike[str],
    name: str | None = None,
    *,
    prompts: Mapping[str, str] | Iterable[str] | None = None,
    alias: str | None = None,
) -> dict[str, str]:
    """Return prompts by name, from where `Result.push` or `Result.save` wrote them, or from a run.

    It blocks. In an async app write `await asyncio.to_thread(afnio.load_prompts, …)`.

    Args:
        source: "mlflow:http://…", "phoenix:http://…", "langfuse:http://…" or "folder:…"; the path of a folder that
            `Result.save` wrote; or "run:NAME", a run in the folder of runs (AFNIO_HOME, or .afnio). `run:NAME@kept`,
            the same, is what the run ended with, `@found` what its training led to even if it wasn't kept, and `@3`
            what it had after step 3.
        name: that they were pushed under; not for a path or a run.
        prompts: the names that the app needs, or its own prompts by name. With texts it is an error if those that were
            pushed came from others: the tools or texts of the app have changed since. Servers need the names.
        alias: which version; "candidate" by default. Not for a path or a run.

    Raises:
        LookupError: if the prompts or their alias aren't there; a FileNotFoundError for a path.
        ChoiceError: if a name means no run, or several.
        ValueError: if the prompts are of different sets, came from other texts, or aren't those that are needed.
        ConnectionError: if the store can't be reached, refuses, or doesn't answer as one.
        BlockingReadError: if it would block an event loop.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pathlib.Path(folder, "system.txt").write_text("Be brief.")
    ...     load_prompts(folder)
    {'system': 'Be brief.'}
    """
    if isinstance(prompts, str):
        raise TypeError(
            f"prompts must be names, or texts by name (got {prompts!r}); write prompts=[{prompts!r}]"
        )
    where = os.fspath(source)
    if where.startswith("run:"):
        if name is not None or alias is not None:
            raise TypeError(f"a run has no names and aliases (got {name or alias!r}); write run:NAME@kept")
        return _chosen(where, dict(RunPrompts.read(home_folder(), where[4:]).texts), prompts)
    if not _KIND.match(where):
        if name is not None or alias is not None:
            raise TypeError(
                f"a folder of Result.save has no names and aliases (got {name or alias!r}); leave it out"
            )
        return _chosen(where, _read_folder(Path(where)), prompts)
    if name is None:
        raise TypeError("name must be the name that the prompts were pushed under (got None)")
    pulled = _opened(where).pull(name, prompts, alias or "candidate")
    texts = {prompt: version.text for prompt, version in pulled.items()}
    sets = {version.whole for version in pulled.values()}
    if len(sets) > 1:
        raise ValueError(
            f"the prompts of {name!r} must be of one set, tested together (got {len(sets)} sets at "
            f"{alias or 'candidate'!r} in {where}); load them again after a push, or push the result again"
        )
    if sets != {digest(texts)}:
        raise ValueError(
            f"the prompts of {name!r} must be the whole set as it was pushed (got a part, or a text that was edited in "
            f"{where}); name all of its prompts, or push the result again"
        )
    if isinstance(prompts, Mapping):
        for prompt in set(prompts) & set(pulled):
            if digest(prompts[prompt]) not in (digest(texts[prompt]), *pulled[prompt].began):
                raise ValueError(
                    f"prompt {prompt!r} of the app must be the text that the version came from (got another, changed "
                    "since); optimize anew, or pass names alone, as prompts=[…]"
                )
    return _chosen(f"{name!r} in {where}", texts, prompts)


def _chosen(where: str, texts: dict[str, str], prompts: Iterable[str] | None) -> dict[str, str]:
    wanted = list(texts) if prompts is None else list(prompts)
    for prompt in wanted:
        if prompt not in texts:
            raise LookupError(
                f"{where} must have the prompt {prompt!r} (got {', '.join(texts)}); optimize anew"
            )
    return {prompt: texts[prompt] for prompt in wanted}


_KIND: Final = re.compile(r"(folder|mlflow|phoenix|langfuse):|[a-z]{2,}:(?=https?:)")


def _opened(source: str) -> PromptStore:
    kind = _KIND.match(source)
    if kind is None or kind[1] is None:
        raise ValueError(
            "the store must be mlflow:<url>, phoenix:<url>, langfuse:<url> or folder:<path> "
            f"(got {source.partition('//')[0]!r})"
        )
    rest = source[kind.end() :]
    if kind[1] == "folder":
        return Folder(Path(rest))
    if kind[1] == "mlflow":
        return MLflow(rest)
    return Phoenix(rest) if kind[1] == "phoenix" else Langfuse(rest)


def _entries(name: str, prompts: Iterable[str]) -> dict[str, str]:
    """Return the name in a store of each prompt, in the characters that every store takes."""
    entries: dict[str, str] = {}
    for prompt in prompts:
        # A cleaned name has no "--", so those of two sets can't be the same.
        entry = f"{_cleaned(name)}--{_cleaned(prompt)}"
        if entry in entries.values():
            raise ValueError(
                f"names must differ in a store, which has a-z, 0-9, _ and - (got {prompt!r}); rename it"
            )
        entries[prompt] = entry
    if not entries:
        raise ValueError("prompts must not be empty (got none)")
    return entries


def _cleaned(name: str) -> str:
    cleaned = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-_")
    if not cleaned:
        raise ValueError(f"names must have letters of a-z or digits in a store (got {name!r}); rename it")
    return cleaned


# Folders


@final
class Folder:
    """`<name>/<number>.json` for each set, and `<name>/<alias>.alias`, for the current user only."""

    longest: int | None = None

    def __init__(self, root: Path) -> None:
        self._root = root

    def push(self, name: str, versions: Mapping[str, Version], alias: str) -> None:
        folder = self._root / _cleaned(name)
        make_private_folder(folder)
        first = next(iter(versions.values()))
        kept = {
            "of": name,
            "set": first.whole,
            "verdict": first.verdict,
            "prompts": {prompt: version.text for prompt, version in versions.items()},
            "began": {prompt: [*version.began] for prompt, version in versions.items()},
        }
        number = max((int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit()), default=0)
        taken = True
        while taken:
            number += 1
            with suppress(FileExistsError):  # else another process took the number
                os.close(os.open(folder / f"{number}.json", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                taken = False
        replace(folder / f"{number}.json", json.dumps(kept, indent=1).encode())
        replace(folder / f"{alias}.alias", str(number).encode())

    def pull(self, name: str, prompts: Iterable[str] | None, alias: str) -> dict[str, Version]:
        pointer = self._root / _cleaned(name) / f"{alias}.alias"
        try:
            number = int(pointer.read_text())
            kept = json.loads((pointer.parent / f"{number}.json").read_bytes())
        except FileNotFoundError:
            raise LookupError(f"{name!r} must have the alias {alias!r} in {self._root} (got none)") from None
        except (ValueError, RecursionError):
            kept = None
        match kept:
            case {"prompts": dict(texts), "began": dict(began)}:
                return {
                    prompt: Version.read(str(pointer), text, {**kept, "began": began.get(prompt)})
                    for prompt, text in texts.items()
                }
        raise ValueError(f"{pointer} must be a version that Result.push wrote (got another)")


def _read_folder(folder: Path) -> dict[str, str]:
    """Return the prompts that `Result.save` wrote."""
    texts = {}
    for path in sorted(folder.glob("*.txt")):
        with path.open(encoding="utf-8", newline="") as file:
            texts[path.stem] = file.read()
    if not texts:
        raise FileNotFoundError(
            f"{folder} must have prompts as <name>.txt (got none); write them by Result.save"
        )
    return texts


# Servers


class StoreError(ConnectionError):
    """A server's answer that isn't a success."""

    def __init__(self, said: str, status: int, body: str) -> None:
        super().__init__(said)
        self.status, self.body = status, body


class Server(ABC):
    """A store at a URL, with an entry for each prompt.

    Subclasses have the three methods that differ: `_push` adds a version, `_point` moves an alias to it, and `_pull`
    reads the version that an alias points to.
    """

    # The names of the variables with user, password and token; "" for none.
    variables: ClassVar[tuple[str, str, str]]
    longest: int | None = None

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"the store's address must begin with http:// or https:// (got {parts.scheme or 'none'!r})"
            )
        if "@" in parts.netloc:
            raise ValueError(
                "the store's address must have no password in it; put it into the store's variables"
            )
        self.url, self._host, self._scheme = url.rstrip("/"), parts.hostname, parts.scheme
        self._session: aiohttp.ClientSession | None = None

    @abstractmethod
    async def _push(self, entry: str, version: Version) -> Any:
        """Add a version; returns its number or id."""

    @abstractmethod
    async def _point(self, entry: str, number: Any, alias: str) -> None: ...

    @abstractmethod
    async def _pull(self, entry: str, alias: str) -> tuple[Any, Any]:
        """Return the text and `about` of a version. Raises a LookupError if there is none."""

    def push(self, name: str, versions: Mapping[str, Version], alias: str) -> None:
        entries = _entries(name, versions)

        async def pushed() -> None:
            numbers = await side_by_side(
                {entries[one]: partial(self._push, entries[one], versions[one]) for one in versions}
            )
            await side_by_side(
                {entry: partial(self._point, entry, number, alias) for entry, number in numbers.items()}
            )

        self._in_time(pushed, "Result.push")

    def pull(self, name: str, prompts: Iterable[str] | None, alias: str) -> dict[str, Version]:
        if prompts is None:
            raise TypeError(
                f"prompts must be the names to read from {self.url} (got None); pass the app's prompts"
            )
        entries = _entries(name, prompts)

        async def pulled() -> dict[str, tuple[Any, Any]]:
            return await side_by_side(
                {one: partial(self._pull, entry, alias) for one, entry in entries.items()}
            )

        kept = self._in_time(pulled, "afnio.load_prompts")
        return {one: Version.read(f"{entries[one]} in {self.url}", *kept[one]) for one in entries}

    def _in_time(self, main: Callable[[], Awaitable[T]], function: str) -> T:
        """Run `main` with a session, in one deadline."""
        if not may_block():
            raise BlockingReadError(
                f"{function} would block the event loop; write `await asyncio.to_thread(…)` around it"
            )

        async def run() -> T:
            import aiohttp

            try:
                with anyio.fail_after(SECONDS):
                    async with aiohttp.ClientSession(
                        connector=aiohttp.TCPConnector(limit=8),
                        timeout=aiohttp.ClientTimeout(total=None),
                        cookie_jar=aiohttp.DummyCookieJar(),
                        headers={"Accept": "application/json", **self._credentials()},
                    ) as self._session:
                        return await main()
            except TimeoutError:
                raise ConnectionError(
                    f"{self.url} must answer within {SECONDS:g} s (got no end of a reply)"
                ) from None

        return run_blocking(run, function)

    def _credentials(self) -> dict[str, str]:
        user, password, token = (os.environ.get(one, "") if one else "" for one in self.variables)
        if user and password:
            return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
        return {"Authorization": f"Bearer {token}"} if token else {}

    async def call(self, method: str, path: str, body: Any = None, **query: str) -> Any:
        """Send a request and return the JSON of its reply."""
        import aiohttp

        assert self._session is not None
        proxy = None if proxy_bypass(self._host) else getproxies().get(self._scheme)
        try:
            async with self._session.request(
                method, f"{self.url}{path}", json=body, params=query, proxy=proxy, allow_redirects=False
            ) as response:
                content = bytearray()
                async for piece in response.content.iter_any():
                    content += piece
                    if len(content) > LONGEST:
                        raise ValueError(f"more than {LONGEST:,} bytes")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ConnectionError(
                f"{self.url} must answer as a store does (got {error}); check its address, and that it runs"
            ) from None
        if not 200 <= response.status < 300:
            text = content[:2_000].decode("utf-8", "replace")
            raise StoreError(
                f"{self.url} must accept the request (got {response.status}: {' '.join(text.split())[:200]})",
                response.status,
                text,
            )
        try:
            return json.loads(content or b"{}")
        except (ValueError, RecursionError):
            raise ConnectionError(f"{self.url} must answer with JSON (got {bytes(content[:60])!r})") from None


async def side_by_side(work: Mapping[str, Callable[[], Awaitable[T]]]) -> dict[str, T]:
    """Call everything at once, and return the results by name."""
    results: dict[str, T] = {}

    async def one(name: str, job: Callable[[], Awaitable[T]]) -> None:
        results[name] = await job()

    async with task_group() as tasks:
        for name, job in work.items():
            tasks.start_soon(one, name, job)
    return results


def _in(reply: Any, *keys: str | int) -> Any:
    for key in keys:
        try:
            reply = reply[key]
        except (LookupError, TypeError):
            raise ConnectionError(
                f"the store must answer with {'.'.join(map(str, keys))!r} (got no {key!r}); is it the right one?"
            ) from None
    return reply


@final
class MLflow(Server):
    """MLflow's registry: a prompt is a registered model, whose versions have their text in a tag."""

    variables = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"

    longest: int | None = 100_000

    async def _push(self, entry: str, version: Version) -> Any:
        is_prompt = {"key": "mlflow.prompt.is_prompt", "value": "true"}
        try:
            await self._write("registered-models/create", {"name": entry, "tags": [is_prompt]})
        except StoreError as error:
            if "RESOURCE_ALREADY_EXISTS" not in error.body:
                raise
        tags = {
            "mlflow.prompt.text": version.text,
            "_mlflow_prompt_type": "text",
            "afnio": json.dumps(version.about),
        }
        body = {
            "name": entry,
            "source": "prompt-template",
            "description": version.verdict,
            "tags": [is_prompt, *({"key": key, "value": value} for key, value in tags.items())],
        }
        return _in(await self._write("model-versions/create", body), "model_version", "version")

    async def _point(self, entry: str, number: Any, alias: str) -> None:
        body = {"name": entry, "alias": alias, "version": number}
        await self._write("registered-models/alias", body)

    async def _pull(self, entry: str, alias: str) -> tuple[Any, Any]:
        try:
            reply = await self.call("GET", f"{self._API}/registered-models/alias", name=entry, alias=alias)
        except StoreError as error:
            if error.status == 404 or "alias" in error.body:
                raise LookupError(f"{entry} must have the alias {alias!r} in {self.url} (got none)") from None
            raise
        pairs = _in(reply, "model_version", "tags")
        tags = {
            str(pair.get("key")): pair.get("value")
            for pair in (pairs if isinstance(pairs, list) else [])
            if isinstance(pair, dict)
        }
        # MLflow leaves an empty value out.
        return tags.get("mlflow.prompt.text", "") or "", tags.get("afnio")

    async def _write(self, path: str, body: Mapping[str, Any], attempts: int = 5) -> Any:
        """Send a request again if another one wrote the same row meanwhile: MLflow looks, then inserts."""
        try:
            return await self.call("POST", f"{self._API}/{path}", body)
        except StoreError as error:
            if "IntegrityError" not in error.body or attempts == 1:
                raise
        await anyio.sleep(0.1)
        return await self._write(path, body, attempts - 1)

    _API: Final = "/api/2.0/mlflow"


@final
class Phoenix(Server):
    """Phoenix's prompts: an alias is a tag of a version."""

    variables = "", "", "PHOENIX_API_KEY"

    async def _push(self, entry: str, version: Version) -> Any:
        described = {
            # The only place for data of our own; one line of JSON, as a verdict may have colons and line ends.
            "description": json.dumps({"verdict": version.verdict, **version.about}),
            "model_provider": "OPENAI",
            "model_name": "any",
            "template": {"type": "chat", "messages": [{"role": "user", "content": version.text}]},
            "template_type": "CHAT",
            "template_format": "NONE",
            "invocation_parameters": {"type": "openai", "openai": {}},
        }
        made = await self.call("POST", "/v1/prompts", {"prompt": {"name": entry}, "version": described})
        return _in(made, "data", "id")

    async def _point(self, entry: str, number: Any, alias: str) -> None:
        await self.call("POST", f"/v1/prompt_versions/{quote(str(number), safe='')}/tags", {"name": alias})

    async def _pull(self, entry: str, alias: str) -> tuple[Any, Any]:
        try:
            reply = await self.call("GET", f"/v1/prompts/{entry}/tags/{quote(alias, safe='')}")
        except StoreError as error:
            if error.status == 404:
                raise LookupError(f"{entry} must have the alias {alias!r} in {self.url} (got none)") from None
            raise
        content = _in(reply, "data", "template", "messages", 0, "content")
        if isinstance(content, list):
            content = "".join(str(_in(part, "text")) for part in content)
        return content, _in(reply, "data", "description")


@final
class Langfuse(Server):
    """Langfuse's prompts: an alias is a label. Written from its API's description; no server has run it."""

    variables = "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", ""

    async def _push(self, entry: str, version: Version) -> Any:
        body = {
            "type": "text",
            "name": entry,
            "prompt": version.text,
            "config": {"afnio": version.about},
            "commitMessage": version.verdict[:500],  # its limit
        }
        return _in(await self.call("POST", "/api/public/v2/prompts", body), "version")

    async def _point(self, entry: str, number: Any, alias: str) -> None:
        path = f"/api/public/v2/prompts/{entry}/versions/{quote(str(number), safe='')}"
        await self.call("PATCH", path, {"newLabels": [alias]})

    async def _pull(self, entry: str, alias: str) -> tuple[Any, Any]:
        try:
            # Unresolved: the text may have tags that Langfuse would replace by other prompts.
            reply = await self.call("GET", f"/api/public/v2/prompts/{entry}", label=alias, resolve="false")
        except StoreError as error:
            if error.status == 404:
                raise LookupError(f"{entry} must have the alias {alias!r} in {self.url} (got none)") from None
            raise
        return _in(reply, "prompt"), _in(reply, "config", "afnio")
