"""Exchanges: raw calls through the engine's one call path.

An `Exchange` is one call under way: `run` makes it, and a reader takes the reply from its pipe, whole or event by
event. In between it is a call like any other: journal, single flight, budgets, limits, retries, events.

`run` never raises an error of ours. The reader is an SDK, which treats an exception as a lost connection
and tries again. So it gets the provider's own response, or one of ours, with `x-should-retry: false`: the engine has
retried already. `Exchange.error` has our error, and the context's trace remembers it.

**Streams.** An attempt passes events on as they come. Until the first one with content it may fail and be repeated, so
the events before that are held back. The last ones are held back until the reply is in the journal. The reader's pace
is the provider's: between them is a buffer with a bound. A reader that leaves early has often found what it looked
for, and would pay again in every resumed run. So the stream is read on for a short while, and if that doesn't reach the
end, what was received is recorded as `cut`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, final

import anyio

from afnio.errors import (
    AfnioError,
    BudgetExceeded,
    FinalModelError,
    JournalError,
    LaunchCancelledError,
    ModelError,
    ProviderDownError,
    RuntimeClosedError,
    TransientModelError,
    UnknownPriceError,
)
from afnio.models._apis import ANTHROPIC, CHAT, RESPONSES
from afnio.models._dialect import mapping
from afnio.models._masking import mask
from afnio.models._messages import ChatResponse
from afnio.models._prices import governed_prices
from afnio.models._raw import (
    CODEC,
    FALLBACK,
    NO_RETRY,
    EventSplitter,
    RawReply,
    RawRequest,
    event_json,
    is_done,
    own_reply,
    parsed_events,
    split_events,
)
from afnio.models._replies import read_limits, send_at_tier, status_error
from afnio.models._streams import BrokenReplyError, Head, Pipe, Received
from afnio.models._trace import TracedCall, current_trace, in_attempt, rehearsal
from afnio.models._transport import MAX_REPLY, AiohttpTransport, Silence
from afnio.runtime._batch_api import Batched, goes_live, wanted_parcel
from afnio.runtime._budget import current_budgets
from afnio.runtime._call import ATTEMPT_DEADLINE, Call, attempt_deadline, perform
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account, RateLimits
from afnio.runtime._loop import Cancelled, loop_time
from afnio.runtime._spending import BATCH
from afnio.runtime.events import Usage

# Seconds that a stream may take in all. Between two pieces of it, the request's own read timeout counts.
STREAM_DEADLINE: Final = 3600.0
# Seconds without a byte of a stream, if the request has no timeout of its own.
READ_TIMEOUT: Final = 600.0
# Seconds for which a stream is read on after its reader has left.
READ_ON: Final = 5.0
# The most tokens that are read on.
READ_ON_TOKENS: Final = 2_000
# Bytes of a stream's event.
MOST_EVENT: Final = 16 << 20
# Seconds between a stream's last event and the end of its body.
_END_OF_BODY: Final = 5.0
# Headers that belong to a connection, and aren't passed on.
HOP_BY_HOP: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# Headers of a request that aren't sent: aiohttp asks for the encodings that it can undo.
_NOT_SENT: Final = HOP_BY_HOP | {"accept-encoding"}
_NOT_RETURNED: Final = HOP_BY_HOP | {"content-encoding", "proxy-authenticate", "set-cookie"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CallOrigin:
    """Where a raw call comes from.

    Attributes:
        address: unique in the run, and the same in the next run.
        scope: the part of it that calls share whose replies may be swapped once the program has changed.
        purpose: the call's name in usage and events.
        depth: of the launch; deeper calls go first.
        node, lane: the launch and the sample that it is made for, for events.
        site: the place in the program; its replies are assumed to be alike in length.
        key: what a record must have been asked. Default: the request's own, without credentials.
    """

    address: str
    scope: str = ""
    purpose: str = "chat"
    depth: int = 0
    node: str = ""
    lane: int | None = None
    site: Hashable = None
    key: str = ""


class Opened(Protocol):
    """A response whose body is still to be read, as `OpenAnswer`."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    async def __aenter__(self) -> Any: ...
    async def __aexit__(self, *exc: object) -> Any: ...
    async def read(self) -> bytes: ...
    async def read_all(self) -> bytes: ...


