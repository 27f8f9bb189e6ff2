"""Many waiters, many threads, many steps: right answers, nothing left behind, memory flat."""

from __future__ import annotations

import gc
import json
import threading
from typing import Any

import anyio
import psutil
import pytest

import afnio
import afnio.cognitive as cog
from afnio.runtime import current_runtime
from afnio.runtime._kernel import Job, Launch, Slot
from afnio.testing import ScriptedClient

TEMPLATE = afnio.Variable("{x}", role="template")


def ask(client: ScriptedClient, x: Any) -> afnio.Variable:
    messages = [{"role": "user", "content": [TEMPLATE]}]
    return afnio.cognitive.functional.chat_completion(client, messages, {"x": x}, model="m").map(str.upper)


def echo() -> ScriptedClient:
    return ScriptedClient(
        lambda request: request.messages[0]["content"], limits=afnio.Limits(max_in_flight=64)
    )


def alive() -> int:
    """Count the runtime's objects: pending slots, jobs and launches, once its thread has done what it is at."""
    turn = threading.Event()
    current_runtime().post(turn.set)
    assert turn.wait(60)
    gc.collect()
    return sum(
        isinstance(item, Job | Launch) or (isinstance(item, Slot) and not item.done)
        for item in gc.get_objects()
    )


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_a_thousand_awaits(library: str) -> None:
    """1,000 tasks that await at once get their own answers, and leave no task and no slot."""
    before = alive()
    client, answers = echo(), {}

    async def one(number: int) -> None:
        with afnio.no_grad():
            answers[number] = (await ask(client, f"a{number}")).data

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(one, number)

    anyio.run(main, backend=library)
    assert {number: f"A{number}" for number in range(1000)} == answers
    assert client._open == 0
    assert client.peak <= 64
    assert before == alive()
    assert len(current_runtime().launches) == 0


def test_fifty_threads() -> None:
    """50 threads that read at once get their own answers."""
    before = alive()
    client, answers = echo(), {}

    def one(number: int) -> None:
        answers[number] = ask(client, [f"t{number}", "x"]).data

    threads = [threading.Thread(target=one, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {number: [f"T{number}", "X"] for number in range(50)} == answers
    assert before == alive()


def test_memory_is_flat_over_steps() -> None:
    """150 training steps with momentum need no more memory than 50, without the cyclic collector."""
    replies = {
        "afnio_feedback": json.dumps({"feedback": [{"variable": "v1", "text": "f" * 200}]}),
        "afnio_value": json.dumps({"value": "v" * 500}),
    }

    def reply(request: Any) -> str:
        shape = request.params.get("response_format")
        return "wrong" if shape is None else replies[shape["json_schema"]["name"]]

    client = ScriptedClient(reply)
    prompt = cog.Parameter("p", role="prompt")
    optimizer = afnio.optim.TGD([prompt], client, model="m", momentum=3)
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [TEMPLATE]}]
    inputs = {"x": [f"{number} " + "text " * 200 for number in range(33)]}

    def step() -> None:
        client.requests.clear()
        pred = cog.functional.chat_completion(client, messages, inputs, model="m")
        pred.data = [text.lower() for text in pred.data]
        _, explanation = cog.functional.exact_match_evaluator(pred, ["right"] * 33)
        explanation.backward()
        optimizer.step()
        optimizer.clear_grad()

    process = psutil.Process()
    gc.collect()
    gc.disable()
    try:
        with afnio.set_backward_model_client(client, completion_args={"model": "m"}):
            for _ in range(50):
                step()
            before = process.memory_info().rss
            for _ in range(100):
                step()
            after = process.memory_info().rss
    finally:
        gc.enable()
    assert after - before < 2e6, f"{(after - before) / 1e6:.1f} MB more after 100 steps"


@pytest.mark.timeout(300)
@pytest.mark.nightly
def test_memory_is_flat_over_a_hundred_thousand_awaits() -> None:
    """A service that awaits its agent all day needs no more memory than after its warm-up."""
    left = alive()
    client = echo()
    process = psutil.Process()

    async def serve(count: int, start: int) -> None:
        numbers = iter(range(start, start + count))

        async def worker() -> None:
            for number in numbers:
                reply = await afnio.cognitive.functional.chat_completion(
                    client, [{"role": "user", "content": [TEMPLATE]}], {"x": f"{number}"}, model="m"
                )
                assert reply.data == f"{number}"
                client.requests.clear()

        with afnio.no_grad():
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(worker)

    anyio.run(serve, 20_000, 0)
    before = process.memory_info().rss
    anyio.run(serve, 80_000, 20_000)
    after = process.memory_info().rss
    assert after < before * 1.05, f"{before / 1e6:.1f} MB after warm-up, {after / 1e6:.1f} MB at the end"
    assert left == alive()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_memory_is_flat_over_a_hundred_thousand_calls_over_http() -> None:
    """As above through a real provider process: sessions, connections and replies are let go."""
    from afnio.models.openai import AsyncOpenAI
    from afnio.testing import Provider

    process = psutil.Process()

    async def serve(client: AsyncOpenAI, count: int) -> None:
        numbers = iter(range(count))

        async def worker() -> None:
            for number in numbers:
                messages = [{"role": "user", "content": [TEMPLATE]}]
                assert (
                    await afnio.cognitive.functional.chat_completion(
                        client, messages, {"x": f"{number}"}, model="m"
                    )
                ).data == "ok"

        with afnio.no_grad():
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(worker)

    with Provider.process(reply="ok") as provider:
        client = AsyncOpenAI(
            base_url=provider.base_url, api_key="any", limits=afnio.Limits(max_in_flight=200)
        )
        anyio.run(serve, client, 20_000)
        before = process.memory_info().rss
        anyio.run(serve, client, 80_000)
        after = process.memory_info().rss
    assert after < before * 1.05, f"{before / 1e6:.1f} MB after warm-up, {after / 1e6:.1f} MB at the end"
