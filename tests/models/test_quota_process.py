"""Quotas of a real provider in a process of its own: windows of one second, so that two percent are whole requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import pytest

from afnio.models.openai import AsyncOpenAI
from afnio.runtime import Limits
from afnio.testing import Provider, Quota

REQUESTS = 200
TOKENS = 20_000
"""In one window of a second."""
FULL = 0.95 if "AFNIO_NIGHTLY" in os.environ else 0.8
"""The share of a window that must be used: other tests take time from the client when they run beside it."""
MOST = 1.02 if "AFNIO_NIGHTLY" in os.environ else 1.15
"""The share of a window that may be used: a client that other tests held up sends what was due in one burst."""


def ask(
    quota: Quota, calls: int, *, limits: Limits | None = None, models: str = "m", key: str
) -> dict[str, Any]:
    """Make `calls` calls at once; returns what the provider saw."""
    with Provider.process(latency=0.1, quota=quota, reply="ok") as provider:
        client = AsyncOpenAI(api_key=key, base_url=provider.base_url, limits=limits)

        async def one(number: int) -> None:
            message = {"role": "user", "content": f"{number} " + "word " * 10}
            await client.achat(messages=[message], model=models[number % len(models)], max_tokens=80)

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(calls):
                    tasks.start_soon(one, number)

        anyio.run(main)
        return provider.stats()


WORKER = """
import json
import sys

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI

url, name, calls, limit = sys.argv[1:]
limits = afnio.Limits(requests_per_minute=int(limit)) if int(limit) else None
client = AsyncOpenAI(base_url=url, api_key="shared", limits=limits)
asked = [{"role": "user", "content": [afnio.Variable("{word}", role="message")]}]
words = {"word": [f"{name} {number}" for number in range(int(calls))]}
with afnio.tolerate(quorum=0.01):
    data = cog.functional.chat_completion(client, asked, words, model="m").data
print(json.dumps(sum(reply is not None for reply in data)))
"""


def share(
    quota: Quota, calls: int, *, processes: int, limit: int, cwd: Path
) -> tuple[list[int], dict[str, Any]]:
    """Make `calls` calls in each of some processes with one key; returns how many each had answered, and the stats."""
    with Provider.process(latency=0.05, quota=quota, reply="ok") as provider:
        command = [sys.executable, "-c", WORKER, provider.base_url]
        started = [
            subprocess.Popen([*command, str(n), str(calls), str(limit)], stdout=subprocess.PIPE, cwd=cwd)
            for n in range(processes)
        ]
        said = [process.communicate(timeout=100)[0] for process in started]
        return [json.loads(text) for text in said], provider.stats()


def used(stats: dict[str, Any], what: str, *, skip: int = 2) -> float:
    """Return what most windows held, without ramp-up and tail."""
    return median(window[what] for window in stats["windows"][skip:-1])


@pytest.mark.slow
def test_given_requests() -> None:
    """A pace that was given holds in every window, and nobody is refused."""
    stats = ask(
        Quota(requests=REQUESTS, window=1.0), 1_000, limits=Limits(requests_per_minute=60 * REQUESTS), key="a"
    )
    assert stats["sent_429"] == 0
    assert stats["worst_window"]["requests"] <= MOST * REQUESTS
    assert used(stats, "requests") >= FULL * REQUESTS


@pytest.mark.nightly
def test_given_tokens() -> None:
    """So does one of tokens, as the provider counts them."""
    stats = ask(
        Quota(tokens=TOKENS, window=1.0), 1_000, limits=Limits(tokens_per_minute=60 * TOKENS), key="b"
    )
    assert stats["sent_429"] == 0
    assert stats["worst_window"]["tokens"] <= MOST * TOKENS
    assert used(stats, "tokens") >= FULL * TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["bucket", pytest.param("sliding", marks=pytest.mark.nightly)])
def test_learnt(shape: Any) -> None:
    """Without limits the headers of the first replies tell them, requests and tokens."""
    quota = Quota(requests=REQUESTS, tokens=TOKENS, window=1.0, shape=shape)
    stats = ask(quota, 1_000, key=shape)
    assert stats["sent_429"] == 0
    assert stats["worst_window"]["requests"] <= MOST * REQUESTS
    assert stats["worst_window"]["tokens"] <= MOST * TOKENS
    assert used(stats, "requests") >= FULL * REQUESTS


@pytest.mark.nightly
def test_halved_midway() -> None:
    """After the quota halves the pace settles within two windows."""
    stats = ask(Quota(requests=REQUESTS, window=1.0, halve_after=500), 900, key="c")
    assert stats["sent_429"] == 0
    windows = [window["requests"] for window in stats["windows"]]
    halved = next(n for n in range(len(windows)) if sum(windows[: n + 1]) > 500)
    settled = windows[halved + 2 : -1]
    assert settled
    assert max(settled) <= MOST * REQUESTS / 2 + 1
    assert median(settled) >= FULL * REQUESTS / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "headers"),
    [
        pytest.param(2_000, True, marks=pytest.mark.nightly),
        pytest.param(2_000, False, marks=pytest.mark.nightly),
        pytest.param(0, False, marks=pytest.mark.nightly),
    ],
)
def test_processes_share_a_key(limit: int, headers: bool, tmp_path: Path) -> None:
    """Three processes lose nothing, be they given the whole quota or none, be they told of it or not."""
    quota = Quota(requests=100, window=3.0, shape="sliding", headers=headers, retry_after=0.05)
    answered, stats = share(quota, 100, processes=3, limit=limit, cwd=tmp_path)
    assert answered == [100] * 3
    assert stats["sent_429"] <= 300


@pytest.mark.nightly
def test_a_quota_that_nobody_tells(tmp_path: Path) -> None:
    """Without limits and without headers all are answered, although refusals outnumber the retries of an outage."""
    quota = Quota(requests=50, window=2.0, headers=False)
    answered, stats = share(quota, 400, processes=1, limit=0, cwd=tmp_path)
    assert answered == [400]
    assert stats["sent_429"] <= 400
