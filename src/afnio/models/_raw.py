"""Raw requests and replies: as they are on the wire, with everything that the engine must know about them.

People have agents that were written for an SDK. Its requests reach the engine as bytes, through a transport
(`afnio.bridge`) or a gateway, and the replies leave as bytes. `RawRequest.read` finds out what a request asks for, on
whose account, and what identifies it. `RawReply` is a reply with its usage, in the form in which journals keep it.

No secret leaves this module in a text: the account has a digest of the key, the request's key and `shown` leave out
credentials, and `secrets` names what must be masked elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Final, final

from afnio.models._accounts import account_of, parts_of, sorted_out
from afnio.models._apis import CHAT, dialect_named, dialect_of
from afnio.models._dialect import Dialect
from afnio.models._masking import secrets_in_headers
from afnio.models._messages import ChatResponse, ToolCall
from afnio.runtime._call import Codec
from afnio.runtime._limits import Account, RateLimits
from afnio.runtime.events import Usage

# Headers that a journal keeps. Rate limits belong to the moment.
_KEPT: Final = ("content-type", "request-id", "x-request-id")
# The header with which a client asks for the standard service tier ("standard") while "flex" has no room.
FALLBACK: Final = "x-afnio-fallback"
# Makes the SDKs of OpenAI and Anthropic raise instead of trying again.
NO_RETRY: Final = {"x-should-retry": "false"}


@final
@dataclass(frozen=True)
class RawRequest:
    """A request for a model, as it arrived.

    Attributes:
        method, url, headers, body: as they are sent; header names in lower case. The URL may contain a key.
        json: the parsed body.
        dialect: the API that it is for.
        account: base URL and digest of the key: the account of a native client with the same key.
        shown: the URL without credentials.
        stream: True if the reply is a stream of events.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    json: dict[str, Any] = field(repr=False)
    dialect: Dialect
    account: Account
    shown: str
    stream: bool

    @classmethod
    def read(cls, method: str, url: str, headers: Mapping[str, str], body: bytes) -> RawRequest | None:
        """Return the request, or None if it isn't for a model: then it must be passed on as it is.

        Args:
            url: absolute and percent-encoded.
            headers: with names in any case.
        """
        if method != "POST":
            return None
        place = parts_of(url)
        lower = {name.lower(): value for name, value in headers.items()}
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(parsed, dict):
            return None
        dialect_and_base = dialect_of(place.path, lower, parsed)
        if dialect_and_base is None:
            return None
        dialect, base = dialect_and_base
        azure, deployments, _ = base.partition("/openai/deployments/")
        root = f"{place.root}{azure}/openai" if deployments else f"{place.root}{base}"
        account = account_of(
            root.rstrip("/"),
            lower,
            secrets=place.credentials,
            azure=bool(deployments) and "api-key" not in lower,
        )
        stream = dialect.streams(place.path, parsed)
        return cls(method, url, lower, body, parsed, dialect, account, place.shown, stream)

    @cached_property
    def key(self) -> str:
        """A SHA-256 digest, in hex, of everything that can change the reply. For a program's own journal.

        Credentials don't count: with a renewed token a program asks for nothing again.
        """
        return self._digest(sorted_out(self.headers).of_reply)

    @cached_property
    def shared_key(self) -> str:
        """The same, with everything that says who asks. Callers with equal ones may share a reply."""
        headers = sorted_out(self.headers)
        return self._digest(headers.of_reply, headers.of_caller, *parts_of(self.url).credentials)

    def _digest(self, *parts: str) -> str:
        start = "\0".join((self.method, self.shown, *parts, ""))
        digest = hashlib.sha256(start.encode("utf-8", "surrogateescape"))
        digest.update(self.body)
        return digest.hexdigest()

    @cached_property
    def model(self) -> str:
        named = self.dialect.model(parts_of(self.url).path, self.json)
        deployment = re.search(r"/deployments/([^/]+)/", self.shown)
        return named or (deployment[1] if deployment else "unknown")

    @property
    def prompt_tokens(self) -> int:
        return self.dialect.prompt_tokens(self.json)

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything in it that must not be written anywhere."""
        headers = tuple(item for item in self.headers.items() if item[0] != "content-length")
        return (*parts_of(self.url).secrets, *_secrets_of(headers))

    # For events, as `ChatRequest`

    @cached_property
    def messages(self) -> list[dict[str, Any]]:
        return self.dialect.messages(self.json)

    @cached_property
    def params(self) -> dict[str, Any]:
        return self.dialect.params(self.json)

    @property
    def encoded(self) -> bytes:
        return self.body


@lru_cache(maxsize=256)
def _secrets_of(headers: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    # The requests of a client have the same headers but for their lengths, and looking for secrets takes 36 µs.
    return tuple(secrets_in_headers(dict(headers)))


# Replies


@final
@dataclass(frozen=True)
class RawReply:
    """A reply, as it arrived.

    Attributes:
        status: HTTP status.
        headers: without those of the connection; names in lower case.
        body: of a stream, all of its events.
        dialect: the name of its API.
        usage: as the provider counted it, or estimated for a stream that counts none.
        service_tier: the provider's name for the service tier that it used, or "".
        limits: what the headers reported about the account's limits.
        events: True if it is a stream of events.
        cut: True for a stream whose reader left before its end. Its body ends there.
        complete: False if the reply was cut off by a limit or filtered.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    dialect: str = CHAT.name
    usage: Usage = field(default_factory=Usage)
    service_tier: str = ""
    limits: RateLimits | None = field(default=None, repr=False, compare=False)
    events: bool = False
    cut: bool = False
    complete: bool = True

    @cached_property
    def json(self) -> dict[str, Any]:
        """The reply's JSON. That of a stream is put together into the form of a reply that isn't streamed."""
        if self.events:
            return dialect_named(self.dialect).joined(parsed_events(split_events(self.body)))
        try:
            parsed = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return parsed if isinstance(parsed, dict) else {}

    # For events, as `ChatResponse`

    @cached_property
    def response(self) -> ChatResponse:
        return dialect_named(self.dialect).response(self.json)

    @property
    def content(self) -> str | None:
        return self.response.content

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.response.tool_calls

    @property
    def finish_reason(self) -> str | None:
        return self.response.finish_reason

    @property
    def model(self) -> str:
        return self.response.model

    @property
    def id(self) -> str:
        name = self.json.get("id") or self.json.get("responseId")
        return name if isinstance(name, str) else ""


