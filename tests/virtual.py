"""A runtime whose loop has a virtual clock: when nothing is ready, time jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from afnio.runtime import runtime as module


class _Selector(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        found = super().select(0)
        if not found:
            self.loop.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An asyncio loop for work on its own thread alone: what other threads do takes no time."""

    def __init__(self) -> None:
        self.now = 0.0
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
    before, module._default = module._default, runtime
    try:
        yield loop
    finally:
        module._default = before
        runtime.close()
