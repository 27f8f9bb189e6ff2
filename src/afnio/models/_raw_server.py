"""The server of raw requests: the one under the gateway and under the addresses of lanes.

A request arrives, its owner's `Desk` says where it goes, and it becomes a call of the owner's `Memory`, whose reply is
written as it comes. What isn't for a model is passed on. Whoever connects is a stranger until then: connections are
bounded in number, those without a request are closed, and what a client sends wrong is answered, not logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final
from urllib.parse import urlsplit

from afnio.models._bridging import KeptCall, Memory
from afnio.models._connections import probed_socket
from afnio.models._exchange import HOP_BY_HOP
from afnio.models._raw import FALLBACK, RawReply, RawRequest, not_utf8, own_reply
from afnio.models._streams import BrokenReplyError, Head

if TYPE_CHECKING:
    from aiohttp import ClientSession, web
    from aiohttp.web_protocol import RequestHandler

# Bytes of a request.
MOST_BODY: Final = 64 << 20
# Seconds for a request's body.
BODY_TIME: Final = 120.0
# Seconds after which a connection without a request is closed. A head that isn't whole is no request.
IDLE: Final = 60.0
# Seconds after which a stream that waits for its first event is sent a comment, and again each time.
COMMENT: Final = 15.0
_BACKLOG: Final = 1024
# Connections accepted at a time. Without a free descriptor asyncio logs an error for each of them.
_ACCEPTED: Final = 16
# Encodings of bodies that aiohttp undoes.
_UNDONE: Final = frozenset({"gzip", "deflate", "br", "zstd"})


class Visit(NamedTuple):
    """A request's way.

    Attributes:
        target: the provider's URL.
        memory: returns the one with the calls of the request's owner.
        new: makes a call, at an address or at the next one.
        run: the run of a lane's function.
        comments: True to send comments while a stream waits.
    """

    target: str
    memory: Callable[[RawRequest], Memory]
    new: Callable[[RawRequest, str | None], KeptCall]
    run: str = ""
    comments: bool = False


class Desk(Protocol):
    """Decides about requests."""

    def visit(self, request: web.Request) -> Visit | RawReply:
        """Return where a request goes, or its refusal."""
        ...

    def refusal(self, request: web.Request, raw: RawRequest | None, body: bytes) -> RawReply | None:
        """Return why a request isn't sent on, or None. `raw` is None if it isn't for a model."""
        ...


@final
class RawServer:
    """A server on the runtime's loop.

    Args:
        desk: decides about requests.
        path: the pattern of their paths, as aiohttp's router has it.
        pages: handlers of other paths.
        most: connections. More clients are asked to come again.
    """

    def __init__(
        self,
        desk: Desk,
        path: str = "/{path:.*}",
        *,
        pages: Mapping[str, Callable[[web.Request], Any]] | None = None,
        most: float = math.inf,
    ) -> None:
        self._desk = desk
        self._path = path
        self._pages = pages or {}
        self._most = most
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._session: ClientSession | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        # When the latest request of each connection ended; infinite during one.
        self._since: dict[RequestHandler, float] = {}

    async def start(self, listener: socket.socket) -> None:
        """Serve on a socket that is bound."""
        from aiohttp import web

        app = web.Application(client_max_size=MOST_BODY, middlewares=[self._attended()])
        for path, handler in self._pages.items():
            app.router.add_get(path, handler)
        app.router.add_route("*", self._path, self._serve)
        # Handlers are cancelled when their client has gone. Owners wait for calls themselves.
        self._runner = web.AppRunner(
            app, access_log=None, logger=_logger(), handler_cancellation=True, shutdown_timeout=1.0
        )
        await self._runner.setup()
        self._server = await asyncio.get_running_loop().create_server(
            self._connection, sock=listener, backlog=_ACCEPTED
        )
        listener.listen(_BACKLOG)  # the kernel's queue may be longer than what is accepted at a time
        self._sweep()

    def stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()

    async def aclose(self) -> None:
        self.stop_listening()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    # Connections

    def _connection(self) -> asyncio.Protocol:
        assert self._runner is not None
        assert self._runner.server is not None
        if len(self._since) >= self._most:
            self._forget_closed()
            if len(self._since) >= self._most:
                return _Full()
        handler = self._runner.server()
        self._since[handler] = asyncio.get_running_loop().time()
        return handler

    def _forget_closed(self) -> None:
        before = asyncio.get_running_loop().time() - 1.0  # a newer one may not be connected yet
        closed = [
            handler
            for handler, since in self._since.items()
            if handler.transport is None and (since < before or since == math.inf)
        ]
        for handler in closed:
            del self._since[handler]

    def _sweep(self) -> None:
        """Close connections that have had no request for a while."""
        loop = asyncio.get_running_loop()
        self._forget_closed()
        before = loop.time() - IDLE
        for handler, since in self._since.items():
            transport = handler.transport
            if since >= before or not isinstance(transport, asyncio.Transport):
                continue
            if not transport.get_write_buffer_size():  # otherwise a slow client still reads
                handler.force_close()
        self._sweeping = loop.call_later(IDLE / 12, self._sweep)

    def _attended(self) -> Any:
        from aiohttp import web

        @web.middleware
        async def attend(request: web.Request, handler: Any) -> web.StreamResponse:
            connection, loop = request.protocol, asyncio.get_running_loop()
            self._since[connection] = math.inf
            try:
                sentence = not_utf8(request.headers)
                if sentence is not None:
                    return response_of(own_reply(400, sentence, "invalid_request"))
                answered: web.StreamResponse = await handler(request)
                return answered
            finally:
                self._since[connection] = loop.time()

        return attend

    # Requests

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        visit = self._desk.visit(request)
        if isinstance(visit, RawReply):
            return response_of(visit)
        body = await _body_of(request)
        if isinstance(body, RawReply):
            return response_of(body)
        headers = {
            lower: value
            for name, value in request.headers.items()
            if (lower := name.lower()) not in HOP_BY_HOP
            and (lower == FALLBACK or not lower.startswith("x-afnio-"))
        }
        if headers.get("content-encoding", "").lower() in _UNDONE:
            del headers["content-encoding"]
        raw = RawRequest.read(request.method, visit.target, headers, body)
        refused = self._desk.refusal(request, raw, body)
        if refused is not None:
            return response_of(refused)
        if raw is None:
            return await self._pass_on(request, visit.target, headers, body)
        memory = visit.memory(raw)
        call = await memory.call_for(
            raw, lambda address: visit.new(raw, address), run=visit.run, again=is_repeated(headers)
        )
        delivered = False
        try:
            if raw.stream:
                answered = await _stream(request, call, comments=visit.comments)
            else:
                head = await (_kept_waiting(request, call) if memory.batch_patience else call.head())
                body = b"".join([piece async for piece in call])
                answered = response_of(RawReply(head.status, head.headers, body))
            delivered = True
            return answered
        finally:
            memory.leave(call, delivered=delivered)

    async def _pass_on(
        self, request: web.Request, target: str, headers: Mapping[str, str], body: bytes
    ) -> web.StreamResponse:
        """Send on a request that isn't for a model, such as one for the list of models."""
        import aiohttp
        from aiohttp import web

        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(socket_factory=probed_socket),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=600.0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding",),
                trust_env=True,
            )
        try:
            answer = await self._session.request(
                request.method, target, headers=headers, data=body or None, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            sentence = f"can't reach {urlsplit(target).hostname} ({type(error).__name__})"
            return response_of(own_reply(502, sentence, "unreachable"))
        async with answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except aiohttp.ClientError:
                _abort(request)
                return response
            await response.write_eof()
            return response


def response_of(reply: RawReply) -> web.Response:
    from aiohttp import web

    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def is_repeated(headers: Mapping[str, str]) -> bool:
    """Return True if an SDK says that it sends a request again."""
    return headers.get("x-stainless-retry-count", "0") not in ("", "0")


async def _kept_waiting(request: web.Request, call: KeptCall) -> Head:
    """Wait for a reply's head. Interim responses keep a client waiting whose timeout counts silence."""
    interim, pause = _interim(request.headers), _pause(request.headers)
    waiting = asyncio.ensure_future(call.head())
    try:
        while not (await asyncio.wait([waiting], timeout=pause))[0]:
            if interim and request.version >= (1, 1) and request.transport is not None:
                request.transport.write(interim)
        return waiting.result()
    finally:
        waiting.cancel()


def _interim(headers: Mapping[str, str]) -> bytes:
    """Return the interim response that a kind of client ignores. Many take an unexpected one for the reply.

    >>> _interim({"user-agent": "AsyncOpenAI/Python 2.1.0"}), _interim({"user-agent": "curl/8.5.0"})
    (b'HTTP/1.1 102 Processing\\r\\n\\r\\n', b'')
    """
    client = headers.get("user-agent", "").lower()
    runtime = headers.get("x-stainless-runtime", "node" if client in ("node", "undici") else "").lower()
    if re.search(r"python-requests/|python-urllib", client):
        return b"HTTP/1.1 100 Continue\r\n\r\n"
    if runtime == "node" or re.search(r"(openai|anthropic)/python |python-httpx|aiohttp/", client):
        return b"HTTP/1.1 102 Processing\r\n\r\n"
    return b""


def _pause(headers: Mapping[str, str]) -> float:
    """Return the seconds between two interim responses: three fit in the timeout that an SDK names."""
    try:
        timeout = float(headers.get("x-stainless-read-timeout", "nan"))
    except ValueError:
        return COMMENT
    return min(COMMENT, max(0.1, timeout / 3)) if timeout > 0 else COMMENT


async def _body_of(request: web.Request) -> bytes | RawReply:
    from aiohttp import web

    try:
        if (
            request.content.is_eof()
        ):  # as most bodies, which arrive with their heads: a timer costs more than reading
            return await request.read()
        async with asyncio.timeout(BODY_TIME):
            return await request.read()
    except TimeoutError:
        return own_reply(408, f"the request's body must arrive within {BODY_TIME:g} s", "invalid_request")
    except web.RequestPayloadError:
        coding = request.headers.get("content-encoding", "chunked")
        return own_reply(
            400, f"the request's body must be {coding} (it can't be read as that)", "invalid_request"
        )


async def _stream(request: web.Request, call: KeptCall, *, comments: bool) -> web.StreamResponse:
    """Write the events of a reply as they come."""
    from aiohttp import web

    raw = call.exchange.request
    comments = comments and (raw.dialect.name != "generateContent" or "alt=sse" in raw.url)
    waiting = asyncio.ensure_future(call.head())
    response: web.StreamResponse | None = None
    try:
        while not (await asyncio.wait([waiting], timeout=COMMENT if comments else None))[0]:
            if response is None:
                response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
                await response.prepare(request)
            await response.write(b": waiting\n\n")
    finally:
        waiting.cancel()
    head = waiting.result()
    if response is not None and head.status != 200:  # a head has gone out, so the error is an event
        body = b"".join([piece async for piece in call])
        name = b"event: error\n" if raw.dialect.name == "messages" else b""
        await response.write(name + b"data: " + b" ".join(body.split(b"\n")) + b"\n\n")
        await response.write_eof()
        return response
    if response is None:
        response = web.StreamResponse(status=head.status, headers=head.headers)
        await response.prepare(request)
    try:
        async for piece in call:
            await response.write(piece)
        await response.write_eof()
    except BrokenReplyError:
        _abort(request)
    except OSError:  # its client has gone: what it paid for is read on and recorded
        call.begun = True
    return response


def _abort(request: web.Request) -> None:
    """Break the connection off: the client must not take what it has for the whole."""
    if request.transport is not None:
        request.transport.abort()


@final
class _Full(asyncio.Protocol):
    """Asks a client to come again, after its first bytes: it wouldn't read an answer before."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(1.0, transport.abort)

    def data_received(self, data: bytes) -> None:
        reply = own_reply(503, "the server has as many connections as it may", "overloaded")
        self._transport.write(
            b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n"
            b"connection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(reply.body), reply.body)
        )
        self._transport.pause_reading()
        with contextlib.suppress(OSError):
            self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()


def _logger() -> logging.Logger:
    """Return the server's logger. It leaves out what a client sent: that may hold a key."""
    logger = logging.getLogger("afnio.server")
    if not logger.filters:
        logger.addFilter(_without_requests)
    return logger


def _without_requests(record: logging.LogRecord) -> bool:
    from aiohttp import web

    error = record.exc_info[1] if record.exc_info else None
    status = getattr(error, "status", getattr(error, "code", 500))  # of a reply, of the parser
    refused = isinstance(status, int) and 400 <= status < 500
    return not refused and not isinstance(error, web.RequestPayloadError)
