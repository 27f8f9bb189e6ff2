"""Admission: one admitter for each account decides which call goes on the wire next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from typing import Final, final

import anyio

from afnio.errors import RateLimitedError
from afnio.runtime.concurrency import Concurrency
from afnio.runtime.limits import Account, Limits
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
        self._queue: list[tuple[int, int, anyio.Event]] = []
        self._order = itertools.count()
        self._paused_until = 0.0

    def apply(self, limits: Limits) -> None:
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
            now = anyio.current_time()
            self.concurrency.limited(now, error.retry_after)
            # The whole account pauses: the other workers would be refused as well.
            self._paused_until = max(self._paused_until, now + (error.retry_after or 0.0))
            raise
        else:
            if first:
                self.concurrency.succeeded(anyio.current_time())
        finally:
            self.in_flight -= 1
            self._admit()

    async def _enter(self, rank: Priority) -> None:
        if not self._queue and self._open():
            self._take()
            return
        event = anyio.Event()
        entry = (int(rank), next(self._order), event)
        heapq.heappush(self._queue, entry)
        try:
            while not event.is_set():
                pause = self._paused_until - anyio.current_time()
                if pause <= 0:
                    await event.wait()
                    continue
                with anyio.move_on_after(pause):
                    await event.wait()
                self._admit()
        except BaseException:
            if event.is_set():
                self.in_flight -= 1
                self._admit()
            else:
                self._queue.remove(entry)
                heapq.heapify(self._queue)
            raise

    def _open(self) -> bool:
        return self.in_flight < self.concurrency.limit and anyio.current_time() >= self._paused_until

    def _take(self) -> None:
        self.in_flight += 1
        self.concurrency.sent(self.in_flight)

    def _admit(self) -> None:
        while self._queue and self._open():
            _, _, event = heapq.heappop(self._queue)
            self._take()
            event.set()

    async def aclose(self) -> None:
        return


def admitter(runtime: Runtime, account: Account) -> Admitter:
    """Return the account's admitter; on the runtime's thread."""
    return runtime.resource((Admitter, account), Admitter)
