"""A real service process: clients that disconnect, and training behind the same limit."""

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

from afnio.testing import Provider


@contextmanager
def service(base_url: str, training: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "app:app", "--port", "0", "--host", "127.0.0.1"],
        cwd=Path(__file__).parent,
        env={**os.environ, "BASE_URL": base_url, "TRAINING": str(training)},
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
        process.communicate(timeout=20)


async def test_disconnected_clients_leave_no_call() -> None:
    """Clients that go away mid-call leave no launch and no call; those that stay get their replies."""
    with Provider.process(latency=0.3) as provider, service(provider.base_url) as (url, _):
        async with aiohttp.ClientSession() as session:
            answers: list[str] = []

            async def ask(number: int) -> None:
                with anyio.move_on_after(0.05 if number % 2 else 20):
                    async with session.get(f"{url}/answer", params={"text": f"hello {number}"}) as response:
                        answers.append((await response.json())["reply"])

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(ask, number)
            assert 20 == len(answers)
            assert all(answers)
            with anyio.fail_after(20):
                while True:
                    async with session.get(f"{url}/state") as response:
                        if await response.json() == {"launches": 0, "calls": 0}:
                            break


async def test_serving_goes_before_ten_thousand_training_calls() -> None:
    """Behind 10,000 queued training calls of the same account a request waits for its turn, not for the queue."""
    latency = 0.05
    with Provider.process(latency=latency) as provider:
        with service(provider.base_url, training=10_000) as (url, process):
            async with aiohttp.ClientSession() as session:
                took = []
                for number in range(10):
                    started = time.monotonic()
                    async with session.get(f"{url}/answer", params={"text": f"hello {number}"}) as response:
                        assert (await response.json())["reply"]
                    took.append(time.monotonic() - started)
                assert process.poll() is None
    # Its own latency and at most that of the call whose place it takes; the queue alone would take minutes.
    assert statistics.median(took) < 6 * latency, took