# Sends a request with this body once. It raises a `ModelError` if there is no response.
Sender = Callable[[RawRequest, bytes], Awaitable[Opened]]


async def send_by_aiohttp(request: RawRequest, body: bytes) -> Opened:
    headers = _sent(request.headers)
    return await AiohttpTransport.shared(request.account).open(request.url, headers, body, request.shown)


def _sent(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in headers.items()
        if name not in _NOT_SENT and not name.startswith("x-afnio-")
    }


@final
class Exchange:
    """One raw call.

    Args:
        request: what is asked.
        origin: where it comes from.
        read_timeout: seconds without a byte, once it is on the wire. None means the engine's own.
        send: sends one attempt. The default is the account's aiohttp session.
        on_wire: called with True when an attempt begins, and with False when it has failed.

    Attributes:
        origin: as given.
        pipe: the reply's way to its reader.
        error: what ended the call, or None if it was answered.
    """

    def __init__(
        self,
        request: RawRequest,
        origin: CallOrigin,
        *,
        read_timeout: float | None = None,
        send: Sender = send_by_aiohttp,
        on_wire: Callable[[bool], object] = lambda at_provider: None,
    ) -> None:
        self.request = request
        self.error: BaseException | None = None
        self.origin = origin
        self._read_timeout = read_timeout
        self._trace = current_trace.get()
        self._traced: TracedCall | None = None
        if self._trace is not None:
            self._traced = self._trace.begin(
                request.dialect.name, request.json, request.model, origin.purpose
            )
        self.pipe = Pipe(log=self._traced is not None and request.stream)
        if self._traced is not None and request.stream:
            self.pipe.on_end = self._trace_stream
        self._attempt = _Attempt(self.request, self.pipe, read_timeout, send, on_wire)

    async def run(self) -> RawReply:
        """Make the call, and return the reply: the provider's, or one of ours if there is none.

        Only the end of its task gets out of it.
        """
        try:
            reply = await self._perform()
        except BaseException as error:
            if not isinstance(error, AfnioError | Cancelled):  # such as a user's function for the usage
                logging.getLogger("afnio").exception("a call of %s failed", self.request.shown)
            reply = self.abort(error)
            if not isinstance(error, Exception):
                raise
            return reply
        if self._traced is not None and not self.request.stream:
            self._traced.reply = reply.json
        beyond = "the recorded reply ends here, because its reader had left; delete its record to ask again"
        self._deliver(reply, BrokenReplyError(beyond) if reply.cut else None)
        return reply

    def abort(self, error: BaseException) -> RawReply:
        """End it with an error, on the runtime's loop. Returns the response that the reader gets."""
        reply = _refusal(error)
        if self.error is None:
            self.error = error
            if self._trace is not None:
                self._trace.note(error)
            self._deliver(reply, BrokenReplyError(f"the reply broke off ({_told(error, self.request)})"))
        return reply

    async def _perform(self) -> RawReply:
        request, origin = self.request, self.origin
        rehearsed = rehearsal.get()
        if rehearsed is not None:
            return _made_up(request, rehearsed, origin)
        if request.dialect is RESPONSES and request.json.get("background") and current_budgets():
            raise _uncounted()
        price, tier_prices = await governed_prices(request.model, request.account.url)
        batched = self._batched()
        timeout = attempt_deadline(self._read_timeout or ATTEMPT_DEADLINE, request.json.get("service_tier"))
        call = Call(
            address=origin.address,
            scope=origin.scope,
            key=origin.key or request.key,
            codec=CODEC,
            account=request.account,
            model=request.model,
            purpose=origin.purpose,
            attempt=self._attempt.make,
            deadline=math.inf if request.stream else timeout,
            depth=origin.depth,
            prompt_tokens=request.prompt_tokens,
            max_output=request.dialect.max_output(request.json),
            price=price,
            tier_prices=tier_prices,
            site=origin.site,
            request=request,
            node=origin.node,
            lane=origin.lane,
            batched=batched,
        )
        return await perform(current_runtime(), call)

    def _batched(self) -> Batched[RawReply] | None:
        """Return how the request goes by its provider's batch API, or None if it goes live."""
        wanted = wanted_parcel()
        if wanted is None:
            return None
        from afnio.models._batch_apis import AnthropicBatches, OpenAIBatches

        request = self.request
        name, account = request.dialect.name, request.account
        if name not in _BATCHES or request.stream or "?" in request.url or "/deployments/" in request.url:
            what = "streams" if request.stream else f"requests for {name}"
            goes_live(account.url, f"{what} can't go by a batch API there")
            return None
        headers = _sent(request.headers)

        async def kept() -> Mapping[str, str]:
            return headers

        api = (AnthropicBatches if request.dialect is ANTHROPIC else OpenAIBatches)(
            account, f"/v1/{name}", request.model, kept, request.secrets, request.dialect
        )
        return Batched(api, *wanted, lambda: request.body, self._attempt.read_line)

    def _deliver(self, reply: RawReply, broken: BrokenReplyError | None) -> None:
        """Give the reader what it hasn't got yet: all of it, or the last events of a live stream."""
        pipe = self.pipe
        if self._attempt.began:  # its events have gone through the pipe
            if self.error is None:
                for event in self._attempt.held:
                    pipe.put(event)
            pipe.end(broken if self.error is not None and not self._attempt.told else None)
            return
        pieces = list(split_events(reply.body)) if reply.events else [reply.body]
        pipe.fill(Head(reply.status, reply.headers), pieces, broken if self.error is None else None)

    def _trace_stream(self) -> None:
        # Only what the reader saw: what was read on after it had left may differ in a resumed run.
        if self._traced is not None and self.pipe.taken:
            body = b"".join(self.pipe.taken)
            if self._attempt.began or body.lstrip()[:1] != b"{":
                self._traced.reply = self.request.dialect.joined(parsed_events(split_events(body)))
            else:
                self._traced.reply = RawReply(200, {}, body).json


