"""The transports of httpx and httpx2: requests of an SDK's client as calls of the engine.

A transport serves blocking and asynchronous clients. It hands requests for a model to the engine, and sends others on:
by the client's own transport, or by a client of its own.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Final, TypeVar, final

import anyio
import anyio.to_thread

from afnio.errors import FinalModelError, TransientModelError
from afnio.models._apis import may_be_known
from afnio.models._bridging import Bridged, launch_request
from afnio.models._exchange import Sender, send_by_aiohttp
from afnio.models._forwarding import is_plain
from afnio.models._installed import Taken, note_unseen
from afnio.models._raw import RawReply, RawRequest, own_reply
from afnio.models._streams import BrokenReplyError
from afnio.models._trace import in_attempt
from afnio.models._transport import MAX_REPLY, unreachable
from afnio.runtime._kernel import Job, Launch, Slot, current_runtime, on_runtime_thread
from afnio.runtime._limits import Limits
from afnio.runtime._loop import running_loop
from afnio.runtime._tracebacks import Failure, caller_line
from afnio.runtime._waiting import wait_async

T = TypeVar("T")

# The most worker threads in which an inner transport that blocks may be waited for.
_INNER_THREADS: Final = 256


_classes: dict[str, type[Any]] = {}


def transport_class(library: ModuleType) -> type[Any]:
    """Return the transport class for one of the HTTP libraries. It is made when the library is first needed."""
    made = _classes.get(library.__name__)
    if made is None:
        made = _classes[library.__name__] = _make_class(library)
    return made


def _make_class(library: ModuleType) -> type[Any]:
    class AfnioTransport(_Bridge, library.AsyncBaseTransport, library.BaseTransport):  # type: ignore[name-defined,misc]
        """Hands requests for a model to the engine, and sends others on."""

    AfnioTransport._library = library
    AfnioTransport._events = _stream_class(library)
    AfnioTransport.__module__ = __name__
    return AfnioTransport


def transport_for(library: ModuleType, transport: Any, taken: Taken) -> Any:
    """Return the transport for a request that a block takes, of a client with its own `transport`."""
    inner = None if is_plain(transport) else transport
    return transport_class(library)(inner=inner, beside=transport, taken=taken)


class _Bridge:
    """The transports of both libraries.

    Args:
        limits: given to each account, with those of the block around the request.
        inner: see `bridge.transport`.
        beside: where other requests go, instead of an own client for each loop.
        taken: how a block of `installed` takes the request.
    """

    _library: Any
    _events: Any

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        inner: Any = None,
        beside: Any = None,
        taken: Taken | None = None,
    ) -> None:
        self._limits = limits
        self._inner = inner
        self._beside = beside
        self._taken = taken or Taken()
        self._send: Sender = send_by_aiohttp if inner is None else _InnerSender(self._library, inner)
        self._others: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._blocking: Any = None

    async def handle_async_request(self, request: Any) -> Any:
        raw = None
        if self._is_candidate(request):
            raw = RawRequest.read(request.method, str(request.url), request.headers, await request.aread())
        if raw is None:
            self._note(request)
            return await self._pass_on(request)
        if self._taken.refused:
            return self._response_of(unnested(self._taken))
        bridged = self._launch(raw, request)
        pipe = bridged.exchange.pipe
        try:
            head = await pipe.head()
            if raw.stream:
                return self._library.Response(head.status, headers=head.headers, stream=self._events(bridged))
            return self._response(head, [piece async for piece in pipe])
        except BaseException:  # the caller's task was cancelled
            bridged.cancel()
            raise

    def handle_request(self, request: Any) -> Any:
        raw = None
        if self._is_candidate(request):
            raw = RawRequest.read(request.method, str(request.url), request.headers, request.read())
        if raw is None:
            self._note(request)
            return self._pass_on_blocking(request)
        if self._taken.refused:
            return self._response_of(unnested(self._taken))
        if on_runtime_thread():
            return self._response_of(refused_on_loop())
        bridged = self._launch(raw, request)
        pipe = bridged.exchange.pipe
        try:
            head = pipe.wait_for_head()
            if raw.stream:
                return self._library.Response(head.status, headers=head.headers, stream=self._events(bridged))
            return self._response(head, list(pipe))
        except BaseException:  # Ctrl-C
            bridged.cancel()
            raise

    def _response(self, head: Any, pieces: list[bytes]) -> Any:
        return self._library.Response(head.status, headers=head.headers, content=b"".join(pieces))

    def _is_candidate(self, request: Any) -> bool:
        return (
            request.method == "POST"
            and may_be_known(request.url.path)
            and request.headers.get("content-type", "").startswith("application/json")
            and not in_attempt.get()
        )

    def _note(self, request: Any) -> None:
        if self._beside is not None and request.method == "POST" and not in_attempt.get():
            note_unseen(str(request.url), getattr(request, "_content", None))

    def _response_of(self, reply: RawReply) -> Any:
        return self._library.Response(reply.status, headers=reply.headers, content=reply.body)

    def _launch(self, raw: RawRequest, request: Any) -> Bridged:
        timeout = (request.extensions.get("timeout") or {}).get("read")
        return launch_taken(raw, self._taken, read_timeout=timeout, send=self._send, limits=self._limits)

    # Other requests

    async def _pass_on(self, request: Any) -> Any:
        if self._beside is not None:
            return await self._beside.handle_async_request(request)
        if self._inner is not None and not in_attempt.get():
            return await _by_inner(self._library, self._inner, request)
        if on_runtime_thread():  # a native client with one of ours; closed with the runtime
            other = current_runtime().resource((_Bridge, self._library), self._library.AsyncClient)
        else:
            other = self._others.get(running_loop())
            if other is None:
                other = self._others[running_loop()] = self._library.AsyncClient()
        token = in_attempt.set(True)  # under `installed` it would come back here
        try:
            return await other.send(request, stream=True)
        finally:
            in_attempt.reset(token)

    def _pass_on_blocking(self, request: Any) -> Any:
        if self._beside is not None:
            return self._beside.handle_request(request)
        if self._inner is not None and isinstance(self._inner, self._library.BaseTransport):
            return self._inner.handle_request(request)
        if self._blocking is None:
            self._blocking = self._library.Client()
        token = in_attempt.set(True)
        try:
            return self._blocking.send(request, stream=True)
        finally:
            in_attempt.reset(token)

    async def aclose(self) -> None:
        other = self._others.pop(running_loop(), None)
        if other is not None:
            await other.aclose()
        if isinstance(self._inner, self._library.AsyncBaseTransport):
            await _on_runtime(self._inner.aclose)
        elif self._inner is not None:
            self._inner.close()

    def close(self) -> None:
        if isinstance(self._inner, self._library.BaseTransport):
            self._inner.close()
        if self._blocking is not None:
            self._blocking.close()
            self._blocking = None


def _stream_class(library: ModuleType) -> type[Any]:
    class AfnioStream(library.AsyncByteStream, library.SyncByteStream):  # type: ignore[name-defined,misc]
        """The events of a reply, as the library's response reads them."""

        def __init__(self, bridged: Bridged) -> None:
            self._bridged = bridged

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for piece in self._bridged.exchange.pipe:
                    yield piece
            except BrokenReplyError as error:
                raise library.RemoteProtocolError(str(error)) from None

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._bridged.exchange.pipe
            except BrokenReplyError as error:
                raise library.RemoteProtocolError(str(error)) from None

        async def aclose(self) -> None:
            self.close()

        def close(self) -> None:
            self._bridged.exchange.pipe.leave()

        def __del__(self) -> None:
            # Dropped by a reader that closed nothing. Its place in flight would stay taken.
            with suppress(Exception):
                self.close()

    return AfnioStream


