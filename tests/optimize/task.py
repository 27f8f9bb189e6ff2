"""A task without a network: an agent whose prompt has a number, and a critic that raises it."""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread

import afnio
from afnio.models import ChatRequest
from afnio.testing import ScriptedClient

STEP = 2


def rows(count: int) -> list[tuple[str, str]]:
    """Rows 0, 1, 2, …; the agent is right on a row if the row's number modulo 10 is below the prompt's number."""
    return [(f"row {number}", "yes") for number in range(count)]


def level(prompt: str) -> int:
    found = re.search(r"level (\d+)", prompt)
    return int(found[1]) if found else 0


def is_right(row: str, prompt: str) -> bool:
    return int(row.split()[1]) % 10 < level(prompt)


def answer(request: ChatRequest) -> Any:
    """Answer as the student, the critic or the proposer; the proposer raises the level by `STEP`."""
    system, user = (str(message.get("content")) for message in (*request.messages, {"content": ""})[:2])
    if "critic of a system" in system:
        return {"feedback": [{"variable": "v1", "text": "Raise the level."}]}
    if system.startswith("level "):
        return "yes" if is_right(user, system) else "no"
    found = re.search(r"level (\d+)", json.dumps(list(request.messages)))
    assert found is not None, request.messages
    text = f"level {min(10, int(found[1]) + STEP)}"
    return {"edits": [{"op": "replace", "block": 1, "text": text, "samples": [1]}]}


def client(**options: Any) -> ScriptedClient:
    return ScriptedClient(answer, **options)


def agent_of(model: ScriptedClient) -> Any:
    async def agent(text: str, system: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        return (await model.achat(messages=messages, model="student")).content

    return agent


def equal(output: str, expected: str) -> bool:
    return output == expected


def optimized(model: ScriptedClient | None = None, count: int = 100, **changes: Any) -> afnio.Result:
    """Optimize the agent on `count` rows, with these changes of the arguments."""
    model = client() if model is None else model
    given: dict[str, Any] = {
        "agent": agent_of(model),
        "rows": rows(count),
        "metric": equal,
        "prompts": {"system": "level 2"},
        "critic": (model, "critic"),
        "budget": afnio.budget(max_calls=400),
    }
    return afnio.optimize(**given | changes)


async def check_killed(cut: int, optimize: Callable[..., afnio.Result]) -> tuple[afnio.Result, afnio.Result]:
    """Optimize once undisturbed, and once cut off after `cut` replies and started again; return both results.

    Both get as many replies.
    """
    answered, begun = 0, threading.Event()

    def mortal(most: float) -> ScriptedClient:
        async def reply(request: ChatRequest) -> Any:
            nonlocal answered
            if answered >= most:
                begun.set()
                await anyio.sleep_forever()
            answered += 1
            return answer(request)

        return ScriptedClient(reply)

    async def awaited(most: float, **changes: Any) -> afnio.Result:
        return await optimize(mortal(most), **changes)

    expected = await awaited(math.inf, name="whole")
    whole, answered = answered, 0
    assert cut < whole
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(awaited, cut)
        await anyio.to_thread.run_sync(begun.wait)
        tasks.cancel_scope.cancel()
    result = await awaited(math.inf)
    assert answered == whole == result.calls
    return expected, result
