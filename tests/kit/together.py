"""Waiting for others: until so many requests are under way at once, or until something is true."""

from __future__ import annotations

from collections.abc import Callable

import anyio


class Together:
    """Await it in a ScriptedClient's script: the first `count` requests go on when all of them are there."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._all: anyio.Event | None = None

    async def __call__(self) -> None:
        if self._all is None:  # on the loop that answers
            self._all = anyio.Event()
        self._left -= 1
        if self._left == 0:
            self._all.set()
        elif self._left > 0:
            with anyio.fail_after(60):
                await self._all.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` is true, as long as a busy machine takes."""
    with anyio.fail_after(60):
        while not condition():
            await anyio.sleep(0.01)
