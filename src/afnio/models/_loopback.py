"""The loopback address of a lane: subprocesses and other languages call models through it.

A script in another language can't use a transport of ours, but it reads OPENAI_BASE_URL. `url` gives it an address on
this machine. The requests that arrive there are launched in the context of the block that gave the address out, so they
belong to its lane: traced, journaled, counted and limited as if the lane had made them.

One aiohttp.web server on the runtime's loop serves all lanes. A random token in the path says whose request it is, and
keeps others on the machine out.

Lanes in the workers of an executor have an address as well (`LaneAddress`). For workers on other hosts the user names
one, where a second server listens. What happens at its other end, and why it keeps the lane's calls, is in
`_forwarding.py` and `_kept_calls.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context, copy_context
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, final

import anyio

from afnio.errors import BlockingReadError, ExecutorError, RuntimeClosedError
from afnio.models._bridging import Bridged, launch_request
from afnio.models._forwarding import RUN, TARGET, Forwarded, read_timeout_of, this_host
from afnio.models._installed import own_addresses
from afnio.models._kept_calls import KeptCalls
from afnio.models._raw import RawRequest, not_utf8, own_reply
from afnio.models._streams import BrokenReplyError, Head
from afnio.runtime._kernel import (
    Failure,
    Job,
    Launch,
    Slot,
    current_runtime,
    on_runtime_thread,
)
from afnio.runtime._limits import Limits
from afnio.runtime._waiting import wait, wait_async

if TYPE_CHECKING:
    from aiohttp import web

_MOST: Final = 64 << 20
"""Bytes of a request."""
_OWN: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "keep-alive"}
)


@final
class url(AbstractContextManager[str], AbstractAsyncContextManager[str]):  # noqa: N801
    """Give out a base URL whose calls belong to the lane that the block is in. Use `with` or `async with`.

    Args:
        upstream: the provider's base URL. Default: OPENAI_BASE_URL, then OpenAI's own.
        limits: those of every account that is used through it.

    Raises:
        ValueError: if `upstream` isn't a URL.
        BlockingReadError: for a `with` on the runtime's loop; write `async with` in an `async def` callable.

    >>> with url("https://api.openai.com/v1") as base_url:  # OPENAI_BASE_URL of the subprocess
    ...     base_url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, upstream: str | None = None, *, limits: Limits | None = None) -> None:
        from afnio.models.openai import endpoint_url

        self._limits = limits
        self._upstream = endpoint_url(upstream)
        self._token = ""

    def __enter__(self) -> str:
        if on_runtime_thread():
            raise BlockingReadError(
                "`with afnio.bridge.url()` would block the runtime's loop; write `async with` in an async def"
            )
        launch, slot = self._begin()
        launch.start()
        wait([slot], check=False)
        return self._address(slot)

    async def __aenter__(self) -> str:
        launch, slot = self._begin()
        launch.start()
        await wait_async([slot])
        return self._address(slot)

    def __exit__(self, *exc: object) -> None:
        self._end()

    async def __aexit__(self, *exc: object) -> None:
        self._end()

    def _begin(self) -> tuple[Launch, Slot]:
        self._token = secrets.token_urlsafe(24)
        lane = _Lane(self._upstream, self._limits, copy_context())
        launch = Launch("url", address="url")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[Any]:
            return [await _server().open(self._token, lane)]

        launch.add(body, [], [slot])
        return launch, slot

    def _address(self, slot: Slot) -> str:
        if isinstance(slot.outcome, Failure):
            raise slot.outcome.raised()
        return f"{slot.outcome}/{self._token}"

    def _end(self) -> None:
        runtime = current_runtime()

        def close() -> None:
            _server().close(self._token)

        with contextlib.suppress(RuntimeClosedError):
            runtime.post(close)


class _Lane(NamedTuple):
    """Whose requests arrive under a token."""

    upstream: str | None
    limits: Limits | None
    context: Context
    kept: KeptCalls | None = None


@final
class LaneAddress:
    """The address of a lane in a worker. Make it in the lane's context, on the runtime's loop.

    Args:
        host: the host and port at which workers on other hosts reach this one, or None.
    """

    def __init__(self, host: tuple[str, int] | None = None) -> None:
        self._server = _server(host)
        self._elsewhere = host is not None
        self._kept = KeptCalls(copy_context())
        self._token = ""

    async def attempt(self) -> Forwarded:
        """Return what the next attempt enters in its worker. The address of the one before is served no longer."""
        self._server.close(self._token)
        self._token = secrets.token_urlsafe(24)
        lane = _Lane(None, None, self._kept.context, self._kept)
        origin = await self._server.open(self._token, lane)
        return Forwarded(f"{origin}/{self._token}", "" if self._elsewhere else this_host())

    def end(self) -> None:
        """Serve it no longer, and cancel its calls."""
        self._server.close(self._token)
        self._kept.cancel()


def _server(host: tuple[str, int] | None = None) -> _Server:
    """Return the server at an address, or the one on loopback."""
    found = host or ("127.0.0.1", 0)
    return current_runtime().resource((_Server, found), partial(_Server, *found))