def launch_taken(raw: RawRequest, taken: Taken, **options: Any) -> Bridged:
    """Launch a call in the context that it is taken in. Options as for `launch_request`."""
    if taken.context is None:
        return launch_request(raw, **options)
    return taken.context.copy().run(launch_request, raw, **options)


def unnested(taken: Taken) -> RawReply:
    return own_reply(400, taken.refused, "unnested_blocks")


def refused_on_loop() -> RawReply:
    line = caller_line()
    return own_reply(
        400,
        "a synchronous client was called in an `async def` callable, where waiting for it would stop every other call "
        f"({line}); use the SDK's asynchronous client with afnio.bridge.client(), or make the callable a `def`",
        "blocking_client",
    )


# Inner transports


@final
class _InnerSender:
    """Sends attempts by a user's own transport."""

    def __init__(self, library: Any, inner: Any) -> None:
        self._library = library
        self._inner = inner
        self._threads: anyio.CapacityLimiter | None = None

    async def __call__(self, request: RawRequest, body: bytes) -> _InnerResponse:
        kept = {
            name: value
            for name, value in request.headers.items()
            if name not in ("content-length", "transfer-encoding")
        }
        sent = self._library.Request(request.method, request.url, headers=kept, content=body)
        shown = request.shown
        try:
            if isinstance(self._inner, self._library.AsyncBaseTransport):
                response = await self._inner.handle_async_request(sent)
            else:
                if self._threads is None:
                    self._threads = anyio.CapacityLimiter(_INNER_THREADS)
                response = await anyio.to_thread.run_sync(
                    self._inner.handle_request, sent, limiter=self._threads, abandon_on_cancel=True
                )
        except (self._library.ConnectError, self._library.ConnectTimeout) as error:
            raise unreachable(shown, type(error).__name__) from None
        except self._library.HTTPError as error:
            raise TransientModelError(
                f"the connection to {shown} ended early ({type(error).__name__})"
            ) from None
        response.request = sent
        return _InnerResponse(self._library, response, shown, self._threads)


