"""The gateway: one process that admits the calls of all others, in any language.

Eight workers that share a key each know only their own calls. So they exceed its quota, or divide it by eight and leave
most of it unused. They, a Node script, a coding agent, anything that reads OPENAI_BASE_URL, can send their requests
here instead. The gateway is an ordinary program of the engine: each request is an `Exchange` with its limits, retries,
journal, budget and priority, and what comes back is the provider's own response.

    afnio gateway --upstream https://api.openai.com/v1 --rpm 500 --tpm 200000 --journal calls.journal

**Keys** pass through and are never stored. Limits hold for each key; the totals hold for all keys together.

**The journal is not a cache.** A request that was answered before a restart is answered by its record, once: the n-th
equal request of a key after the restart gets the reply of the n-th before it. So a program that is started again
together with its gateway pays for nothing twice, and samples stay independent.

**Jobs over rows** are another matter. Ray and Spark run a block of rows again whose worker was lost, while the gateway
goes on. With `--once` an equal request of a key gets the reply of the first one, or waits for it.

**Clients that give up.** An SDK's timeout also runs while its call waits for quota here. Then it closes the connection
and tries again. A call whose client has gone keeps its place for `REJOIN` seconds: the repeated request joins it. If
none comes it is cancelled, unless it is on the wire by then. There it is being paid for, so it ends and is recorded.

**Half the price.** With `--batch` calls go by their provider's batch API, in hours, except streams and those of
priority "serving". Interim responses keep the SDKs waiting that know them. A call whose client has gone all the same is
kept, and so is its reply: the next equal request of the key joins it, whether it says that it is a repetition or not.

**Tenants.** Whoever sends other credentials, cookies or other headers that may tell callers apart gets no reply of
another: neither a repeated request's, nor a record's, nor that of an equal request with `--once`.

**The end.** The first signal stops the listening. What is on the wire ends, is recorded and delivered; what still
waits, or fails from then on, is refused with a 503 that clients may try again.

`_requests.py` decides what is sent on and whose limits hold, and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import math
import os
import resource
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from afnio.errors import GatewayError, TransientModelError
from afnio.gateway._requests import Keys, Metrics, Requests, path_of, refuse
from afnio.models._bridging import KeptCall, Memory
from afnio.models._exchange import CallOrigin, Exchange
from afnio.models._raw import NO_RETRY, RawReply, RawRequest
from afnio.models._raw_server import RawServer, Visit, response_of
from afnio.runtime._batch_api import batch_api, current_plan
from afnio.runtime._budget import Budget
from afnio.runtime._kernel import Job, Launch, Slot
from afnio.runtime._limits import Account, Limits, give_total_limits
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import Pending, active_journal
from afnio.runtime.events import subscribed

if TYPE_CHECKING:
    from aiohttp import web

    from afnio.runtime._journal import Journal

# Seconds for which a call whose client has gone keeps its place, and its reply.
REJOIN: Final = 60.0
# Delivered replies that are kept for a while. A client may have given up at the moment in which its reply was
# sent.
KEPT: Final = 256
# Bytes of replies that are kept: of delivered ones, and of those for equal requests with `--once`.
KEPT_BYTES: Final = 256 << 20
# File descriptors that the gateway asks for. A client that waits takes one, and its call on the wire another.
DESCRIPTORS: Final = 65_536
# Descriptors for everything else.
SPARE: Final = 64
# The path of the gateway's own pages.
PAGES: Final = "/afnio/"
TOKEN_VARIABLE: Final = "AFNIO_GATEWAY_TOKEN"  # noqa: S105 - the variable's name


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """The options of a gateway.

    Attributes:
        upstreams: the providers' base URLs by the name that is their path here. The one named "" is served at the root.
        limits: of each key.
        total: of all keys together; only its rates are used.
        budget: dollars, or None for no limit. What the journal recorded before counts.
        journal: the file, or None.
        host, port: where to listen; port 0 for a free one.
        token: what clients must send, or None: then only this machine may connect.
        once: True to answer equal requests of a key by one call. Streams are not.
        batch: the longest wait of a call by its provider's batch API, as of `batch_api`, or None to send all at once.
    """

    upstreams: Mapping[str, str]
    limits: Limits | None = None
    total: Limits | None = None
    budget: float | None = None
    journal: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8400
    token: str | None = None
    once: bool = False
    batch: str | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.journal is None:
            raise GatewayError(
                "--batch must have a journal, because a batch outlives the gateway; pass --journal"
            )
        if not self.token and not _is_loopback(self.host):
            raise _needs_token(self.host)


def _needs_token(host: str) -> GatewayError:
    return GatewayError(
        f"a gateway that others can reach must have a token (got host {host or 'any'} and none); set "
        f"{TOKEN_VARIABLE}, or pass --token"
    )


def serve(options: GatewayOptions) -> None:
    """Serve until a signal. Prints the address as the first line.

    Raises:
        GatewayError: if the port is taken, or the journal is in use.
    """
    stop = threading.Event()
    signals = [signal.SIGINT, signal.SIGTERM]

    def on_signal(number: int, frame: object) -> None:
        stop.set()
        for each in signals:
            signal.signal(each, signal.SIG_DFL)  # the second one ends it at once

    # Before anything else: the first process of a container ignores a SIGTERM that it has no handler for.
    before = {number: signal.signal(number, on_signal) for number in signals}
    try:
        with _opened(options) as gateway:
            _print(gateway.greeting())
            stop.wait()
            waiting = gateway.on_wire
            if waiting:
                _print(f"Finishing {waiting} calls on the wire. Press Ctrl-C again to stop at once.\n")
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)


@contextlib.contextmanager
def _opened(options: GatewayOptions) -> Iterator[Gateway]:
    from afnio.errors import JournalError
    from afnio.runtime._journal import Journal

    listener = _inherited(options) or _listen(options.host, options.port)
    with contextlib.ExitStack() as entered:
        entered.enter_context(listener)
        journal: Journal | None = None
        if options.journal is not None:
            try:
                journal = entered.enter_context(Journal.open(options.journal))
            except (JournalError, OSError) as error:
                raise GatewayError(str(error)) from error
        entered.enter_context(active_journal.override(journal))
        budget = None
        if options.budget is not None:
            budget = entered.enter_context(Budget(max_cost=options.budget))
        if options.batch is not None:
            entered.enter_context(batch_api(max_wait=options.batch))
        metrics = Metrics()
        entered.enter_context(subscribed(metrics.update))
        give_total_limits(options.total)
        entered.callback(give_total_limits, None)
        gateway = Gateway(options, copy_context(), metrics, budget, journal, listener)
        _on_runtime(gateway.start).wait()
        try:
            yield gateway
        finally:
            _on_runtime(gateway.stop).wait()


def _on_runtime(function: Callable[[], Awaitable[None]]) -> Pending[None]:
    launch = Launch("gateway")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[None]:
        await function()
        return [None]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, lambda outcome: outcome)


def _is_loopback(host: str) -> bool:
    """Return True if only this machine can connect there. Names other than localhost count as open to others."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _inherited(options: GatewayOptions) -> socket.socket | None:
    """Return the socket on which systemd listens for this process (sd_listen_fds), or None.

    Its owner keeps it while the gateway restarts, and clients that connect meanwhile wait in the kernel's queue.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    try:
        listener = socket.socket(fileno=3)  # SD_LISTEN_FDS_START
        fits = os.environ.get("LISTEN_FDS") == "1" and listener.family in (socket.AF_INET, socket.AF_INET6)
    except OSError:
        fits = False
    if not fits:
        raise GatewayError(
            "the gateway must be handed one TCP socket (got others); give its unit one ListenStream="
        )
    host = listener.getsockname()[0]
    if not options.token and not _is_loopback(host):
        raise _needs_token(host)
    return listener


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address, or on the first one of a name."""
    host = host.strip("[]")
    try:
        addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = addresses[0]
        both = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, backlog=4096, dualstack_ipv6=both)
    except (OSError, OverflowError, UnicodeError) as error:  # the last: a name that IDNA refuses
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            advice = "end what uses that port, or pass another --port"
        else:
            advice = "pass a name or an address of this machine as --host, and a --port that you may use"
        shown = f"[{host}]" if ":" in host else host
        raise GatewayError(f"the gateway can't listen on {shown}:{port} ({error}); {advice}") from error


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