@final
class _Server:
    """The server at one address, on the runtime's loop. It starts with the first lane that needs it.

    Args:
        host: a name or an IP address of this machine.
        port: 0 for any free one.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._origin = ""
        self._lanes: dict[str, _Lane] = {}
        self._calls: dict[str, list[Bridged]] = {}
        self._runner: web.AppRunner | None = None
        self._starting = anyio.Lock()

    async def open(self, token: str, lane: _Lane) -> str:
        """Serve `lane` under `token`. Returns the server's URL.

        Raises:
            ExecutorError: if it can't listen there.
        """
        if self._runner is None:
            async with self._starting:
                if self._runner is None:
                    await self._start()
        self._lanes[token] = lane
        return self._origin

    async def _start(self) -> None:
        from aiohttp import web

        app = web.Application(client_max_size=_MOST)
        app.router.add_route("*", "/{token}/{path:.*}", self._serve)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        try:
            address = await _address_of(self._host)
            await web.TCPSite(runner, address, self._port, backlog=1024).start()
        except OSError as error:
            await runner.cleanup()
            shown = f"{self._host}, port {self._port}" if self._port else self._host
            number = error.errno or 0
            why = os.strerror(number) if number > 0 else error  # asyncio's text says it twice
            raise ExecutorError(
                f"host must be an address of this machine, with a free port (got {shown}: {why}); pass the one by "
                "which workers reach it"
            ) from None
        self._runner = runner
        shown = f"[{address}]" if ":" in address else address
        self._origin = f"http://{shown}:{runner.addresses[0][1]}"
        own_addresses.add(f"{self._origin}/")

    def close(self, token: str) -> None:
        """Serve a lane no longer, and cancel its calls."""
        self._lanes.pop(token, None)
        for bridged in self._calls.pop(token, ()):
            bridged.cancel()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        sentence = not_utf8(request.headers)
        if sentence is not None:
            refused = own_reply(400, sentence, "invalid_request")
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)
        given = request.match_info["token"]
        token, _, run = given.partition(RUN)
        lane = self._lanes.get(token)
        if lane is None:
            refused = own_reply(
                404, "this address is no longer served, because its block has ended", "unknown_lane"
            )
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)
        body = await request.read()
        target = "" if lane.kept is None else request.headers.get(TARGET, "")
        if not target:
            target = f"{lane.upstream or _default_upstream()}/{request.raw_path.removeprefix(f'/{given}/')}"
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _OWN and not name.lower().startswith("x-afnio-")
        }
        raw = RawRequest.read(request.method, target, headers, body)
        if raw is None:
            return await self._pass_on(request, target, headers, body)
        if lane.kept is not None:
            its_run = lane.kept.run(run)
            call = its_run.call_for(raw, read_timeout=read_timeout_of(request.headers))
            try:
                return await _answer(request, call, stream=raw.stream)
            except BaseException:
                its_run.leave(raw, call)
                raise
        bridged = lane.context.copy().run(partial(launch_request, raw, limits=lane.limits))
        calls = self._calls.setdefault(token, [])
        calls.append(bridged)
        try:
            return await _answer(request, bridged.exchange.pipe, stream=raw.stream)
        except BaseException:  # its client has gone
            bridged.cancel()
            raise
        finally:
            calls.remove(bridged)

    async def _pass_on(
        self, request: web.Request, target: str, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        """Send on a request that isn't for a model, such as one for the list of models."""
        import aiohttp
        from aiohttp import web

        try:
            async with (
                aiohttp.ClientSession(trust_env=True, auto_decompress=False) as session,
                session.request(
                    request.method, target, headers=headers, data=body or None, allow_redirects=False
                ) as answer,
            ):
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except (aiohttp.ClientError, OSError) as error:
            refused = own_reply(502, f"can't reach the provider ({type(error).__name__})", "unreachable")
            return web.Response(status=refused.status, headers=refused.headers, body=refused.body)

    async def aclose(self) -> None:
        own_addresses.discard(f"{self._origin}/")
        if self._runner is not None:
            await self._runner.cleanup()


async def _address_of(host: str) -> str:
    """Return the IP address of a host name. Workers get that, since a name may mean something else where they are.

    Raises:
        OSError: if there is none, or if a name means loopback, as a machine's own name does on Debian.
    """
    found = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    address = str(found[0][4][0])
    if address != host and ip_address(address).is_loopback:
        raise OSError(f"{host} is {address} here, which other hosts can't reach")
    return address


def _default_upstream() -> str:
    """Return the provider of a client without a base URL. Its import is too slow for every lane to wait for it."""
    from afnio.models.openai import endpoint_url

    return endpoint_url(None)


class _Reply(Protocol):
    """A reply that is read as it arrives."""

    async def head(self) -> Head: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    def leave(self) -> None: ...


async def _answer(request: web.Request, pipe: _Reply, *, stream: bool) -> web.StreamResponse:
    from aiohttp import web

    head = await pipe.head()
    if not stream:
        body = b"".join([piece async for piece in pipe])
        return web.Response(status=head.status, headers=head.headers, body=body)
    response = web.StreamResponse(status=head.status, headers=head.headers)
    await response.prepare(request)
    try:
        async for piece in pipe:
            await response.write(piece)
    except BrokenReplyError:
        if request.transport is not None:
            request.transport.abort()  # the client must not take it for the end
        return response
    except OSError:  # its client has gone: what it paid for is read on and recorded
        pipe.leave()
        return response
    await response.write_eof()
    return response
