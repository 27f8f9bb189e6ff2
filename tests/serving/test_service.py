"""The example service as a real process: clients that disconnect, and training behind the same limit."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import anyio
import pytest

from afnio.testing import Provider

pytest.importorskip("fastapi", reason="fastapi is not installed")
EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def service(base_url: str, samples: int, steps: int = 1) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Serve `examples/service.py` by uvicorn; how many calls a training step has, and how many steps."""
    environment = {
        "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "any", "IN_FLIGHT": "4",
        "TRAINING_SAMPLES": str(samples), "TRAINING_STEPS": str(steps),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "service:app", "--port", "0", "--host", "127.0.0.1"],
        cwd=EXAMPLES,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            found = re.search(r"running on (http://\S+)", line)
            if found:
                yield found[1], process
                break
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


async def ask(session: aiohttp.ClientSession, url: str, text: str) -> str:
    async with session.get(f"{url}/answer", params={"text": text}) as response:
        return (await response.json())["reply"]


async def until_idle(session: aiohttp.ClientSession, url: str, steps: int) -> None:
    with anyio.fail_after(60):
        while True:
            async with session.get(f"{url}/state") as response:
                if await response.json() == {"launches": 0, "calls": 0, "steps": steps}:
                    return


async def test_disconnected_clients_leave_no_call() -> None:
    """Clients that go away mid-call leave no launch and no call; those that stay get their replies."""
    with Provider.process(latency=0.3) as provider, service(provider.base_url, 0, steps=0) as (url, _):
        async with aiohttp.ClientSession() as session:
            answers: list[str] = []

            async def one(number: int) -> None:
                with anyio.move_on_after(0.05 if number % 2 else 20):
                    answers.append(await ask(session, url, f"hello {number}"))

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(one, number)
            assert len(answers) == 20
            assert all(answers)
            await until_idle(session, url, steps=0)


async def test_training_goes_on_beside_the_service() -> None:
    """It takes its steps, and requests then see the new prompt."""
    with Provider.process() as provider, service(provider.base_url, 20, steps=2) as (url, _):
        async with aiohttp.ClientSession() as session:
            await until_idle(session, url, steps=2)
            assert await ask(session, url, "I am thrilled.") == "positive"


async def seconds_of_a_request(samples: int, latency: float) -> float:
    """Return the median of 12 requests, all of them answered before the step of `samples` calls has ended."""
    with (
        Provider.process(latency=latency) as provider,
        service(provider.base_url, samples, steps=1 if samples else 0) as (url, process),
    ):
        async with aiohttp.ClientSession() as session:
            seconds = []
            for number in range(12):
                started = time.monotonic()
                assert await ask(session, url, f"hello {number}")
                seconds.append(time.monotonic() - started)
            async with session.get(f"{url}/state") as response:
                state = await response.json()
            assert process.poll() is None
            # Most of it is still to come: 2,000 calls of 50 ms, four at a time, take 25 seconds.
            assert (samples > 0) == (state["calls"] > samples / 2)
    return statistics.median(seconds)


async def test_serving_goes_before_training() -> None:
    """Behind queued training calls of the same account a request waits for a place, not for the queue."""
    await seconds_of_a_request(2_000, latency=0.05)


@pytest.mark.nightly
async def test_serving_waits_for_one_place() -> None:
    """Behind 10,000 calls too: its own latency and at most that of the call whose place it takes."""
    latency = 0.05
    alone = await seconds_of_a_request(0, latency)
    assert await seconds_of_a_request(10_000, latency) < alone + 3 * latency
