"""The batch APIs of OpenAI (and compatible endpoints) and of Anthropic, for `runtime/_parcels.py`.

    OpenAI     POST files, POST batches, GET batches/{id}, GET files/{id}/content of the output and of the errors
    Anthropic  POST messages/batches, GET messages/batches/{id}, GET messages/batches/{id}/results

Results are read at our own paths of the account's URL: an address that a response names is never followed, because the
key would go there. Whatever a response says has the type that it must have, or counts as missing.

Sources: https://platform.openai.com/docs/api-reference/batch,
https://docs.anthropic.com/en/api/creating-message-batches
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Final, final

import anyio

from afnio.errors import ModelError, RateLimitedError, TransientModelError
from afnio.models._dialect import Dialect, dicts, mapping, text, whole
from afnio.models._masking import mask
from afnio.models._replies import status_error
from afnio.models._transport import BETWEEN_BYTES, AiohttpTransport, OpenAnswer
from afnio.runtime._batch_api import LineOutcome, NoBatchApiError, ParcelStatus
from afnio.runtime._limits import Account
from afnio.runtime.events import Usage

Write = Callable[[bytes], Awaitable[object]]

# Seconds for a short request, such as a question about a parcel.
PATIENCE: Final = 60.0
# Seconds for an upload.
UPLOAD: Final = 1800.0
# Bytes of a response that isn't a file.
MOST_JSON: Final = 16 << 20
# Pages of 100 parcels that are searched for one whose name is unknown.
PAGES: Final = 20
_NOT_SENT: Final = frozenset({"content-type", "content-length", "idempotency-key", "accept-encoding"})
_AGAIN: Final = frozenset({0, 408, 409, 425, 429})
_NAME: Final = re.compile(r"[\w.:-]{1,200}")


class _Api(ABC):
    """The part that both have in common: one account, endpoint and model.

    Args:
        headers: returns those of a request.
        secrets: everything in it that must not be written anywhere.
        dialect: reads the usage of replies.
    """

    most_lines: ClassVar[int]
    most_bytes: ClassVar[int]
    frame: ClassVar[tuple[bytes, bytes, bytes]]
    marks: ClassVar[bool]

    def __init__(
        self,
        account: Account,
        endpoint: str,
        model: str,
        headers: Callable[[], Awaitable[Mapping[str, str]]],
        secrets: tuple[str, ...],
        dialect: Dialect,
    ) -> None:
        self.account, self.endpoint, self.model = account, endpoint, model
        self._headers, self._secrets, self._dialect = headers, secrets, dialect

    @abstractmethod
    def line(self, ident: str, body: bytes) -> bytes:
        """Return the line of a request."""

    @abstractmethod
    def outcome(self, line: bytes) -> tuple[str, LineOutcome]:
        """Return the id and the end of a line of the results.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, RecursionError: if it is no such line.
        """

    def usage(self, body: bytes) -> Usage:
        """Return the tokens that a reply counts."""
        return self._dialect.usage(mapping(_json(body))) or Usage()

    async def _open(
        self, method: str, path: str, data: Any = None, kind: str | None = "application/json"
    ) -> OpenAnswer:
        headers = {k: v for k, v in (await self._headers()).items() if k.lower() not in _NOT_SENT}
        if data is not None and kind is not None:
            headers["content-type"] = kind
        url = f"{self.account.url}/{path}"
        return await AiohttpTransport.shared(self.account).open(url, headers, data, self.account.url, method)

    async def _ask(self, method: str, path: str, data: Any = None, **options: Any) -> dict[str, Any]:
        """Send a request, and return the JSON object of its response.

        Raises:
            ModelError: if there is none.
        """
        url, patience = self.account.url, options.pop("patience", PATIENCE)
        try:
            with anyio.fail_after(patience):
                async with await self._open(method, path, data, **options) as opened:
                    body = await opened.read_all(MOST_JSON)
        except TimeoutError:
            raise TransientModelError(f"{url} gave no reply about a batch within {patience:g} s") from None
        parsed = _json(body)
        if opened.status >= 300:
            raise self._error(opened, parsed, body, path)
        if not isinstance(parsed, dict):
            raise TransientModelError(
                f"{url} answered {method} {path} with something else than a JSON object"
            )
        return parsed

    def _error(self, opened: OpenAnswer, parsed: Any, body: bytes, path: str) -> ModelError:
        url = self.account.url
        body = mask(body, self._secrets)
        error = status_error(opened.status, opened.headers, _json(body), body, url)
        if "token_limit_exceeded" in str(parsed)[:2000]:  # a full queue, whatever its status
            return RateLimitedError(str(error), status=opened.status, retry_after=error.retry_after)
        if opened.status in (404, 405, 501) and path in ("files", "batches", "messages/batches"):
            return NoBatchApiError(str(error), status=opened.status)
        return error

    async def _download(self, path: str, write: Write) -> None:
        async with await self._open("GET", path) as opened:
            if opened.status != 200:
                body = await opened.read_all()
                raise self._error(opened, _json(body), body, path)
            while True:
                try:
                    with anyio.fail_after(BETWEEN_BYTES):
                        piece = await opened.read()
                except TimeoutError:
                    url = self.account.url
                    raise TransientModelError(f"{url} fell silent in the middle of results") from None
                if not piece:
                    break
                await write(piece)
        await write(b"\n")

    def _body(self, reply: Any) -> bytes:
        from pydantic_core import to_json

        try:
            body = to_json(reply)
        except ValueError:  # half a character, which only an escape can express
            body = json.dumps(reply).encode()
        return mask(body, self._secrets)


@final
class OpenAIBatches(_Api):
    """OpenAI's, for chat completions, responses and embeddings."""

    most_lines, most_bytes = 50_000, 190_000_000
    frame = b"", b"\n", b"\n"
    marks = True

    def line(self, ident: str, body: bytes) -> bytes:
        head = f'{{"custom_id":"{ident}","method":"POST","url":"{self.endpoint}","body":'
        return head.encode() + _one_line(body) + b"}"

    async def upload(self, name: str, path: Path) -> str:
        import aiohttp

        file = await anyio.to_thread.run_sync(path.open, "rb")
        with file:
            form = aiohttp.FormData()
            form.add_field("purpose", "batch")
            form.add_field("file", file, filename=f"afnio-{name}.jsonl", content_type="application/jsonl")
            return _name(await self._ask("POST", "files", form, kind=None, patience=UPLOAD))

    async def create(self, name: str, path: Path, uploaded: str) -> str:
        asked = {
            "input_file_id": uploaded, "endpoint": self.endpoint, "completion_window": "24h",
            "metadata": {"afnio": name},
        }  # fmt: skip
        return _name(await self._ask("POST", "batches", json.dumps(asked).encode()))

    async def find(self, name: str, created: float, lines: int, taken: set[str]) -> str | None:
        after = ""
        for _ in range(PAGES):
            page = await self._ask("GET", f"batches?limit=100{after}")
            batches = dicts(page.get("data"))
            for batch in batches:
                if mapping(batch.get("metadata")).get("afnio") == name:
                    return _name(batch)
            oldest = batches[-1] if batches else {}
            if not page.get("has_more") or whole(oldest.get("created_at")) < created - 3600:
                return None
            after = f"&after={_name(oldest)}"
        return None

    async def status(self, remote: str) -> ParcelStatus:
        batch = await self._ask("GET", f"batches/{remote}")
        errors = tuple(
            (
                whole(error.get("line")) or None,
                text(error.get("code")),
                self._masked(text(error.get("message"))),
            )
            for error in dicts(mapping(batch.get("errors")).get("data"))
        )
        state = text(batch.get("status"))
        files = (batch.get("output_file_id"), batch.get("error_file_id"))
        return ParcelStatus(
            "failed"
            if state == "failed"
            else "done"
            if state in ("completed", "expired", "cancelled")
            else "",
            whole(mapping(batch.get("request_counts")).get("completed")),
            errors,
            tuple(file for file in files if isinstance(file, str) and _NAME.fullmatch(file)),
        )

    def _masked(self, message: str) -> str:
        return mask(message[:2000].encode("utf-8", "replace"), self._secrets).decode()

    async def results(self, status: ParcelStatus, write: Write) -> None:
        for file in status.files:
            await self._download(f"files/{file}/content", write)

    async def cancel(self, remote: str) -> None:
        await self._ask("POST", f"batches/{remote}/cancel", b"{}")

    def outcome(self, line: bytes) -> tuple[str, LineOutcome]:
        row = json.loads(line)
        response, error = mapping(row.get("response")), mapping(row.get("error"))
        status = whole(response.get("status_code"))
        if error or status in _AGAIN or status >= 500:
            return _id(row), LineOutcome("unserved", reason=text(error.get("code")) or f"status {status}")
        return _id(row), LineOutcome("answered", status, self._body(response.get("body")))


