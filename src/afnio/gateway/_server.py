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

**The end.** The first signal stops the listening. What is on the wire ends, is recorded and delivered; what still waits
is refused with a 503 that clients may try again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import os
import secrets
import signal
import socket
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final
from urllib.parse import urlsplit

from afnio.errors import GatewayError
from afnio.gateway._metrics import Metrics
from afnio.models._exchange import CallOrigin, Exchange, Opened, send_by_aiohttp
from afnio.models._raw import NO_RETRY, RawReply, RawRequest, not_utf8, own_reply
from afnio.models._streams import BrokenReplyError
from afnio.runtime._budget import Budget
from afnio.runtime._kernel import Job, Launch, Slot
from afnio.runtime._limits import Account, Limits, give_limits, give_total_limits
from afnio.runtime._settings import Priority, prioritised
from afnio.runtime._waiting import Pending, active_journal
from afnio.runtime.events import subscribed

if TYPE_CHECKING:
    from aiohttp import ClientSession, web

    from afnio.runtime._journal import Journal

REJOIN: Final = 60.0
"""Seconds for which a call whose client has gone keeps its place, and its reply."""
COMMENT: Final = 15.0
"""Seconds after which a stream that waits for its first event is sent a comment, and again each time."""
RETRY_GRACE: Final = 0.05
"""Seconds for which a repeated request waits for the end of the connection that it replaces."""
KEPT: Final = 256
"""Delivered replies that are kept for a while. A client may have given up at the moment in which its reply was sent."""
ONCE: Final = 256 << 20
"""Bytes of replies that are kept for equal requests with `--once`. The oldest ones are forgotten first."""
MOST_BODY: Final = 64 << 20
"""Bytes of a request."""
MOST_KEYS: Final = 10_000
"""Keys that have limits of their own here. A client that invents keys must not fill the memory."""
PAGES: Final = "/afnio/"
"""The path of the gateway's own pages."""
PRIORITY: Final = "x-afnio-priority"
TOKEN: Final = "x-afnio-token"  # noqa: S105 - the header's name
TOKEN_VARIABLE: Final = "AFNIO_GATEWAY_TOKEN"  # noqa: S105 - the variable's name

