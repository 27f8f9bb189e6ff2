"""Clients of aiohttp and urllib3: their requests for a model as calls of the engine.

urllib3 carries requests and boto3. Its attempts are sent by the client's own pool, in a worker thread, with its
certificates, proxies and timeouts. aiohttp's are sent by the engine's connections, as those of httpx are.

Each client gets a response of its own library, which reads the reply as it arrives.
"""

from __future__ import annotations

import asyncio
import http.client
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, Final, final

import anyio
import anyio.to_thread

from afnio.errors import FinalModelError, TransientModelError
from afnio.models._apis import may_be_known
from afnio.models._bridging import Bridged
from afnio.models._httpx import launch_taken, refused_on_loop, unnested
from afnio.models._installed import Taken
from afnio.models._raw import RawReply, RawRequest
from afnio.models._streams import BrokenReplyError
from afnio.models._transport import MAX_REPLY, unreachable
from afnio.runtime._kernel import current_runtime, on_runtime_thread

# The most worker threads in which pools of urllib3 are waited for.
_THREADS: Final = 256
_PIECE: Final = 1 << 16


def _read(url: str, path: str, headers: Mapping[str, Any], body: Any) -> RawRequest | None:
    """Return a request for a model, or None if it isn't one, or its body can't be read without using it up."""
    if isinstance(body, str):
        body = body.encode()
    if not may_be_known(path) or not isinstance(body, bytes | bytearray):
        return None
    lower = {_text(name).lower(): _text(value) for name, value in headers.items()}
    if not lower.get("content-type", "").startswith("application/json"):
        return None
    return RawRequest.read("POST", url, lower, bytes(body))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


# urllib3


def urllib3_reply(
    original: Callable[..., Any],
    pool: Any,
    full: str,
    url: str,
    body: Any,
    headers: Any,
    options: dict[str, Any],
    taken: Taken,
) -> Any:
    """Return the response to a POST of a pool, or None if it isn't for a model.

    Args:
        original: the pool's own `urlopen`.
        full: the absolute URL.
        url: as `original` gets it.
    """
    headers = pool.headers if headers is None else headers
    raw = _read(full, url.partition("?")[0], headers, body)
    if raw is None:
        return None
    if taken.refused:
        return _urllib3_response(unnested(taken), io.BytesIO(unnested(taken).body), options)
    if on_runtime_thread():
        refused = refused_on_loop()
        return _urllib3_response(refused, io.BytesIO(refused.body), options)
    send = partial(_send_by_pool, original, pool, url, headers, options)
    bridged = launch_taken(raw, taken, send=send)
    pipe = bridged.exchange.pipe
    try:
        head = pipe.wait_for_head()
        content: Any = _Body(bridged) if raw.stream else io.BytesIO(b"".join(pipe))
    except BaseException:  # Ctrl-C
        bridged.cancel()
        raise
    return _urllib3_response(head, content, options)


def _urllib3_response(head: Any, content: Any, options: Mapping[str, Any]) -> Any:
    return _response_class()(
        body=content,
        headers=dict(head.headers),
        status=head.status,
        reason=http.client.responses.get(head.status, ""),
        preload_content=options.get("preload_content", True),
        decode_content=False,  # the engine has done it
        request_method="POST",
    )


@cache
def _response_class() -> Any:
    import urllib3

    class BridgedReply(urllib3.HTTPResponse):
        """A response that yields a stream's events as they come, not only when `amt` bytes are there."""

        def stream(self, amt: int | None = _PIECE, decode_content: bool | None = None) -> Any:
            while piece := self._fp.read(amt or _PIECE):  # type: ignore[union-attr]
                yield piece
            self._fp.close()  # type: ignore[union-attr]

    return BridgedReply


@final
class _Body(io.RawIOBase):
    """The events of a reply, as a file."""

    def __init__(self, bridged: Bridged) -> None:
        self._pipe = bridged.exchange.pipe
        self._pieces = iter(self._pipe)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._rest or next(self._pieces, b"")
        except BrokenReplyError as error:
            from urllib3.exceptions import ProtocolError

            raise ProtocolError(str(error)) from None
        size = min(len(piece), len(buffer))
        buffer[:size], self._rest = piece[:size], piece[size:]
        return size

    def close(self) -> None:
        if not self.closed:
            self._pipe.leave()
        super().close()


@final
class _PoolThreads:
    """The threads of one runtime in which pools are waited for."""

    def __init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(_THREADS)

    async def aclose(self) -> None:
        return

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *args, limiter=self.limiter, abandon_on_cancel=True)


async def _send_by_pool(
    original: Callable[..., Any],
    pool: Any,
    url: str,
    headers: Any,
    options: dict[str, Any],
    request: RawRequest,
    body: bytes,
) -> _PoolResponse:
    """Send one attempt by the client's own pool."""
    from urllib3 import exceptions

    threads = current_runtime().resource(_PoolThreads, _PoolThreads)
    kept = {
        _text(name): value
        for name, value in headers.items()
        if _text(name).lower() not in ("content-length", "transfer-encoding", "accept-encoding")
    }
    own = {**options, "retries": False, "redirect": False, "preload_content": False, "chunked": False}
    own = {name: value for name, value in own.items() if name in _parameters(original) or name in options}
    own["preload_content"] = own["decode_content"] = False
    try:
        response = await threads.run(partial(original, pool, "POST", url, body, kept, **own))
    except (exceptions.NewConnectionError, exceptions.ConnectTimeoutError) as error:
        raise unreachable(request.shown, type(error).__name__) from None
    except exceptions.SSLError as error:
        raise unreachable(request.shown, type(error).__name__, "check the server's certificate") from None
    except exceptions.HTTPError as error:
        raise TransientModelError(
            f"the connection to {request.shown} ended early ({type(error).__name__})"
        ) from None
    return _PoolResponse(response, request.shown, threads)


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