@final
class AnthropicBatches(_Api):
    """Anthropic's, for messages."""

    most_lines, most_bytes = 100_000, 250_000_000
    frame = b'{"requests":[', b",", b"]}"
    marks = False

    def line(self, ident: str, body: bytes) -> bytes:
        return f'{{"custom_id":"{ident}","params":'.encode() + _one_line(body) + b"}"

    async def upload(self, name: str, path: Path) -> str:
        return ""

    async def create(self, name: str, path: Path, uploaded: str) -> str:
        file = await anyio.to_thread.run_sync(path.open, "rb")
        with file:
            return _name(await self._ask("POST", "messages/batches", file, patience=UPLOAD))

    async def find(self, name: str, created: float, lines: int, taken: set[str]) -> str | None:
        """Find it by its time and size, because the API has no marks. Its results decide."""
        page = await self._ask("GET", "messages/batches?limit=100")
        for batch in reversed(dicts(page.get("data"))):
            counted = sum(whole(count) for count in mapping(batch.get("request_counts")).values())
            if (
                _time(batch.get("created_at")) >= created - 5
                and counted == lines
                and batch.get("id") not in taken
            ):
                return _name(batch)
        return None

    async def status(self, remote: str) -> ParcelStatus:
        batch = await self._ask("GET", f"messages/batches/{remote}")
        counts = mapping(batch.get("request_counts"))
        ended = batch.get("processing_status") == "ended"
        done = whole(counts.get("succeeded")) + whole(counts.get("errored"))
        return ParcelStatus("done" if ended else "", done, files=(remote,) if ended else ())

    async def results(self, status: ParcelStatus, write: Write) -> None:
        for remote in status.files:
            await self._download(f"messages/batches/{remote}/results", write)

    async def cancel(self, remote: str) -> None:
        await self._ask("POST", f"messages/batches/{remote}/cancel", b"{}")

    def outcome(self, line: bytes) -> tuple[str, LineOutcome]:
        row = json.loads(line)
        result = row["result"]
        if result["type"] == "succeeded":
            return _id(row), LineOutcome("answered", 200, self._body(result["message"]))
        error = mapping(result.get("error"))
        kind = text(mapping(error.get("error")).get("type")) or text(result["type"])
        status = _REFUSED.get(kind)
        if status is not None:
            return _id(row), LineOutcome("answered", status, self._body(error))
        return _id(row), LineOutcome("unserved", reason=kind)


_REFUSED: Final = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413,
}  # fmt: skip


def _one_line(body: bytes) -> bytes:
    # An SDK may send its JSON on several lines, and a line of a file can't have any.
    if b"\n" not in body and b"\r" not in body:
        return body
    return json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


def _id(row: Mapping[str, Any]) -> str:
    ident = row["custom_id"]
    if not isinstance(ident, str):
        raise TypeError("a custom_id must be a text")
    return ident


def _name(made: Mapping[str, Any]) -> str:
    """Return the name of a file or a batch. It becomes a part of a path."""
    name = made.get("id")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TransientModelError(f"a batch API named what it made {str(name)[:80]!r}, which isn't a name")
    return name


def _time(value: Any) -> float:
    try:
        return datetime.fromisoformat(text(value)).timestamp()
    except ValueError:
        return 0.0


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
