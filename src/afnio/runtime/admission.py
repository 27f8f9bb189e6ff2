"""Admission: one admitter for each account decides which call goes on the wire next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from functools import partial
from typing import Final, final

import anyio

from afnio.errors import RateLimitedError
from afnio.runtime.concurrency import Concurrency
from afnio.runtime.limits import Account, Limits, given_limits
from afnio.runtime.loop import call_later
from afnio.runtime.runtime import Runtime
from afnio.runtime.setting import Setting


class Priority(IntEnum):
    """Who goes first; within a class, who came first."""

    SERVING = 0
    VALIDATION = 1
    TRAINING = 2
    SPECULATIVE = 3


priority: Final[Setting[Priority]] = Setting("priority", Priority.TRAINING)


@final
class Admitter:
    """The one queue of an account. Nothing waits anywhere else, so nobody holds a permit while queueing."""

    def __init__(self) -> None:
        self.concurrency = Concurrency()
        self.in_flight = 0
        self._queue: list[_Entry] = []
        self._order = itertools.count()
        self._paused_until: float | None = None
        self._limits: Limits | None = None

    def apply(self, limits: Limits) -> None:
        """Take new limits; the same ones again change nothing, so what was learnt since stays."""
        if limits is self._limits:
            return
        self._limits = limits
        if limits.max_in_flight is not None:
            self.concurrency.set_ceiling(limits.max_in_flight)
            self._admit()

    @asynccontextmanager
    async def permit(self, rank: Priority, *, first: bool) -> AsyncIterator[None]:
        """Hold one place on the wire for the block, which is one attempt of a call."""
        await self._enter(rank)
        try:
            yield
        except RateLimitedError as error:
            self._pause(error.retry_after)
            raise
        else:
            if first:
                self.concurrency.succeeded(anyio.current_time())
        finally:
            self.in_flight -= 1
            self._admit()

    def _pause(self, retry_after: float | None) -> None:
        """Keep the whole account off the wire: the other calls would be refused as well."""
        now = anyio.current_time()
        self.concurrency.limited(now, retry_after)
        if retry_after and now + retry_after > (self._paused_until or 0.0):
            self._paused_until = now + retry_after
            call_later(retry_after, partial(self._resume, self._paused_until))

    def _resume(self, until: float) -> None:
        # By the timer, not by the clock, which may be a tick short of it; a longer pause has its own timer.
        if self._paused_until == until:
            self._paused_until = None
            self._admit()

    async def _enter(self, rank: Priority) -> None:
        if not self._queue and self._open():
            self._take()
            return
        entry = _Entry(int(rank), next(self._order))
        heapq.heappush(self._queue, entry)
        try:
            await entry.admitted.wait()
        except BaseException:
            entry.abandoned = True
            if entry.admitted.is_set():
                self.in_flight -= 1
            self._admit()
            raise

    def _open(self) -> bool:
        return self.in_flight < self.concurrency.limit and self._paused_until is None

    def _take(self) -> None:
        self.in_flight += 1
        self.concurrency.sent(self.in_flight)

    def _admit(self) -> None:
        while self._queue and self._queue[0].abandoned:
            heapq.heappop(self._queue)
        while self._queue and self._open():
            entry = heapq.heappop(self._queue)
            if not entry.abandoned:
                self._take()
                entry.admitted.set()

    async def aclose(self) -> None:
        return


@final
class _Entry:
    """One call in the queue; one that is cancelled stays until its turn, as taking it out costs a search."""

    __slots__ = ("_key", "abandoned", "admitted")

    def __init__(self, rank: int, order: int) -> None:
        self._key = (rank, order)
        self.admitted = anyio.Event()
        self.abandoned = False

    def __lt__(self, other: _Entry) -> bool:
        return self._key < other._key


def admitter(runtime: Runtime, account: Account) -> Admitter:
    """Return the account's admitter under the limits that hold now; on the runtime's thread."""
    found = runtime.resource((Admitter, account), Admitter)
    limits = given_limits(account)
    if limits is not None:
        found.apply(limits)
    return found