_OWN: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
"""Headers that belong to a connection."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What a gateway serves, and how much of it.

    Attributes:
        upstreams: the providers' base URLs by the name that is their path here. The one named "" is served at the root.
        limits: of each key.
        total: of all keys together; only its rates are used.
        budget: dollars, or None for no limit. What the journal recorded before counts.
        journal: the file, or None.
        host, port: where to listen; port 0 for a free one.
        token: what clients must send, or None: then only this machine may connect.
        once: True to answer equal requests of a key by one call. Streams are not.
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

    def __post_init__(self) -> None:
        if not self.token and not _is_loopback(self.host):
            raise GatewayError(
                f"a gateway that others can reach must have a token (got host {self.host or 'any'} and none); set "
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

    listener = _listen(options.host, options.port)
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


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address, or on the first one of a name."""
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
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
    """The server, on the runtime's loop.

    Args:
        context: the context of calls: journal, budget, subscribers.
        listener: a socket that listens already.
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
        self._runner: web.AppRunner | None = None
        self._session: ClientSession | None = None
        self._stopping = False
        self._limited: set[Account] = set()
        self._uses: dict[tuple[Account, bytes], int] = {}
        self._calls: dict[GatewayCall, None] = {}
        self._left: dict[tuple[Account, str], deque[GatewayCall]] = {}
        self._live: dict[tuple[Account, str], int] = {}
        self._delivered: OrderedDict[tuple[Account, str], Delivered] = OrderedDict()
        # With `once`: calls that are under way, and replies that are kept.
        self._shared: dict[tuple[Account, str], asyncio.Task[Delivered]] = {}
        self._kept: OrderedDict[tuple[Account, str], Delivered] = OrderedDict()
        self._kept_bytes = 0

    # Its life

    async def start(self) -> None:
        import aiohttp
        from aiohttp import web

        from afnio.models._connections import probed_socket

        app = web.Application(client_max_size=MOST_BODY, middlewares=[_only_utf8()])
        app.router.add_get(PAGES + "health", self._health)
        app.router.add_get(PAGES + "metrics", self._show_metrics)
        app.router.add_route("*", "/{path:.*}", self._serve)
        # Handlers are cancelled when their client has gone. aiohttp's own wait at the end isn't used: `stop` waits.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=5.0)
        await runner.setup()
        await web.SockSite(runner, self._listener, backlog=4096).start()
        self._runner = runner
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=probed_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=600.0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=True,
        )

    async def stop(self) -> None:
        """Listen no longer, end what is on the wire, and refuse the rest."""
        assert self._runner is not None
        assert self._session is not None
        self._stopping = True
        for site in list(self._runner.sites):
            await site.stop()
        for call in list(self._calls):
            if not call.on_wire:
                call.cancel()
        while self._calls:
            await asyncio.wait([call.task for call in self._calls])
        await self._runner.cleanup()
        await self._session.close()

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
            f"{origin}{guard}{_path(name, upstream)}  sends to {upstream}"
            for name, upstream in self._options.upstreams.items()
        ]
        lines.append(f"{origin}{PAGES}metrics?token={token}  has the figures")
        lines.append("Set the first address as OPENAI_BASE_URL. Press Ctrl-C to stop.")
        return "\n".join(lines) + "\n"

    # Requests

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if "upgrade" in request.headers.get("connection", "").lower():
            return _refuse(
                501, "the gateway passes on HTTP requests only; connect WebSockets to the provider itself"
            )
        path = self._admitted(request)
        if path is None:
            return _refuse(
                401, f"the gateway's token is missing or wrong; send it as {TOKEN}, or in the base URL"
            )
        target = self._target(path)
        if target is None:
            served = ", ".join(_path(name, url) for name, url in self._options.upstreams.items())
            return _refuse(
                404, f"the gateway serves {served} (got {request.path}); check the client's base URL"
            )
        try:
            priority = _priority(request.headers.get(PRIORITY))
        except ValueError as error:
            return _refuse(400, str(error))
        body = await request.read()
        headers = {
            name.lower(): value
            for name, value in request.headers.items()
            if name.lower() not in _OWN and not name.lower().startswith("x-afnio-")
        }
        raw = RawRequest.read(request.method, target, headers, body)
        if raw is None:
            return await self._pass_on(request, target, headers, body)
        if self._stopping:
            return _response(_stopping_reply())
        if not self._limit(raw.account):
            return _refuse(503, f"the gateway knows {MOST_KEYS:,} keys already; restart it to forget them")
        if self._options.once and not raw.stream:
            return (await self._answer_once(raw, priority)).response()
        again = _is_retry(headers)
        if again and (lost := self._delivered.pop((raw.account, raw.key), None)) is not None and lost.fresh:
            return lost.response()
        call = await self._call_for(raw, priority, again=again)
        self._count_live(call, 1)
        try:
            if raw.stream:
                return await self._answer_stream(request, call)
            return await self._answer(call)
        except BaseException:
            self._leave(call)
            raise
        finally:
            self._count_live(call, -1)

    def _admitted(self, request: web.Request) -> str | None:
        """Return the path without the token, or None if a token is needed and isn't there."""
        path = request.raw_path
        if self._options.token is None:
            return path
        if hmac.compare_digest(request.headers.get(TOKEN, "").encode(), self._token.encode()):
            return path
        first, slash, rest = path[1:].partition("/")
        if hmac.compare_digest(first.encode(), self._token.encode()):
            return slash + rest
        return None

    def _target(self, path: str) -> str | None:
        """Return the provider's URL for a path here."""
        for name, upstream in self._options.upstreams.items():
            if name and (path == f"/{name}" or path.startswith(f"/{name}/")):
                return upstream + path[len(name) + 1 :]
        root = self._options.upstreams.get("")
        if root is None:
            return None
        own = urlsplit(root).path
        return root + (path.removeprefix(own) if own and path.startswith(f"{own}/") else path)

    def _limit(self, account: Account) -> bool:
        if account not in self._limited:
            if len(self._limited) >= MOST_KEYS:
                return False
            self._limited.add(account)
            if self._options.limits is not None:
                give_limits(account, self._options.limits)
        return True

    async def _call_for(self, raw: RawRequest, priority: Priority, *, again: bool) -> GatewayCall:
        """Return the call for a request: one that its client has left, or a new one."""
        name = (raw.account, raw.key)
        if again and not self._left.get(name) and self._live.get(name):
            # The end of the connection that it replaces may arrive after it.
            await asyncio.sleep(RETRY_GRACE)
        left = self._left.get(name)
        if left:
            call = left.popleft()
            if not left:
                del self._left[name]
            call.rejoin()
            return call
        return self._new_call(raw, priority)

    def _new_call(self, raw: RawRequest, priority: Priority) -> GatewayCall:
        call = GatewayCall(raw, self._origin(raw), (raw.account, raw.key))
        context = self._context.copy()
        call.task = context.run(asyncio.get_running_loop().create_task, call.run(priority), context=context)
        self._calls[call] = None
        call.task.add_done_callback(lambda task: self._ended(call))
        return call

    def _origin(self, raw: RawRequest) -> CallOrigin:
        scope = f"gateway/{raw.account.key_digest}"
        address = f"{scope}/http:{raw.key[:16]}"
        if self._journal is not None and not self._options.once:
            # About 150 bytes for each distinct request. Only a journal needs them.
            name = (raw.account, bytes.fromhex(raw.key)[:16])
            self._uses[name] = use = self._uses.get(name, 0) + 1
            if use > 1:
                address += f"#{use}"
        return CallOrigin(address=address, scope=scope, site=raw.dialect.name)

    def _ended(self, call: GatewayCall) -> None:
        self._calls.pop(call, None)
        # A task that is cancelled before its first step never enters the exchange, and its client would wait for ever.
        error = asyncio.CancelledError() if call.task.cancelled() else call.task.exception()
        if error is not None:
            call.exchange.abort(error)

    def _leave(self, call: GatewayCall) -> None:
        """Its client has gone. Keep the call for a while, unless a part of its reply was delivered already."""
        if call.delivering:
            call.exchange.pipe.leave()
            return
        self._left.setdefault(call.name, deque()).append(call)
        call.leave(lambda: self._give_up(call))

    def _give_up(self, call: GatewayCall) -> None:
        left = self._left.get(call.name)
        if left is not None and call in left:
            left.remove(call)
            if not left:
                del self._left[call.name]
        call.give_up()

    def _count_live(self, call: GatewayCall, step: int) -> None:
        count = self._live.get(call.name, 0) + step
        if count:
            self._live[call.name] = count
        else:
            self._live.pop(call.name, None)

    # Responses

    async def _answer(self, call: GatewayCall) -> web.Response:
        reply = await self._whole(call)
        if reply.status == 200:
            self._delivered[call.name] = reply
            if len(self._delivered) > KEPT:
                self._delivered.popitem(last=False)
        return reply.response()

    async def _whole(self, call: GatewayCall) -> Delivered:
        pipe = call.exchange.pipe
        head = await pipe.head()
        until = asyncio.get_running_loop().time() + REJOIN
        if call.cancelled and self._stopping:
            stopping = _stopping_reply()
            return Delivered(stopping.status, stopping.headers, stopping.body, until)
        return Delivered(head.status, head.headers, b"".join([piece async for piece in pipe]), until)

    async def _answer_once(self, raw: RawRequest, priority: Priority) -> Delivered:
        """Answer by the call of an earlier equal request, which ends whether or not somebody waits for it."""
        name = (raw.account, raw.key)
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
            return kept
        shared = self._shared.get(name)
        if shared is None:
            call = self._new_call(raw, priority)
            shared = self._shared[name] = asyncio.get_running_loop().create_task(self._whole(call))
            shared.add_done_callback(lambda done: self._keep(name, done))
        return await asyncio.shield(shared)

    def _keep(self, name: tuple[Account, str], done: asyncio.Task[Delivered]) -> None:
        """Keep a reply for equal requests. After a failure the next one asks again."""
        del self._shared[name]
        if done.cancelled() or done.exception() is not None or done.result().status != 200:
            return
        self._kept[name] = done.result()
        self._kept_bytes += done.result().size
        while self._kept_bytes > ONCE:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.size

    async def _answer_stream(self, request: web.Request, call: GatewayCall) -> web.StreamResponse:
        from aiohttp import web

        pipe = call.exchange.pipe
        head = asyncio.ensure_future(pipe.head())
        response: web.StreamResponse | None = None
        try:
            while not head.done():
                await asyncio.wait([head], timeout=COMMENT if call.takes_comments else None)
                if head.done():
                    break
                if response is None:
                    response = web.StreamResponse(
                        headers={"content-type": "text/event-stream; charset=utf-8"}
                    )
                    await response.prepare(request)
                await response.write(b": waiting\n\n")
        finally:
            head.cancel()
        status, headers = head.result()
        if call.cancelled and self._stopping and response is None:
            return _response(_stopping_reply())
        if response is None:
            response = web.StreamResponse(status=status, headers=headers)
            call.delivering = True
            await response.prepare(request)
        elif status != 200:
            # The head has gone out, so the error is an event.
            body = b"".join([piece async for piece in pipe])
            named = b"event: error\n" if call.exchange.request.dialect.name == "messages" else b""
            await response.write(named + b"data: " + b" ".join(body.split(b"\n")) + b"\n\n")
            await response.write_eof()
            return response
        call.delivering = True
        try:
            async for piece in pipe:
                await response.write(piece)
        except BrokenReplyError:
            if request.transport is not None:
                request.transport.abort()  # the client must not take it for the end
            return response
        except OSError:
            pipe.leave()
            return response
        await response.write_eof()
        return response

    async def _pass_on(
        self, request: web.Request, target: str, headers: dict[str, str], body: bytes
    ) -> web.StreamResponse:
        """Send on a request that isn't for a model, such as one for the list of models."""
        import aiohttp
        from aiohttp import web

        assert self._session is not None
        try:
            answer = await self._session.request(
                request.method, target, headers=headers, data=body or None, allow_redirects=False
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return _refuse(
                502, f"the gateway can't reach {urlsplit(target).hostname} ({type(error).__name__})"
            )
        async with answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OWN}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            try:
                async for piece in answer.content.iter_any():
                    await response.write(piece)
            except aiohttp.ClientError:
                if request.transport is not None:
                    request.transport.abort()
                return response
            await response.write_eof()
            return response

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

        given = request.query.get("token") or request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return _refuse(401, "this page needs the gateway's token; send it as `Authorization: Bearer …`")
        self._metrics.measure(len(self._calls), self.on_wire, self._budget)
        return web.Response(body=self._metrics.text(), headers={"content-type": self._metrics.content_type})