@final
class Gateway:
    """The calls of the gateway, on the runtime's loop.

    Args:
        context: the context of calls: journal, budget, subscribers.
        listener: a socket that is bound.
    """

    def __init__(
        self,
        options: GatewayOptions,
        context: Context,
        metrics: Metrics,
        budget: Budget | None,
        journal: Journal | None,
        listener: socket.socket,
    ) -> None:
        self._options = options
        self._context = context
        self._metrics = metrics
        self._budget = budget
        self._journal = journal
        self._listener = listener
        self._token = options.token or secrets.token_urlsafe(24)
        self._requests = Requests(options.upstreams, options.token, counted=budget is not None)
        self._keys = Keys(options.limits)
        self._stopping = False
        self._calls: dict[GatewayCall, None] = {}
        # Only a journal needs them: the number of equal requests, about 150 bytes for each.
        self._uses: dict[tuple[Account, bytes], int] = {}
        plan = current_plan.get()
        # A call by batch keeps its place for as long as it may take, and its reply for as long again.
        longer = 0.0 if plan is None else 2 * plan.max_wait
        self._left = Memory("left", patience=REJOIN, batch_patience=longer, most=KEPT, most_bytes=KEPT_BYTES)
        self._first = Memory("first", batch_patience=longer, most_bytes=KEPT_BYTES)
        pages = {PAGES + "health": self._health, PAGES + "metrics": self._show_metrics}
        self._server = RawServer(self, pages=pages, most=_most_connections())

    # Its life

    async def start(self) -> None:
        await self._server.start(self._listener)

    async def stop(self) -> None:
        """Listen no longer, end what is on the wire, and refuse the rest."""
        self._stopping = True
        self._server.stop_listening()
        for call in list(self._calls):
            call.stop()
        while self._calls:
            await asyncio.wait([call.task for call in self._calls])
        await self._server.aclose()

    @property
    def on_wire(self) -> int:
        return sum(call.on_wire for call in list(self._calls))

    def greeting(self) -> str:
        host, port = self._listener.getsockname()[:2]
        if ip_address(host).is_unspecified:
            host = socket.gethostname()  # by which other hosts may know it
        origin = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        token = self._token
        if token == os.environ.get(TOKEN_VARIABLE):
            token = f"${TOKEN_VARIABLE}"  # containers' output is kept in logs
        guard = f"/{token}" if self._options.token else ""
        lines = [
            f"{origin}{guard}{path_of(name, upstream)}  sends to {upstream}"
            for name, upstream in self._options.upstreams.items()
        ]
        lines.append(f"{origin}{PAGES}metrics?token={token}  has the figures")
        lines.append("Set the first address as OPENAI_BASE_URL. Press Ctrl-C to stop.")
        return "\n".join(lines) + "\n"

    # Its server's desk

    def visit(self, request: web.Request) -> Visit | RawReply:
        way = self._requests.way(request)
        if isinstance(way, RawReply):
            return way

        def new(raw: RawRequest, address: str | None) -> KeptCall:
            return self._new_call(raw, way.priority, memory(raw))

        def memory(raw: RawRequest) -> Memory:
            return self._first if self._options.once and not raw.stream else self._left

        return Visit(way.target, memory, new, comments=True)

    def refusal(self, request: web.Request, raw: RawRequest | None, body: bytes) -> RawReply | None:
        if raw is None:
            return self._requests.uncounted(request, body)
        if self._stopping:
            return _stopping()
        if not self._keys.admit(raw.account, lambda: {call.account for call in self._calls}):
            return refuse(503, "the gateway has calls of as many keys open as it can; send the request again")
        return None

    # Calls

    def _new_call(self, raw: RawRequest, priority: Priority, memory: Memory) -> KeptCall:
        call = GatewayCall(raw, self._origin(raw), stopping=self._is_stopping)
        kept = KeptCall(call.exchange, call.give_up)
        context = self._context.copy()
        call.task = context.run(asyncio.get_running_loop().create_task, call.run(priority), context=context)
        self._calls[call] = None

        def ended(task: asyncio.Task[None]) -> None:
            del self._calls[call]
            # A task that is cancelled before its first step never enters the exchange: its client would wait for ever.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                call.exchange.abort(error)
            memory.end(kept)

        call.task.add_done_callback(ended)
        return kept

    def _origin(self, raw: RawRequest) -> CallOrigin:
        scope = f"gateway/{raw.account.key_digest}"
        address = f"{scope}/http:{raw.shared_key[:16]}"
        if self._journal is not None and not self._options.once:
            name = (raw.account, bytes.fromhex(raw.shared_key)[:16])
            self._uses[name] = use = self._uses.get(name, 0) + 1
            if use > 1:
                address += f"#{use}"
        return CallOrigin(address=address, scope=scope, site=raw.dialect.name, key=raw.shared_key)

    def _is_stopping(self) -> bool:
        return self._stopping

    # Its own pages

    async def _health(self, request: web.Request) -> web.Response:
        from aiohttp import web

        if self._stopping:
            return web.json_response({"status": "stopping"}, status=503)
        if self._journal is not None and self._journal.broken is not None:
            return web.json_response({"status": "the journal can't record any more"}, status=503)
        return web.json_response({"status": "ok"})

    async def _show_metrics(self, request: web.Request) -> web.Response:
        from aiohttp import web

        shown = request.query.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(shown.encode(), self._token.encode()):
            return response_of(
                refuse(401, "this page needs the gateway's token; send it as `Authorization: Bearer …`")
            )
        self._metrics.measure(len(self._calls), self.on_wire, self._budget)
        return web.Response(body=self._metrics.text(), headers={"content-type": self._metrics.content_type})


