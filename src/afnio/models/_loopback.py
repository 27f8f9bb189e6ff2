"""The loopback address of a lane: subprocesses and other languages call models through it.

A script in another language can't use a transport of ours, but it reads OPENAI_BASE_URL. `url` gives it an address on
this machine. The requests that arrive there are launched in the context of the block that gave the address out, so they
belong to its lane: traced, journaled, counted and limited as if the lane had made them.

One server on the runtime's loop (`_raw_server.py`) serves all lanes. A random token in the path says whose request it
is, and keeps others on the machine out.

Lanes in the workers of an executor have an address as well (`LaneAddress`). For workers on other hosts the user names
one, where a second server listens. What happens at its other end, and why it keeps the lane's calls, is in
`_forwarding.py` and `_bridging.py`.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import socket
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import Context, copy_context
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

import anyio

from afnio.errors import BlockingReadError, ExecutorError, RuntimeClosedError
from afnio.models._bridging import KeptCall, Memory, launch_request
from afnio.models._forwarding import RUN, TARGET, Forwarded, read_timeout_of, this_host
from afnio.models._installed import own_addresses
from afnio.models._raw import RawReply, RawRequest, own_reply
from afnio.models._raw_server import RawServer, Visit
from afnio.runtime._batch_api import current_plan
from afnio.runtime._kernel import Job, Launch, Slot, current_runtime, on_runtime_thread
from afnio.runtime._limits import Limits
from afnio.runtime._tracebacks import Failure
from afnio.runtime._waiting import wait, wait_async

if TYPE_CHECKING:
    from aiohttp import web


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
        kept = {"patience": 0.0, "most": 0.0} if current_plan.get() is None else _BY_BATCH
        lane = _Lane(self._upstream, self._limits, copy_context(), Memory("left", **kept))
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


# How long a lane keeps calls in a `batch_api` block: as long as it lasts, if their client left without a
# reply.
_BY_BATCH: Final[dict[str, float]] = {"patience": 60.0, "batch_patience": math.inf}


class _Lane(NamedTuple):
    """Whose requests arrive under a token."""

    upstream: str | None
    limits: Limits | None
    context: Context
    # A lane in a worker has one of rule "nth". Its requests name their targets.
    memory: Memory
    of_worker: bool = False


@final
class LaneAddress:
    """The address of a lane in a worker. Make it in the lane's context, on the runtime's loop.

    Args:
        host: the host and port at which workers on other hosts reach this one, or None.
    """

    def __init__(self, host: tuple[str, int] | None = None) -> None:
        self._server = _server(host)
        self._elsewhere = host is not None
        memory = Memory("nth", batch_patience=0.0 if current_plan.get() is None else math.inf)
        self._lane = _Lane(None, None, copy_context(), memory, of_worker=True)
        self._token = ""

    async def attempt(self) -> Forwarded:
        """Return what the next attempt enters in its worker. The address of the one before is served no longer."""
        self._server.close(self._token)
        self._token = secrets.token_urlsafe(24)
        origin = await self._server.open(self._token, self._lane)
        return Forwarded(f"{origin}/{self._token}", "" if self._elsewhere else this_host())

    def end(self) -> None:
        """Serve it no longer, and cancel its calls."""
        self._server.close(self._token)
        self._lane.memory.cancel()


def _server(host: tuple[str, int] | None = None) -> _Server:
    """Return the server at an address, or the one on loopback."""
    place = host or ("127.0.0.1", 0)
    return current_runtime().resource((_Server, place), partial(_Server, *place))


@final
class _Server:
    """The lanes that are served at one address, on the runtime's loop. It starts with the first one that needs it.

    Args:
        host: a name or an IP address of this machine.
        port: 0 for any free one.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._origin = ""
        self._lanes: dict[str, _Lane] = {}
        self._server: RawServer | None = None
        self._starting = anyio.Lock()

    async def open(self, token: str, lane: _Lane) -> str:
        """Serve `lane` under `token`. Returns the server's URL.

        Raises:
            ExecutorError: if it can't listen there.
        """
        async with self._starting:
            if self._server is None:
                await self._start()
        self._lanes[token] = lane
        return self._origin

    async def _start(self) -> None:
        try:
            address = await _address_of(self._host)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            listener = socket.create_server((address, self._port), family=family)
        except OSError as error:
            shown = f"{self._host}, port {self._port}" if self._port else self._host
            number = error.errno or 0
            why = (
                os.strerror(number) if number > 0 else error
            )  # the error's own text may name the address again
            raise ExecutorError(
                f"host must be an address of this machine, with a free port (got {shown}: {why}); pass the one by "
                "which workers reach it"
            ) from None
        self._server = RawServer(self, "/{token}/{path:.*}")
        await self._server.start(listener)
        shown = f"[{address}]" if ":" in address else address
        self._origin = f"http://{shown}:{listener.getsockname()[1]}"
        own_addresses.add(f"{self._origin}/")

    def close(self, token: str) -> None:
        """Serve a lane no longer. Its calls are cancelled, unless another attempt of a worker may want them."""
        lane = self._lanes.pop(token, None)
        if lane is not None and not lane.of_worker:
            lane.memory.cancel()

    async def aclose(self) -> None:
        own_addresses.discard(f"{self._origin}/")
        if self._server is not None:
            await self._server.aclose()

    # The server's desk

    def visit(self, request: web.Request) -> Visit | RawReply:
        """Find the lane by the token in the path."""
        first = request.match_info["token"]
        token, _, run = first.partition(RUN)
        lane = self._lanes.get(token)
        if lane is None:
            sentence = "this address is no longer served, because its block has ended"
            return own_reply(404, sentence, "unknown_lane")
        target = request.headers.get(TARGET, "") if lane.of_worker else ""
        if not target:
            target = f"{lane.upstream or _default_upstream()}/{request.raw_path.removeprefix(f'/{first}/')}"
        read_timeout = read_timeout_of(request.headers) if lane.of_worker else None

        def new(raw: RawRequest, address: str | None) -> KeptCall:
            launch = partial(
                launch_request, raw, read_timeout=read_timeout, address=address, limits=lane.limits
            )
            bridged = lane.context.copy().run(launch)
            return KeptCall(bridged.exchange, bridged.cancel, keeps=lane.of_worker)

        return Visit(target, lambda raw: lane.memory, new, run)

    def refusal(self, request: web.Request, raw: RawRequest | None, body: bytes) -> RawReply | None:
        return None


async def _address_of(host: str) -> str:
    """Return the IP address of a host name. Workers get that, since a name may mean something else where they are.

    Raises:
        OSError: if there is none, or if a name means loopback, as a machine's own name does on Debian.
    """
    addresses = await anyio.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    address = str(addresses[0][4][0])
    if address != host and ip_address(address).is_loopback:
        raise OSError(f"{host} is {address} here, which other hosts can't reach")
    return address


def _default_upstream() -> str:
    """Return the provider of a client without a base URL. Its import is too slow for every lane to wait for it."""
    from afnio.models.openai import endpoint_url

    return endpoint_url(None)