@final
class _PoolResponse:
    """A pool's response to one attempt."""

    def __init__(self, response: Any, shown: str, threads: _PoolThreads) -> None:
        self.status: int = response.status
        self.headers: Mapping[str, str] = response.headers
        self._shown = shown
        self._threads = threads
        self._response = response
        self._ended = False
        self._pieces: Iterator[bytes] = response.stream(_PIECE, decode_content=True)

    async def __aenter__(self) -> _PoolResponse:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._ended:
            self._response.release_conn()
        else:
            self._response.close()

    async def read(self) -> bytes:
        from urllib3.exceptions import HTTPError

        try:
            piece: bytes = await self._threads.run(next, self._pieces, b"")
        except HTTPError as error:
            raise TransientModelError(
                f"the connection to {self._shown} ended early ({type(error).__name__})"
            ) from None
        self._ended = not piece
        return piece

    async def read_all(self) -> bytes:
        pieces = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_REPLY:
                raise FinalModelError(f"{self._shown} sent a reply of more than {MAX_REPLY:,} bytes")
        return b"".join(pieces)


# aiohttp


async def aiohttp_reply(session: Any, url: Any, options: dict[str, Any], taken: Taken) -> Any:
    """Return the response to a POST of a session, or None if it isn't for a model."""
    full = session._build_url(url)
    if options.get("params"):
        full = full.extend_query(options["params"])
    headers = session._prepare_headers(options.get("headers"))
    body = options.get("data")
    if options.get("json") is not None:
        body = session._json_serialize(options["json"])
        body = body.encode() if isinstance(body, str) else body
        headers.setdefault("content-type", "application/json")
    raw = None
    if _is_plain(session, options):
        auth = options.get("auth") or session._default_auth
        if auth is not None:
            headers["authorization"] = auth.encode()
        cookies = session.cookie_jar.filter_cookies(full)
        if cookies:
            headers["cookie"] = "; ".join(f"{name}={cookie.value}" for name, cookie in cookies.items())
        raw = _read(str(full), full.path, headers, body)
    if raw is None:
        return None
    if taken.refused:
        return _aiohttp_response(session, full, unnested(taken), raw, None)
    timeout: Any = options.get("timeout")
    timeout = timeout if hasattr(timeout, "sock_read") else session._timeout
    bridged = launch_taken(raw, taken, read_timeout=timeout.sock_read or timeout.total)
    try:
        head = await bridged.exchange.pipe.head()
        response = _aiohttp_response(session, full, head, raw, bridged)
        check = options.get("raise_for_status")
        check = session._raise_for_status if check is None else check
        if callable(check):
            await check(response)
        elif check:
            response.raise_for_status()
    except BaseException:  # the caller's task was cancelled
        bridged.cancel()
        raise
    return response


def _is_plain(session: Any, options: Mapping[str, Any]) -> bool:
    """Return True if the engine's connections can stand in for the session's own."""
    from aiohttp import TCPConnector

    own_way = any(options.get(name) for name in ("proxy", "compress", "expect100", "cookies"))
    return not own_way and type(session.connector) is TCPConnector


def _aiohttp_response(session: Any, url: Any, head: Any, raw: RawRequest, bridged: Bridged | None) -> Any:
    from aiohttp import RequestInfo
    from multidict import CIMultiDict, CIMultiDictProxy

    loop = asyncio.get_running_loop()
    sent = CIMultiDictProxy(CIMultiDict(raw.headers))
    response = _aiohttp_classes()[0](
        "POST",
        url,
        writer=None,
        continue100=None,
        timer=None,
        request_info=RequestInfo(url, "POST", sent, url),
        traces=[],
        loop=loop,
        session=session,
        stream_writer=SimpleNamespace(output_size=len(raw.body)),
    )
    response.status = head.status
    response.reason = http.client.responses.get(head.status, "")
    response._headers = CIMultiDictProxy(CIMultiDict(head.headers))
    response._raw_headers = tuple((name.encode(), value.encode()) for name, value in head.headers.items())
    response._closed = False
    response.bridged = bridged
    response.content = _aiohttp_classes()[1](loop, _Whole(head) if bridged is None else bridged.exchange.pipe)
    return response


@final
class _Whole:
    """A reply of ours, as a pipe has it."""

    def __init__(self, reply: RawReply) -> None:
        self._body = reply.body

    async def __aiter__(self) -> Any:
        yield self._body


@cache
def _aiohttp_classes() -> tuple[Any, Any]:
    import aiohttp
    from aiohttp.base_protocol import BaseProtocol

    class BridgedResponse(aiohttp.ClientResponse):
        """A response whose body comes from the engine."""

        bridged: Bridged | None = None

        def release(self) -> Any:
            self._leave()
            return super().release()

        def close(self) -> None:
            self._leave()
            super().close()

        def __del__(self, _warnings: Any = None) -> None:
            self._leave()

        def _leave(self) -> None:
            if self.bridged is not None:
                self.bridged.exchange.pipe.leave()

    class BridgedContent(aiohttp.StreamReader):
        """A body that takes the next piece of a reply when its reader wants more."""

        def __init__(self, loop: Any, pipe: Any) -> None:
            super().__init__(BaseProtocol(loop), _PIECE, loop=loop)
            self._pipe_pieces = aiter(pipe)

        async def _wait(self, func_name: str) -> None:
            try:
                piece = await anext(self._pipe_pieces, None)
            except BrokenReplyError as error:
                raise aiohttp.ClientPayloadError(str(error)) from None
            if piece is None:
                self.feed_eof()
            else:
                self.feed_data(piece)

    return BridgedResponse, BridgedContent
