"""The gateway under four client processes: calls/s and its CPU time a call, and one quota for all of them.

The clients and the provider are processes of their own on the same machine. So on two cores calls/s are what is left
of it, and the gateway's CPU time is the figure to trust; it comes from the gateway's own metrics page.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

from afnio.testing import Provider, Quota
from benchmarks.child import run
from benchmarks.children.texts import REPLY
from benchmarks.quota import LATENCY, REPLY_TOKENS, USED, WINDOW, WORST, used_share
from benchmarks.report import Claim, show

CLIENTS = 4
SPEED, BARE, JOURNALED = 1_000.0, 0.5, 0.7
"""Calls/s, and ms of the gateway's CPU time a call without and with a journal."""
COLUMNS = ["journal", "calls", "in flight", "calls/s", "CPU ms/call", "failed"]
QUOTA_COLUMNS = ["calls", "limit a window", "worst window", "used", "429s", "wall s"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the tables and return the claims."""
    claims = compare(calls=6_000 if full else 3_000, in_flight=400, repeats=5 if full else 2)
    return claims + share(calls=5_000 if full else 900, in_window=500 if full else 150)


def compare(*, calls: int, in_flight: int, repeats: int) -> list[Claim]:
    """Measure calls/s and CPU time with and without a journal, the best of `repeats`."""
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    with Provider.process(latency=0.02, reply=REPLY) as provider:
        for journaled in (False, True):
            found = [_once(provider.base_url, calls, in_flight, journaled) for _ in range(repeats)]
            speed, cpu = max(row[0] for row in found), min(row[1] for row in found)
            rows.append(
                ["yes" if journaled else "no", calls, in_flight, speed, cpu, sum(row[2] for row in found)]
            )
            kind = "with a journal" if journaled else "without a journal"
            claims += [
                Claim(f"gateway, {kind}: calls/s of {CLIENTS} clients", speed, SPEED, at_least=True),
                Claim(f"gateway, {kind}: CPU ms/call", cpu, JOURNALED if journaled else BARE),
            ]
    notes = [f"{CLIENTS} client processes, distinct requests of 2 kB, latency 0.02 s; the best of {repeats}"]
    show("gateway", COLUMNS, rows, notes, claims)
    return claims


def share(*, calls: int, in_window: int) -> list[Claim]:
    """Let the clients share a quota that the gateway was given."""
    quota = Quota(window=WINDOW, requests=in_window)
    with Provider.process(latency=LATENCY, reply=REPLY, quota=quota) as provider:
        with _gateway(provider.base_url, "--rpm", str(round(in_window * 60 / WINDOW))) as (url, _):
            results = _load(url, calls, 200)
        stats = provider.stats()
    worst, used = (
        stats["worst_window"]["requests"] / in_window,
        used_share(stats["windows"], "requests", in_window),
    )
    claims = [
        Claim("gateway, one quota for all: worst window / limit", worst, WORST),
        Claim("gateway, one quota for all: used without ramp-up and tail", used, USED, at_least=True),
        Claim("gateway, one quota for all: 429s", float(stats["sent_429"]), 0.0),
        Claim("gateway, one quota for all: calls that failed", float(sum(r["others"] for r in results)), 0.0),
    ]
    wall = max(result["wall"] for result in results)
    row = [calls, in_window, stats["worst_window"]["requests"], used, stats["sent_429"], wall]
    show(
        "gateway-quota",
        QUOTA_COLUMNS,
        [row],
        [f"{CLIENTS} client processes, windows of {WINDOW:g} s"],
        claims,
    )
    return claims


def _once(upstream: str, calls: int, in_flight: int, journaled: bool) -> tuple[float, float, int]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--journal", str(Path(folder) / "calls.journal")] if journaled else []
        with _gateway(upstream, "--max-in-flight", str(in_flight), *arguments) as (url, metrics):
            _load(url, 200, in_flight, first=-1_000)  # imports and connections
            before = _cpu(metrics)
            results = _load(url, calls, in_flight)
            cpu = _cpu(metrics) - before
    wall = max(result["wall"] for result in results)
    return calls / wall, cpu / calls * 1e3, sum(result["others"] for result in results)


def _load(url: str, calls: int, in_flight: int, *, first: int = 0) -> list[dict[str, Any]]:
    each = calls // CLIENTS

    def client(number: int) -> dict[str, Any]:
        return run(
            "benchmarks.children.gateway_client",
            base_url=url,
            first=first + number * each,
            calls=each,
            in_flight=in_flight // CLIENTS,
            most=REPLY_TOKENS,
        )

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(client, range(CLIENTS)))


@contextmanager
def _gateway(upstream: str, *arguments: str) -> Iterator[tuple[str, str]]:
    command = [
        sys.executable,
        "-m",
        "afnio.cli",
        "gateway",
        "--port",
        "0",
        "--upstream",
        upstream,
        *arguments,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url, metrics = (process.stdout.readline().split()[0] for _ in range(2))
        try:
            yield url, metrics
        finally:
            process.terminate()


def _cpu(metrics: str) -> float:
    with build_opener(ProxyHandler({})).open(metrics, timeout=30) as response:
        found = re.search(r"^process_cpu_seconds_total (\S+)$", response.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3_000)
    parser.add_argument("--in-flight", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    compare(calls=given.calls, in_flight=given.in_flight, repeats=given.repeats)
    share(calls=900, in_window=150)
