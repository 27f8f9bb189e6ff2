"""Replicas: how evenly two of them share a batch, and what is lost when one dies.

The providers are processes of their own. A share is that of the busier replica by half of the calls: 1 is even.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider
from benchmarks.report import Claim, show

LATENCY = 0.02
SATURATED, LIGHT = 1.10, 1.15
"""The busier replica's share by an even one: all calls pending at once, and 20 at a time."""
NOBODY = "http://127.0.0.1:9/v1"
COLUMNS = ["what", "calls", "first", "second", "busier / even", "lost", "wall s"]


class Asks(cog.Module):
    """One call for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.text = afnio.Variable("{text}", role="input")

    def forward(self, client: AsyncOpenAI, text: Any) -> Any:
        messages = [{"role": "user", "content": [self.text]}]
        return cog.functional.chat_completion(client, messages, {"text": text}, model="m")


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    calls = 2_000
    rows = [row for _ in range(3 if full else 1) for row in (share(calls), share(calls, pending=20))]
    lost = [dead_from_the_start(calls), killed(calls)]
    claims = [
        Claim("replicas, 2,000 pending: busier / even", max(row[4] for row in rows[::2]), SATURATED),
        Claim("replicas, 20 at a time: busier / even", max(row[4] for row in rows[1::2]), LIGHT),
        Claim("replicas, one dead from the start: calls lost", float(lost[0][5]), 0.0),
        Claim("replicas, one killed and restarted: calls lost", float(lost[1][5]), 0.0),
    ]
    notes = [f"two providers, {LATENCY} s latency, one prompt; shares with at most 64 in flight at each"]
    show("replicas", COLUMNS, [*rows, *lost], notes, claims)
    return claims


def share(calls: int, *, pending: int | None = None) -> list[Any]:
    """Return a row: all calls at once, or `pending` at a time."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(Provider.process(latency=LATENCY)) for _ in range(2)]
        limits = afnio.Limits(max_in_flight=64)
        client = _client(*(replica.base_url for replica in replicas), limits=limits)
        begun = time.perf_counter()
        lost = _run(client, calls, pending)
        wall = time.perf_counter() - begun
        shares = [replica.stats()["requests"] for replica in replicas]
    what = "all at once" if pending is None else f"{pending} at a time"
    return [what, calls, *shares, 2 * max(shares) / sum(shares), lost, wall]


def dead_from_the_start(calls: int) -> list[Any]:
    """Return a row: nothing listens at the first URL."""
    with Provider.process(latency=LATENCY) as well:
        client = _client(NOBODY, well.base_url)
        begun = time.perf_counter()
        lost = _run(client, calls, None)
        wall = time.perf_counter() - begun
        return ["one dead from the start", calls, 0, well.stats()["requests"], None, lost, wall]


def killed(calls: int) -> list[Any]:
    """Return a row: kill -9 of the first after a tenth of the calls, and a new one at its port after half of them."""
    with Provider.process(latency=LATENCY) as well, _provider() as (first, url), ExitStack() as stack:
        client = _client(url, well.base_url, limits=afnio.Limits(max_in_flight=16))
        port = url.rpartition(":")[2].partition("/")[0]

        def disturb() -> None:
            _until(lambda: well.stats()["requests"] >= calls // 10)
            first.send_signal(signal.SIGKILL)
            first.wait()
            _until(lambda: well.stats()["requests"] >= calls // 4)
            stack.enter_context(_provider("--port", port))

        thread = threading.Thread(target=disturb)
        thread.start()
        begun = time.perf_counter()
        lost = _run(client, calls, None)
        wall = time.perf_counter() - begun
        thread.join()
        others = well.stats()["requests"]
        return ["one killed and restarted", calls, calls - others, others, None, lost, wall]


def _run(client: AsyncOpenAI, calls: int, pending: int | None) -> int:
    """Make the calls; return how many failed."""
    texts = [f"text {number}" for number in range(calls)]
    results = Asks().stream(texts, client, max_pending=pending or calls)
    return sum(result.error is not None for result in results)


_names = iter(range(1_000))


def _client(*urls: str, **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=list(urls), name=f"bench {next(_names)}", api_key="any", **options)


def _until(true: Any) -> None:
    while not true():
        time.sleep(0.01)


@contextmanager
def _provider(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "afnio.cli", "provider", "--latency", str(LATENCY), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        yield process, "http" + line.partition("http")[2].split('"')[0].strip()
        process.stdin.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    main(full=parser.parse_args().full)
