"""Priorities: given by name, and kept by the queue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import afnio
from afnio.runtime import current_runtime
from afnio.runtime._replicas import admitter
from afnio.runtime._settings import Priority, current_priority
from afnio.testing import ScriptedClient


def test_names() -> None:
    """A block sets the class for its context; an unknown one is refused with those there are."""
    with afnio.priority("validation"):
        with afnio.priority(Priority.SERVING):
            assert current_priority() is Priority.SERVING
        assert current_priority() is Priority.VALIDATION
    assert current_priority() is Priority.TRAINING
    with pytest.raises(ValueError, match="serving, validation, training .got 'high'"):
        afnio.priority("high")  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.sleep(0.001)


def queued(client: ScriptedClient) -> int:
    """Return how many calls wait for admission."""
    return len(admitter(current_runtime(), client.account)._queue)


def test_serving_goes_first() -> None:
    """Of queued calls of one account those of the serving class go first."""
    order: list[str] = []
    started, go = threading.Event(), threading.Event()

    async def reply(request: Any) -> str:
        order.append(request.messages[0]["content"])
        started.set()
        while not go.is_set():
            await anyio.sleep(0.001)
        return "hi"

    client = ScriptedClient(reply, limits=afnio.Limits(max_in_flight=1))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:

            async def ask(name: str, rank: Any) -> None:
                with afnio.priority(rank):
                    await client.achat(messages=[{"role": "user", "content": name}], model="m")

            tasks.start_soon(ask, "first", "training")
            while not started.is_set():
                await anyio.sleep(0.001)
            for number, name in enumerate(("t1", "t2", "t3"), start=1):
                tasks.start_soon(ask, name, "training")
                await until(lambda number=number: queued(client) == number)
            tasks.start_soon(ask, "served", "serving")
            await until(lambda: queued(client) == 4)
            go.set()

    anyio.run(main)
    assert order == ["first", "served", "t1", "t2", "t3"]
    assert len(client.requests) == 5