@final
class _Attempt:
    """The attempts of one exchange.

    Attributes:
        began: True once content has gone to the reader; then the call can't be repeated.
        held: the last events of the stream.
        told: True if the reader has had the provider's own event of an error.
    """

    def __init__(
        self,
        request: RawRequest,
        pipe: Pipe,
        read_timeout: float | None,
        send: Sender,
        on_wire: Callable[[bool], object],
    ) -> None:
        self.began = False
        self.told = False
        self.held: list[bytes] = []
        self._request = request
        self._pipe = pipe
        self._silence = attempt_deadline(read_timeout or READ_TIMEOUT, request.json.get("service_tier"))
        self._send = send
        self._on_wire = on_wire
        self._reading: anyio.CancelScope | None = None

    async def make(self) -> RawReply:
        token, asked = in_attempt.set(True), self._request
        self._on_wire(True)
        try:
            falls_back = asked.headers.get(FALLBACK) == "standard"
            return await send_at_tier(self._once, asked, _at_standard if falls_back else None)
        except BaseException:
            self._on_wire(False)
            raise
        finally:
            self._request = asked
            in_attempt.reset(token)

    async def _once(self, request: RawRequest) -> RawReply:
        self._request = request
        return await (self._stream() if request.stream else self._whole())

    async def _whole(self) -> RawReply:
        with Silence.of(self._request.account, self._request.model):
            async with await self._send(self._request, self._request.body) as opened:
                return self._reply(opened, await opened.read_all())

    def read_line(self, status: int, body: bytes) -> RawReply:
        """Return the reply in a line of a batch. Raises as `make`."""
        opened = _Head(status, {"content-type": "application/json"})
        return replace(self._reply(opened, body), service_tier=BATCH)

    def _reply(self, opened: _Head | Opened, body: bytes) -> RawReply:
        """Return a reply that isn't a stream.

        Raises:
            ModelError: if it is an error. It has the provider's response.
        """
        request, status = self._request, opened.status
        body = mask(body, request.secrets)
        headers = _returned(opened.headers)
        limits = read_limits(_as_openai(opened.headers), request.account.url)
        reply = RawReply(status, headers, body, request.dialect.name, limits=limits)
        try:
            parsed = json.loads(body)
        except (ValueError, RecursionError):
            parsed = None
        if 200 <= status < 300:
            if request.dialect.is_reply(parsed):
                # The parsed body isn't kept: a reply may live as long as a run.
                usage = request.dialect.usage(parsed) or Usage()
                tier, complete = request.dialect.service_tier(parsed), request.dialect.is_complete(parsed)
                return replace(reply, usage=usage, service_tier=tier, complete=complete)
            if isinstance(parsed, dict) and not parsed.get("error"):
                # An API that has only the path in common, such as Ollama's own embeddings. It has answered, which may
                # have cost something, so it isn't asked again.
                return replace(reply, complete=False)
        raise self._error(reply, parsed)

    def _error(self, reply: RawReply, parsed: Any) -> ModelError:
        status, url = reply.status, self._request.account.url
        if isinstance(parsed, list) and len(parsed) == 1:  # Gemini's errors of streams
            parsed = parsed[0]
        error: ModelError
        if 200 <= status < 300:
            reported = mapping(parsed).get("error")
            if reported:
                error = status_error(_status_in(mapping(reported)), reply.headers, parsed, reply.body, url)
            else:
                text = f"{url} answered {status} with a body that isn't a reply of its API"
                error = TransientModelError(text, status=status)
        else:
            error = status_error(status, reply.headers, parsed, reply.body, url)
        error.limits = reply.limits
        # We replace a redirect by our own error: an SDK might follow it, and send the key and the prompts along.
        if not 300 <= status < 400:
            error.response = replace(reply, headers={**reply.headers, **NO_RETRY})
        return error

    # Streams

    async def _stream(self) -> RawReply:
        if self.began:  # a budget's or an account's error came between; the reader has a part already
            raise FinalModelError("the reply broke off after its first content")
        self.held = []
        body = self._body()
        try:
            with Silence.of(self._request.account, self._request.model):
                opened = await self._in_time(lambda: self._send(self._request, body))
            async with opened:
                kind = opened.headers.get("content-type", "")
                if opened.status != 200 or not _is_stream(kind):
                    return self._reply(opened, await opened.read_all())
                return await self._read(opened, asked_usage=body is not self._request.body)
        except ModelError as error:
            account = self._request.account
            if error.status in (400, 422) and not self.began and account not in _usage_givers():
                if body is not self._request.body:
                    # The field that we added may be what it refuses. The next attempt shows.
                    _usage_refusers().add(account)
                    raise TransientModelError(str(error), status=503, retry_after=0.0) from None
                _usage_refusers().discard(account)  # it refused the request itself
            raise

    async def _in_time(self, read: Callable[[], Awaitable[Any]]) -> Any:
        try:
            with anyio.fail_after(self._silence):
                return await read()
        except TimeoutError:
            raise TransientModelError(
                f"{self._request.account.url} sent nothing for {self._silence:g} s ({self._request.model})"
            ) from None

    def _body(self) -> bytes:
        """Return the body to send. It asks for the usage, which chat completions otherwise don't send in a stream."""
        request = self._request
        if (
            request.dialect is not CHAT
            or request.json.get("stream_options") is not None
            or request.account in _usage_refusers()
        ):
            return request.body
        asked = {**request.json, "stream_options": {"include_usage": True}}
        return json.dumps(asked, ensure_ascii=False, separators=(",", ":")).encode()

    async def _read(self, opened: Opened, *, asked_usage: bool) -> RawReply:
        request, dialect, pipe = self._request, self._request.dialect, self._pipe
        stream = Received(dialect)
        splitter = EventSplitter(lines="event-stream" not in opened.headers.get("content-type", ""))
        waiting: list[bytes] = []
        headers = _returned(opened.headers)
        limits = read_limits(_as_openai(opened.headers), request.account.url)
        pipe.on_leave = self._leave
        ended = False
        try:
            with anyio.CancelScope(deadline=loop_time() + STREAM_DEADLINE) as self._reading:
                if pipe.left:
                    self._leave()
                while not ended:
                    piece = await self._in_time(opened.read)
                    ended = not piece
                    events = splitter.feed(piece) if piece else [rest for rest in (splitter.rest(),) if rest]
                    for event in events:
                        parsed = event_json(event)
                        dropped = asked_usage and CHAT.is_usage(parsed or {})
                        stream.add(event, parsed, dropped=dropped)
                        error = None if parsed is None else dialect.error_in(parsed)
                        if error is not None:
                            raise self._stream_error(error, event, waiting, headers, limits, stream)
                        if dropped:
                            continue
                        last = is_done(event) or (parsed is not None and dialect.is_last(parsed))
                        if last or self.held:
                            self.held.append(event)
                            self._hurry(_END_OF_BODY)
                        elif self.began:
                            pipe.put(event)
                        else:
                            waiting.append(event)
                        if not self.began and (last or (parsed is not None and dialect.has_content(parsed))):
                            self.began = True
                            pipe.open(opened.status, headers)
                            for early in waiting:
                                pipe.put(early)
                            waiting.clear()
                    if stream.size > MAX_REPLY or splitter.waiting > MOST_EVENT:
                        raise FinalModelError(
                            f"{request.account.url} sent a stream of more than {MAX_REPLY:,} bytes, or an event of "
                            f"more than {MOST_EVENT:,}"
                        )
                    if pipe.left and stream.written - stream.written_at_leave > 4 * READ_ON_TOKENS:
                        break
                    stream.note_leave(left=pipe.left)
                    await pipe.room()
        except TransientModelError as error:
            if not self.began:
                raise
            # A reader that has seen a part of the reply can't use another one.
            raise FinalModelError(str(error), status=error.status) from None
        finally:
            pipe.on_leave = None
        if not ended and not pipe.left and not self.held:
            raise FinalModelError(f"{request.account.url} took more than {STREAM_DEADLINE:g} s for a stream")
        if not self.began:
            self.began = True  # nothing but comments: the reader gets them, as from the provider
            pipe.open(opened.status, headers)
            for early in waiting:
                pipe.put(early)
        usage = stream.usage
        if asked_usage and usage is not None:
            _usage_givers().add(request.account)
        return RawReply(
            opened.status,
            headers,
            mask(b"".join(stream.events), request.secrets),
            dialect.name,
            usage=usage or Usage(request.prompt_tokens, -(-stream.written // 4)),
            service_tier=stream.service_tier,
            limits=limits,
            events=True,
            cut=not ended and not self.held,
            complete=stream.is_complete(),
        )

    def _leave(self) -> None:
        self._hurry(READ_ON)

    def _hurry(self, seconds: float) -> None:
        if self._reading is not None:
            self._reading.deadline = min(self._reading.deadline, loop_time() + seconds)

    def _stream_error(
        self,
        error: Mapping[str, Any],
        event: bytes,
        waiting: list[bytes],
        headers: Mapping[str, str],
        limits: RateLimits | None,
        stream: Received,
    ) -> ModelError:
        """Return the error for one that a stream reports. If content has gone out, the reader gets the event."""
        request = self._request
        status = _status_in(error)
        classified = status_error(status, headers, {"error": error}, event, request.account.url)
        classified.args = (mask(str(classified).encode("utf-8", "replace"), request.secrets).decode(),)
        classified.limits = limits
        event = mask(event, request.secrets)
        if self.began:
            for held in (*self.held, event):
                self._pipe.put(held)
            self.told = True
        else:
            body = b"".join((*waiting, event))
            classified.response = RawReply(200, headers, body, request.dialect.name, events=True)
        return classified


@dataclass(frozen=True, slots=True)
class _Head:
    status: int
    headers: Mapping[str, str]


# APIs that have batches.
_BATCHES: Final = frozenset({"chat/completions", "responses", "embeddings", "messages"})


def _at_standard(request: RawRequest) -> RawRequest:
    body = json.dumps({**request.json, "service_tier": "default"}, ensure_ascii=False).encode()
    return replace(request, body=body)


def _is_stream(content_type: str) -> bool:
    return any(kind in content_type for kind in ("event-stream", "ndjson", "jsonl", "json-seq"))


class _Remembered(set[Account]):
    """Accounts, kept as long as the runtime."""

    async def aclose(self) -> None:
        return


def _usage_refusers() -> set[Account]:
    """Return the accounts that refuse to be asked for the usage of a stream."""
    return current_runtime().resource("refuses include_usage", _Remembered)


def _usage_givers() -> set[Account]:
    return current_runtime().resource("takes include_usage", _Remembered)


# Errors as responses


def _refusal(error: BaseException) -> RawReply:
    """Return the response for a call that failed: the provider's last one, or one of ours."""
    response = getattr(error, "response", None)
    if isinstance(response, RawReply):
        return response
    status, kind = next(
        ((status, kind) for types, status, kind in _REFUSALS if isinstance(error, types)),
        (500, "afnio_error"),
    )
    sentence = str(error).removesuffix(".") or type(error).__name__
    return own_reply(status, sentence, kind)


def _uncounted() -> FinalModelError:
    """Return the error for a response that is made, and paid for, after the reply."""
    sentence = (
        "a response in the background can't be counted, so it isn't sent under a budget; leave background out"
    )
    error = FinalModelError(sentence)
    error.response = own_reply(402, sentence, "uncounted")
    return error


# Our own responses. (408, 409, 429 and 5xx would make SDKs retry, but for the header.)
_REFUSALS: Final[tuple[tuple[Any, int, str], ...]] = (
    (BudgetExceeded, 402, "budget_exceeded"),
    (UnknownPriceError, 402, "unknown_price"),
    (JournalError, 500, "journal_error"),
    (ProviderDownError, 503, "provider_down"),
    (LaunchCancelledError, 499, "cancelled"),
    (Cancelled, 499, "cancelled"),
    (RuntimeClosedError, 503, "runtime_closed"),
    (TransientModelError, 504, "no_reply"),
    (FinalModelError, 502, "model_error"),
)


def _told(error: BaseException, request: RawRequest) -> str:
    if isinstance(error, Cancelled):
        return "its call was cancelled"
    return mask(str(error).encode("utf-8", "replace"), request.secrets).decode()


_STATUS_OF: Final = {
    "overloaded_error": 529, "rate_limit_error": 429, "rate_limit_exceeded": 429, "insufficient_quota": 429,
    "resource_unavailable": 429,
    "authentication_error": 401, "permission_error": 403, "not_found_error": 404, "request_too_large": 413,
    "invalid_request_error": 400, "invalid_prompt": 400, "timeout_error": 504, "server_error": 500, "api_error": 500,
}  # fmt: skip


def _status_in(error: Mapping[str, Any]) -> int:
    """Return the HTTP status for an error that came with status 200."""
    code = error.get("code")
    if isinstance(code, int) and 400 <= code < 600:
        return code
    for name in (code, error.get("type")):
        if isinstance(name, str):
            if name in _STATUS_OF:
                return _STATUS_OF[name]
            if name.isascii() and name.isdecimal() and 400 <= int(name[:4]) < 600:
                return int(name[:4])
    return 500


def _returned(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items() if name.lower() not in _NOT_RETURNED}


def _as_openai(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return rate limits under OpenAI's names. Anthropic has the same figures under its own."""
    if "anthropic-ratelimit-requests-limit" not in headers:
        return headers
    renamed = {}
    for kind in ("requests", "tokens"):
        for figure in ("limit", "remaining"):
            value = headers.get(f"anthropic-ratelimit-{kind}-{figure}")
            if value is not None:
                renamed[f"x-ratelimit-{figure}-{kind}"] = value
    return renamed


# Rehearsals


# The fields of all APIs that hold what a model reads.
_MESSAGES: Final = (
    "messages", "input", "contents", "prompt", "system", "instructions", "systemInstruction", "system_instruction"
)  # fmt: skip


def _made_up(request: RawRequest, rehearsed: Any, origin: CallOrigin) -> RawReply:
    """Return a made-up reply, as a native call gets it in a rehearsal."""
    dialect = request.dialect
    response: ChatResponse = rehearsed.make_up(
        model=request.model,
        account=request.account,
        purpose=origin.purpose,
        lane=origin.lane,
        prompt_tokens=request.prompt_tokens,
        max_output=dialect.max_output(request.json),
        schema=dialect.schema(request.json),
        params={name: part for name, part in request.json.items() if name not in _MESSAGES},
    )
    if not request.stream:
        body = json.dumps(dialect.made_up(response)).encode()
        return RawReply(200, {"content-type": "application/json"}, body, dialect.name, response.usage)
    lines = [
        (f"event: {name}\n" if name else "")
        + f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"
        for name, data in dialect.made_up_events(response)
    ]
    kind = {"content-type": "text/event-stream"}
    return RawReply(200, kind, "".join(lines).encode(), dialect.name, response.usage, events=True)
