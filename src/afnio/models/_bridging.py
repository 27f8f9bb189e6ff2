"""Bridging: raw requests become launches of the lane that makes them, and are kept for whoever asks again.

`launch_request` is called where an SDK sends its request: in a task, in a worker thread, on a caller's own loop. The
context says which lane that is. The launch belongs to the lane's scope like a native one, so that it is cancelled,
counted and replayed with it.

Its address is different. Native launches are numbered in the order of the program. An agent's tools race each other, so
numbers would change from run to run, and every resumed run would look like another program. A bridged call's address
is what it asks: the lane, the request's key, and how many equal requests the lane made before. Equal requests may swap
their replies. That changes nothing, because nobody can tell them apart.

A client's connection may end before its reply is there: an SDK's timeout, a killed worker, a block of rows that a
cluster runs again. Its call is under way by then, perhaps paid for. So a call is read to its end whoever listens, and a
`Memory` keeps the calls of its owner, under the account, the request and everything in it that tells callers apart. By
its rule an equal request gets

    "left"    the call whose client has left, if it says that it is a repetition (a gateway, an address of `url`).
              Where calls go by a provider's batch API, it needn't say so: after a timeout, a program that asks again,
              hours later maybe, gets the reply that it has paid for
    "first"   the first one (a gateway with `--once`)
    "nth"     the n-th one of an earlier run, if it is the n-th of its own run (the lane of a worker)

or else a new one. Nobody gets the reply to a request with other credentials.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, Literal, final

from afnio.errors import AfnioError, RuntimeClosedError
from afnio.models._apis import EMBEDDINGS
from afnio.models._exchange import CallOrigin, Exchange, Sender, send_by_aiohttp
from afnio.models._installed import limits_here
from afnio.models._raw import RawRequest
from afnio.models._streams import BrokenReplyError, Head
from afnio.models._trace import current_trace
from afnio.runtime._kernel import Job, Launch, Scope, Slot, current_runtime, current_scope
from afnio.runtime._limits import Account, Limits, give_limits, given_limits, tightest
from afnio.runtime._tracebacks import caller_line
from afnio.runtime._waiting import active_journal

# Distinguishes calls outside of any scope when nothing is recorded. Counting each request would fill the
# memory.
_numbers: Final = itertools.count(1)


@final
class Bridged:
    """A raw call that was launched. Its reply is in `exchange.pipe`."""

    def __init__(self, exchange: Exchange, launch: Launch | None) -> None:
        self.exchange = exchange
        self._launch = launch

    def cancel(self) -> None:
        """Take the call off the wire or out of the queue. Safe to call from any thread, and after its end."""
        if self._launch is not None:
            with suppress(RuntimeClosedError):
                self._launch.runtime.post(self._launch.runtime.cancel, self._launch)


def launch_request(
    request: RawRequest,
    *,
    read_timeout: float | None = None,
    address: str | None = None,
    send: Sender = send_by_aiohttp,
    limits: Limits | None = None,
) -> Bridged:
    """Launch a call in the current scope. It never raises: errors are replies.

    Args:
        address: of an equal call that failed and is sent again. Default: the scope's next one.
        limits: of its account. With those of the block of `installed` around it, the tightest hold.
    """
    limits = tightest(limits_here(), limits)
    if limits is not None and given_limits(request.account) != limits:
        give_limits(request.account, limits)
    scope = current_scope()
    job = scope.job
    trace = current_trace.get()
    purpose = "chat" if trace is None else trace.purpose
    node, lane = ("", None) if job is None else job.sample
    line = caller_line() if job is None else job.launch.line
    origin = CallOrigin(
        address=address or _address(scope, request),
        scope=scope.matched_in,
        purpose="embed" if request.dialect is EMBEDDINGS else purpose,
        depth=0 if job is None else job.launch.depth + 1,
        node=node,
        lane=lane,
        site=(line, request.dialect.name),
    )
    exchange = Exchange(request, origin, read_timeout=read_timeout, send=send)
    try:
        scope.check_can_launch()  # its own lane may have been cancelled, without the scope that owns it
        launch = Launch("http", address=origin.address, line=line)
    except AfnioError as error:
        exchange.abort(error)
        return Bridged(exchange, None)

    async def body(own: Job, values: list[Any]) -> Sequence[Any]:
        scope.guests[launch] = None
        try:
            return [await exchange.run()]
        finally:
            scope.guests.pop(launch, None)

    # With `recover` the launch never fails: whoever reads the reply gets the error, so nothing else has to report it.
    launch.add(body, [], [Slot(launch)], recover=lambda own, error: [exchange.abort(error)])
    launch.start()
    return Bridged(exchange, launch)


def _address(scope: Scope, request: RawRequest) -> str:
    name = f"http:{request.key[:16]}"
    if scope.is_root and active_journal.get() is None:
        return f"{name}#{next(_numbers)}"
    count = scope.count_equal(name)
    path = f"{scope.path}/{name}" if scope.path else name
    return path if count == 1 else f"{path}#{count}"


# Seconds for which a repeated request waits for the end of the connection that it replaces.
RETRY_GRACE: Final = 0.05

# The account and the `shared_key` of a request.
Name = tuple[Account, str]


def name_of(raw: RawRequest) -> Name:
    return raw.account, raw.shared_key


@final
class KeptCall:
    """A call and its reply, which any number of clients may read.

    Args:
        exchange: the call.
        cancel: ends it, unless that would waste what is paid for already.
        keeps: True to keep a stream, too, and to read it to its end at once. Otherwise it has one reader, at whose pace
            it is read.

    Attributes:
        readers: the number of clients that wait for it.
        left: True if its last client left before it had the reply.
        begun: True once a part of a stream is gone, because it wasn't kept.
    """

    def __init__(self, exchange: Exchange, cancel: Callable[[], object], *, keeps: bool = False) -> None:
        self.exchange = exchange
        self.name = name_of(exchange.request)
        self.cancel = cancel
        self.readers = 0
        self.left = self.begun = False
        self.timer: asyncio.TimerHandle | None = None
        self._keeps = keeps or not exchange.request.stream
        self._pieces: list[bytes] = []
        self._reading = asyncio.Lock()  # anyio's asks for the current task, which costs as much as the rest
        if keeps and exchange.request.stream:
            self._task = current_runtime().spawn(self._read(), Context())

    @property
    def address(self) -> str:
        return self.exchange.origin.address

    @property
    def ended(self) -> bool:
        return self.exchange.pipe.ended

    @property
    def failed(self) -> bool:
        """True if it has ended without a reply that another client could use."""
        return self.ended and (self.exchange.error is not None or self.exchange.pipe.broken)

    @property
    def size(self) -> int:
        """The bytes of its reply, with about what its headers and its name take."""
        return self.exchange.pipe.size + 2_000

    async def head(self) -> Head:
        """Wait for the status and the headers."""
        async with self._reading:  # a pipe has one reader
            return await self.exchange.pipe.head()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        number = 0
        while True:
            if number == len(self._pieces):
                async with self._reading:
                    if number == len(self._pieces):
                        piece = await self.exchange.pipe.piece()
                        if piece is None:
                            return
                        self._pieces.append(piece)
            yield self._pieces[number]
            if self._keeps:
                number += 1
            else:
                self.begun = True
                self._pieces.clear()

    async def _read(self) -> None:
        with suppress(BrokenReplyError):
            async for _ in self:
                pass


@final
class Memory:
    """The calls of one owner.

    Args:
        rule: which call an equal request gets, as above.
        patience: seconds for which a call without a client is kept. Then it is cancelled and forgotten.
        batch_patience: the same for calls that may go by a batch API, of which streams are none; 0 if there are none.
        most, most_bytes: of replies that nobody reads. The oldest are forgotten first.
    """

    def __init__(
        self,
        rule: Literal["left", "first", "nth"],
        *,
        patience: float = math.inf,
        batch_patience: float = 0.0,
        most: float = math.inf,
        most_bytes: float = math.inf,
    ) -> None:
        self._rule = rule
        self._patience = patience
        self.batch_patience = batch_patience
        self._most = most
        self._most_bytes = most_bytes
        self._calls: dict[Name, list[KeptCall]] = {}
        # Of "nth": the calls that a run has asked for, in order.
        self._runs: dict[tuple[str, Name], list[KeptCall]] = {}
        # Those that have ended, and that nobody reads.
        self._idle: OrderedDict[KeptCall, int] = OrderedDict()
        self._bytes = 0

    async def call_for(
        self, raw: RawRequest, new: Callable[[str | None], KeptCall], *, run: str = "", again: bool = False
    ) -> KeptCall:
        """Return the call for a request. `leave` it afterwards.

        Args:
            new: makes another one, at the address of the one that failed, or at the next one.
            run: the run of a lane's function.
            again: True for a request that an SDK repeats.
        """
        name = name_of(raw)
        call = self._find(name, run, again=again)
        if call is None and (again or self.batch_patience) and self._calls.get(name):
            # The end of the connection that it replaces may arrive after it.
            await asyncio.sleep(RETRY_GRACE)
            call = self._find(name, run, again=again)
        if call is None:
            call = self._add(name, run, new)
        call.readers += 1
        call.left = False
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        self._bytes -= self._idle.pop(call, 0)
        return call

    def _find(self, name: Name, run: str, *, again: bool) -> KeptCall | None:
        calls = self._calls.get(name, [])
        if self._rule == "first":
            return next((call for call in calls if not call.failed), None)
        asked = self._runs.get((run, name), []) if self._rule == "nth" else calls
        if again or self.batch_patience:
            left = next((call for call in asked if call.left), None)
            if left is not None:
                return left
        if self._rule == "left":
            # Its client may have given up at the moment in which the reply was sent.
            return next((call for call in calls if not call.readers), None) if again else None
        if len(asked) == len(calls) or calls[len(asked)].failed:
            return None
        call = calls[len(asked)]
        self._runs.setdefault((run, name), []).append(call)
        return call

    def _add(self, name: Name, run: str, new: Callable[[str | None], KeptCall]) -> KeptCall:
        calls = self._calls.setdefault(name, [])
        if self._rule != "nth":
            call = new(None)
            calls.append(call)
            return call
        asked = self._runs.setdefault((run, name), [])
        number = len(asked)
        # A resumed program will ask for it at the same address.
        call = new(calls[number].address if number < len(calls) else None)
        calls[number : number + 1] = [call]
        asked.append(call)
        return call

    def leave(self, call: KeptCall, *, delivered: bool) -> None:
        """A client has its reply, or has gone."""
        call.readers -= 1
        if call.readers:
            return
        call.left = not delivered
        patience = self._patience
        if call.left and not call.exchange.request.stream:
            patience = max(patience, self.batch_patience)
        if call.begun:  # nobody else can have it; it is read on for a while, and recorded
            call.exchange.pipe.leave()
            self._forget(call)
        elif call.ended:
            self._rest(call)
        elif patience <= 0:
            self._give_up(call)
        if call.timer is None and call in self._calls.get(call.name, ()) and patience < math.inf:
            call.timer = asyncio.get_running_loop().call_later(patience, self._give_up, call)

    def end(self, call: KeptCall) -> None:
        """A call has ended. Owners with a bound say so, because its client may have gone."""
        if not call.readers and call in self._calls.get(call.name, ()):
            self._rest(call)

    def cancel(self) -> None:
        """Cancel those that haven't ended: the owner has."""
        for calls in list(self._calls.values()):
            for call in list(calls):
                if not call.ended:
                    call.cancel()

    def _rest(self, call: KeptCall) -> None:
        """Keep a reply that nobody reads, within the bounds. After a failure the next request asks again."""
        if self._rule == "nth":
            return
        if call.failed:
            self._forget(call)
            return
        if call.left and self.batch_patience > 0 and self._patience < math.inf:
            return  # its timer runs
        self._bytes += call.size - self._idle.pop(call, 0)
        self._idle[call] = call.size
        while self._idle and (len(self._idle) > self._most or self._bytes > self._most_bytes):
            self._forget(next(iter(self._idle)))

    def _give_up(self, call: KeptCall) -> None:
        self._forget(call)
        if not call.ended:
            call.cancel()

    def _forget(self, call: KeptCall) -> None:
        self._bytes -= self._idle.pop(call, 0)
        if call.timer is not None:
            call.timer.cancel()
        calls = self._calls.get(call.name, [])
        if call in calls:
            calls.remove(call)
        if not calls:
            self._calls.pop(call.name, None)