class Delivered(NamedTuple):
    """A reply that was sent to a client, which may have been gone already.

    Attributes:
        until: the loop's time after which it is forgotten.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    until: float

    @property
    def size(self) -> int:
        """Bytes, with about what its headers and its key take."""
        return len(self.body) + 2_000

    @property
    def fresh(self) -> bool:
        return asyncio.get_running_loop().time() < self.until

    def response(self) -> web.Response:
        from aiohttp import web

        return web.Response(status=self.status, headers=self.headers, body=self.body)


@final
class GatewayCall:
    """One call of the gateway, which may outlive the request that began it.

    Attributes:
        name: the account and the key of its request.
        task: makes the call.
        on_wire: True while an attempt is at the provider, and after one has succeeded.
        delivering: True once a client has got a part of the reply.
        cancelled: True if it was cancelled by the gateway.
    """

    task: asyncio.Task[None]

    def __init__(self, raw: RawRequest, origin: CallOrigin, name: tuple[Account, str]) -> None:
        self.name = name
        self.on_wire = self.delivering = self.cancelled = False
        self.takes_comments = raw.stream and (raw.dialect.name != "generateContent" or "alt=sse" in raw.url)
        self.exchange = Exchange(raw, origin, send=self._send)
        self._unwanted = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, priority: Priority) -> None:
        with prioritised(priority):
            await self.exchange.run()

    def cancel(self) -> None:
        self.cancelled = True
        self.task.cancel()

    def leave(self, give_up: Callable[[], object]) -> None:
        """Wait for its client to come back, then `give_up`."""
        self._timer = asyncio.get_running_loop().call_later(REJOIN, give_up)

    def rejoin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._unwanted = False

    def give_up(self) -> None:
        """Cancel it if it isn't on the wire, and at its next failure if it is."""
        self._unwanted = True
        if not self.on_wire:
            self.cancel()

    async def _send(self, request: RawRequest, body: bytes) -> Opened:
        self.on_wire = True
        try:
            return _Watched(await send_by_aiohttp(request, body), self._failed)
        except BaseException:
            self._failed()
            raise

    def _failed(self) -> None:
        self.on_wire = False
        if self._unwanted:
            asyncio.get_running_loop().call_soon(self.cancel)