@final
class _InnerResponse:
    """A response of an inner transport."""

    def __init__(
        self, library: Any, response: Any, shown: str, threads: anyio.CapacityLimiter | None
    ) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._library = library
        self._response = response
        self._shown = shown
        self._threads = threads
        self._is_async = hasattr(response.stream, "__aiter__") and threads is None
        self._pieces: Any = response.aiter_bytes() if self._is_async else response.iter_bytes()

    async def __aenter__(self) -> _InnerResponse:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._is_async:
            await self._response.aclose()
        else:
            self._response.close()

    async def read(self) -> bytes:
        try:
            if self._is_async:
                return await anext(self._pieces, b"")
            return await anyio.to_thread.run_sync(next, self._pieces, b"", limiter=self._threads)
        except self._library.HTTPError as error:
            raise TransientModelError(
                f"the connection to {self._shown} ended early ({type(error).__name__})"
            ) from None

    async def read_all(self) -> bytes:
        pieces = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_REPLY:
                raise FinalModelError(f"{self._shown} sent a reply of more than {MAX_REPLY:,} bytes")
        return b"".join(pieces)


async def _by_inner(library: Any, inner: Any, request: Any) -> Any:
    """Send a request that isn't for a model by an inner transport."""
    content = await request.aread()
    sent = library.Request(
        request.method, request.url, headers=request.headers, content=content, extensions=request.extensions
    )

    async def send() -> tuple[Any, bytes]:
        if not isinstance(inner, library.AsyncBaseTransport):
            response = await anyio.to_thread.run_sync(inner.handle_request, sent)
            return response, b"".join(response.stream)
        response = await inner.handle_async_request(sent)
        try:
            return response, b"".join([piece async for piece in response.stream])
        finally:
            await response.aclose()

    response, data = await _on_runtime(send)
    return library.Response(response.status_code, headers=response.headers, stream=library.ByteStream(data))


async def _on_runtime(function: Callable[[], Awaitable[T]]) -> T:
    """Await `function()` on the runtime's loop: an inner transport's connections belong to it."""
    launch = Launch("http", address="http")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[Any]:
        return [(await function(),)]

    launch.add(body, [], [slot])
    launch.start()
    await wait_async([slot])
    if isinstance(slot.outcome, Failure):
        raise slot.outcome.raised()
    result: T = slot.outcome[0]
    return result