def _encode(reply: RawReply) -> bytes:
    usage = reply.usage
    head = {
        "status": reply.status,
        "headers": {name: value for name, value in reply.headers.items() if name in _KEPT},
        "dialect": reply.dialect,
        "usage": [usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens],
        "events": reply.events,
        "cut": reply.cut,
        "complete": reply.complete,
    }
    if reply.service_tier:
        head["service_tier"] = reply.service_tier
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + reply.body


def _decode(payload: bytes) -> RawReply:
    head, _, body = payload.partition(b"\n")
    fields = json.loads(head)
    return RawReply(**{**fields, "usage": Usage(*fields["usage"])}, body=body)


CODEC: Final = Codec(
    encode=_encode,
    decode=_decode,
    reusable=lambda reply: reply.complete and not reply.cut,
    recount=lambda reply, usage: replace(reply, usage=usage),
)


def own_reply(status: int, sentence: str, kind: str) -> RawReply:
    """Return a response of ours, in the form that every SDK turns into its own error."""
    error = {"message": sentence, "type": kind, "code": kind, "param": None}
    body = json.dumps({"type": "error", "error": error}, ensure_ascii=False).encode()
    return RawReply(status, {"content-type": "application/json", **NO_RETRY}, body)


def not_utf8(headers: Mapping[str, str]) -> str | None:
    """Return a sentence if a header holds other bytes. aiohttp lets them in, but can't send them on."""
    for name, text in headers.items():
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            return f"the header {name.lower()} must be UTF-8; encode it"
    return None


# The events of a stream


_BETWEEN_EVENTS: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@final
class EventSplitter:
    """Cuts the body of a stream into its events, each with the blank line after it."""

    def __init__(self, *, lines: bool = False) -> None:
        self._between = re.compile(rb"\n") if lines else _BETWEEN_EVENTS
        self._rest = bytearray()

    @property
    def waiting(self) -> int:
        """The bytes of an event that isn't whole."""
        return len(self._rest)

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the events that `piece` completes."""
        # Where the rest had no end, only its last bytes can begin one.
        searched = max(0, len(self._rest) - 3)
        self._rest += piece
        ends = [end.end() for end in self._between.finditer(self._rest, searched)]
        starts = [0, *ends[:-1]]
        events = [bytes(self._rest[start:end]) for start, end in zip(starts, ends, strict=False)]
        if ends:
            del self._rest[: ends[-1]]
        return events

    def rest(self) -> bytes:
        """Return what followed the last event."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest


def split_events(body: bytes) -> Iterator[bytes]:
    """Yield the events of a stream's body."""
    splitter = EventSplitter(lines=body.lstrip()[:1] == b"{")
    yield from splitter.feed(body)
    rest = splitter.rest()
    if rest:
        yield rest


def event_json(event: bytes) -> dict[str, Any] | None:
    """Return the JSON object in an event, or None if it has none: a comment, `[DONE]`."""
    data = event
    if not event.lstrip().startswith(b"{"):
        lines = [line[5:].strip() for line in event.splitlines() if line.startswith(b"data:")]
        data = b"\n".join(lines)
    if not data.startswith(b"{"):
        return None
    try:
        parsed = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def parsed_events(events: Iterator[bytes] | list[bytes]) -> Iterator[dict[str, Any]]:
    return (parsed for event in events if (parsed := event_json(event)) is not None)


def is_done(event: bytes) -> bool:
    return event.strip() == b"data: [DONE]" or event.strip() == b"data:[DONE]"
