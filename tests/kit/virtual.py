"""A runtime whose loop has a virtual clock: when nothing is ready, time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from afnio.runtime import _callables
from afnio.runtime import _kernel as module


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(0)
        # A worker thread is given the time that it needs, but not for ever: it may be waiting for this loop.
        for _ in range(50):
            if found or not self.loop.busy():
                break
            found = super().select(0.001)
        if not found:
            self.loop.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop on which nothing but timers takes time, also not what worker threads do."""

    def __init__(self) -> None:
        self.now = 0.0
        self.busy: Callable[[], bool] = lambda: False
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


@contextmanager
def virtual_runtime() -> Iterator[VirtualLoop]:
    """Have what is launched in the block run on a virtual clock, which the loop's `now` shows."""
    loop = VirtualLoop()
    with patch.object(asyncio, "new_event_loop", lambda: loop):
        runtime = module.Runtime()
    threads = _callables._threads(runtime)
    loop.busy = lambda: bool(threads.busy)
    before, module._default = module._default, runtime
    try:
        yield loop
    finally:
        module._default = before
        runtime.close()