@final
class _Watched:
    """A response that notifies its call if reading it fails."""

    def __init__(self, opened: Opened, failed: Callable[[], object]) -> None:
        self._opened = opened
        self._failed = failed

    @property
    def status(self) -> int:
        return self._opened.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._opened.headers

    async def read(self) -> bytes:
        return await self._opened.read()

    async def read_all(self) -> bytes:
        return await self._opened.read_all()

    async def __aenter__(self) -> _Watched:
        await self._opened.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> Any:
        if exc[0] is not None:
            self._failed()
        return await self._opened.__aexit__(*exc)


# Small things


def _refuse(status: int, sentence: str) -> web.Response:
    return _response(own_reply(status, sentence, "afnio_gateway"))


def _response(reply: RawReply) -> web.Response:
    from aiohttp import web

    return web.Response(status=reply.status, headers=reply.headers, body=reply.body)


def _only_utf8() -> Any:
    from aiohttp import web

    @web.middleware
    async def check(request: web.Request, handler: Any) -> web.StreamResponse:
        sentence = not_utf8(request.headers)
        return await handler(request) if sentence is None else _refuse(400, sentence)

    return check


def _stopping_reply() -> RawReply:
    """Return a refusal that clients answer by asking again."""
    reply = own_reply(503, "the gateway is stopping; send the request again", "afnio_gateway")
    kept = {name: value for name, value in reply.headers.items() if name not in NO_RETRY}
    return RawReply(reply.status, {**kept, "retry-after": "1"}, reply.body)


def _path(name: str, upstream: str) -> str:
    return f"/{name}" if name else urlsplit(upstream).path


def _priority(name: str | None) -> Priority:
    if name is None:
        return Priority.TRAINING
    try:
        return Priority[name.strip().upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Priority)
        raise ValueError(f"{PRIORITY} must be one of {names} (got {name!r}); omit it for training") from None


def _is_retry(headers: Mapping[str, str]) -> bool:
    return headers.get("x-stainless-retry-count", "0") not in ("", "0")
