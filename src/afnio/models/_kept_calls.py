"""Kept calls: a call is read to its end whoever listens, and is found again by who made it.

A client's connection may end before its reply is there: an SDK's timeout, a killed worker, a block of rows that a
cluster runs again. Its call is under way by then, perhaps paid for. So a `Memory` keeps the calls of its owner, under
the account, the request and everything in it that tells callers apart. By its rule an equal request gets

    "left"    the call whose client has left, if it says that it is a repetition (a gateway, an address of `url`)
    "first"   the first one (a gateway with `--once`)
    "nth"     the n-th one of an earlier run, if it is the n-th of its own run (the lane of a worker)

or else a new one. Nobody gets the reply to a request with other credentials.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from typing import Final, Literal, final

import anyio

from afnio.models._exchange import Exchange
from afnio.models._raw import RawRequest
from afnio.models._streams import BrokenReplyError, Head
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

RETRY_GRACE: Final = 0.05
"""Seconds for which a repeated request waits for the end of the connection that it replaces."""

Name = tuple[Account, str]
"""The account and the `shared_key` of a request."""


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
        self.cancel = cancel
        self.readers = 0
        self.left = self.begun = False
        self.timer: asyncio.TimerHandle | None = None
        self._keeps = keeps or not exchange.request.stream
        self._pieces: list[bytes] = []
        self._reading = anyio.Lock(fast_acquire=True)
        if keeps and exchange.request.stream:
            self._task = current_runtime().spawn(self._read(), Context())

    @property
    def name(self) -> Name:
        return name_of(self.exchange.request)

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
        most, most_bytes: of replies that nobody reads. The oldest are forgotten first.
    """

    def __init__(
        self,
        rule: Literal["left", "first", "nth"],
        *,
        patience: float = math.inf,
        most: float = math.inf,
        most_bytes: float = math.inf,
    ) -> None:
        self._rule = rule
        self._patience = patience
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
        if call is None and again and self._calls.get(name):
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
        if again and (left := next((call for call in asked if call.left), None)) is not None:
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
        if call.begun:  # nobody else can have it; it is read on for a while, and recorded
            call.exchange.pipe.leave()
            self._forget(call)
        elif call.ended:
            self._rest(call)
        elif self._patience <= 0:
            self._give_up(call)
        if call.timer is None and call in self._calls.get(call.name, ()) and self._patience < math.inf:
            call.timer = asyncio.get_running_loop().call_later(self._patience, self._give_up, call)

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
