"""Sink thread: hands a run's events to the user's sinks, in order, off the event loop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

from afnio.tellurio.redaction import Redaction
from afnio.tellurio.run_events import RunEnded

Sink: TypeAlias = Callable[[Any], object]
"""Gets every event of a run. If it has a `close()`, that is called after the last one; if it has an
`at(time, event)`, that is called instead, with nanoseconds since 1970."""

ROOM: Final = 20_000
"""Events that may wait for slow sinks; what comes then is left out for them, but for the run's end."""


class SinkThread:
    """Calls each sink with each event, one after the other, in one thread.

    A sink that fails is reported once and goes on being called; it stops neither the others nor the run.

    >>> seen = []
    >>> thread = SinkThread([seen.append], Redaction(None))
    >>> thread.put("event")
    >>> thread.close()
    >>> seen
    ['event']
    """

    def __init__(self, sinks: Sequence[Sink], redaction: Redaction) -> None:
        for sink in sinks:
            if not callable(sink):
                raise TypeError(f"a sink is a function of an event (got {sink!r})")
        self._sinks = list(sinks)
        self._redaction = redaction
        self._failed: set[int] = set()
        self._dropped = False
        self._pid = os.getpid()
        self._queue: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._sinks:
            self._thread = threading.Thread(target=self._run, name="afnio-sinks", daemon=True)
            self._thread.start()

    def put(self, event: Any) -> None:
        """Have the sinks called soon; never waits. In a forked child they aren't."""
        if self._thread is None or self._pid != os.getpid():
            return
        # How the run ended is told in any case, or a sink would take it for completed.
        if self._queue.qsize() < ROOM or isinstance(event, RunEnded):
            self._queue.put((time.time_ns(), event))
        elif not self._dropped:
            self._dropped = True
            logging.getLogger("afnio").warning(
                "The sinks of a run are too slow; events are left out for them."
            )

    def close(self, timeout: float | None = None) -> None:
        """Wait until the sinks had everything, and close them."""
        if self._thread is not None and self._pid == os.getpid():
            thread, self._thread = self._thread, None
            self._queue.put(None)
            thread.join(timeout)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            moment, event = item[0], self._redaction.value(item[1])
            for number, sink in enumerate(self._sinks):
                timed = getattr(sink, "at", None)
                self._call(number, partial(timed, moment, event) if callable(timed) else partial(sink, event))
        for number, sink in enumerate(self._sinks):
            close = getattr(sink, "close", None)
            if callable(close):
                self._call(number, close)

    def _call(self, number: int, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            if number not in self._failed:
                self._failed.add(number)
                logging.getLogger("afnio").exception(
                    "the sink %r failed; it goes on being called, and this is said once", self._sinks[number]
                )
