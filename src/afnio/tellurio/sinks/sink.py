"""Sink: an event stream's end in a thread of its own, so that a slow system doesn't hold up the engine."""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from afnio.runtime.events import subscribe, subscribed
from afnio.tellurio.run_events import RunEnded

BATCH: Final = 1_000
"""Events that are handed over at once, at most."""
BACKLOG: Final = 100_000
"""Events that may wait; more are dropped, but for the run's end, with one warning, as memory is not endless."""


class Moment(NamedTuple):
    """An event and when it came, in nanoseconds since 1970."""

    time: int
    event: Any


class Sink(ABC):
    """Base of sinks: write `take`, which gets events in batches, in order, on the sink's thread.

    An exception of `take` costs one warning; events go on being handed over. A forked child's events are not
    told, as the thread is the parent's.

    Args:
        process_wide: as a block, hear everything that the process launches while the block is open, not only
            what is launched in it.
    """

    def __init__(self, *, process_wide: bool = False) -> None:
        # Its put never waits.
        self._queue: SimpleQueue[Moment | threading.Event | None] = SimpleQueue()
        self._warned = False
        self._closed = False
        self._process_wide = process_wide
        self._pid = os.getpid()
        self._block = ExitStack()
        self._thread = threading.Thread(target=self._run, name=f"afnio-{type(self).__name__}", daemon=True)
        self._thread.start()

    @abstractmethod
    def take(self, moments: Sequence[Moment]) -> None:
        """Tell of some events."""

    def end(self) -> None:  # noqa: B027 - most have nothing to end
        """Let go of what the sink holds, on its thread, after the last event."""

    def __call__(self, event: Any) -> None:
        """Have `event` told; never waits."""
        self.at(time.time_ns(), event)

    def at(self, moment: int, event: Any) -> None:
        """Have `event` told, which came at `moment`, in nanoseconds since 1970."""
        if self._closed or self._pid != os.getpid():
            return
        if self._queue.qsize() >= BACKLOG and not isinstance(event, RunEnded):
            self._warn(f"it is {BACKLOG:,} events behind, so some are left out")
            return
        self._queue.put(Moment(moment, event))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that came so far is told."""
        reached = threading.Event()
        self._queue.put(reached)
        while self._thread.is_alive() and not reached.wait(0.5 if timeout is None else timeout):
            if timeout is not None:
                return

    def close(self, timeout: float | None = None) -> None:
        """Tell what is waiting and end the sink; events after that are dropped."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        if self._process_wide:
            self._block.callback(subscribe(self))
        else:
            self._block.enter_context(subscribed(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._block.close()
        self.close()

    def _run(self) -> None:
        while True:
            batch, flushed, closing = self._next()
            self._guarded(lambda moments=batch: self.take(moments) if moments else None)
            for event in flushed:
                event.set()
            if closing:
                self._guarded(self.end)
                return

    def _next(self) -> tuple[list[Moment], list[threading.Event], bool]:
        batch: list[Moment] = []
        flushed: list[threading.Event] = []
        item = self._queue.get()
        while True:
            if item is None:
                return batch, flushed, True
            if isinstance(item, Moment):
                batch.append(item)
            else:
                flushed.append(item)
            if flushed or len(batch) >= BATCH:
                return batch, flushed, False
            try:
                item = self._queue.get_nowait()
            except Empty:
                return batch, flushed, False

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            logging.getLogger("afnio").warning(
                "%s misses events (%s); further ones are left out without a word", type(self).__name__, reason
            )