def _most_connections() -> float:
    """Ask for more file descriptors, and return how many clients they are enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = max(soft, DESCRIPTORS)
    if soft == resource.RLIM_INFINITY:
        return math.inf
    wanted = max(soft, min(hard, DESCRIPTORS))
    with contextlib.suppress(OSError, ValueError):  # a container may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(16, (soft - SPARE) // 2)


@final
class GatewayCall:
    """One call of the gateway, which may outlive the request that began it.

    Attributes:
        task: makes the call.
        on_wire: True while an attempt is at the provider, and after one has succeeded.
    """

    task: asyncio.Task[None]

    def __init__(self, raw: RawRequest, origin: CallOrigin, *, stopping: Callable[[], bool]) -> None:
        self.account = raw.account
        self.on_wire = False
        self.exchange = Exchange(raw, origin, on_wire=self._attempt)
        self._stopping = stopping
        self._unwanted = False

    async def run(self, priority: Priority) -> None:
        with prioritised(priority):
            await self.exchange.run()

    def give_up(self) -> None:
        """Cancel it if it isn't on the wire, and at its next failure if it is."""
        self._unwanted = True
        if not self.on_wire:
            self.task.cancel()

    def stop(self) -> None:
        """As `give_up`, with a refusal for its client."""
        if not self.on_wire and not self.task.done():
            error = TransientModelError("the gateway is stopping")
            error.response = _stopping()
            self.exchange.abort(error)
            self.task.cancel()

    def _attempt(self, at_provider: bool) -> None:
        self.on_wire = at_provider
        if not at_provider and (self._unwanted or self._stopping()):
            # The attempt's end comes first: it settles what the budget and the limits hold.
            asyncio.get_running_loop().call_soon(self.give_up if self._unwanted else self.stop)


def _stopping() -> RawReply:
    """Return a refusal that clients answer by asking again."""
    reply = refuse(503, "the gateway is stopping; send the request again")
    kept = {name: value for name, value in reply.headers.items() if name not in NO_RETRY}
    return RawReply(reply.status, {**kept, "retry-after": "1"}, reply.body)
