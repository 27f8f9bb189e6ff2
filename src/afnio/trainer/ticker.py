"""Ticker: a thread that does something again and again."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import final


@final
class Ticker:
    """Calls `tick` every `period` seconds, in a thread of its own with the caller's context, until `stop`."""

    def __init__(self, tick: Callable[[], object], period: float) -> None:
        self._tick = tick
        self._period = period
        self._stopped = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="afnio progress", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            self._tick()
