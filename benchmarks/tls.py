"""Chat calls over HTTPS against the same over HTTP: cold and warm pools, large prompts, memory of calls in flight.

The endpoint is `children/endpoint.py`: aiohttp.web with asyncio's TLS, in its own process, with a certificate authority
made for the run. Each run of a caller is a fresh process; the callers take turns. A pool is cold when it has one open
connection: the first `in flight` calls open others. It is warm when as many calls again open no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.child import run
from benchmarks.endpoint import Endpoint, endpoint
from benchmarks.report import Claim, interval, median, show

LATENCY = 0.2
OPENED = "cold opened", "connections"
WARM = 0.95
"""The calls/s over HTTPS as a share of those over HTTP, with warm pools."""
COLD = 1.2
"""Milliseconds of CPU for each of the first 1,000 calls over HTTPS."""
LARGE = 0.8
"""Milliseconds of CPU for a call with a prompt of 200 kB, 64 in flight."""
COLUMNS = [
    "in flight", "by", "journal", "cold s", "cold CPU ms", "opened", "resumed", "calls/s", "x HTTP", "range", "CPU ms",
]  # fmt: skip
BODY_COLUMNS = ["kB", "in flight", "by", "journal", "calls/s", "x HTTP", "CPU ms/call", "range"]
SERVED = "served by aiohttp.web with asyncio's TLS 1.3 in one process, P-256, a certificate authority made for the run"


@dataclass(frozen=True, slots=True)
class Caller:
    """How calls are made."""

    scheme: str
    journal: bool

    def cells(self) -> list[str]:
        return [self.scheme.upper(), "yes" if self.journal else "no"]


CALLERS = [Caller(scheme, journal) for journal in (True, False) for scheme in ("http", "https")]
Rounds = list[dict[str, Any]]


def main(*, full: bool = False) -> list[Claim]:
    """Print the tables and return the claims."""
    rounds = {1000: 7, 4000: 3} if full else {1000: 2, 4000: 1}
    with endpoint() as server:
        claims = pools(server, rounds) + bodies(server, {20: 256, 200: 64}, repeats=7 if full else 1)
        return claims + memory(server, 4000 if full else 1000)


def pools(
    server: Endpoint, rounds: Mapping[int, int], *, waves: int = 2, latency: float = LATENCY
) -> list[Claim]:
    """Measure cold and warm pools.

    Args:
        rounds: how often at each level of calls in flight. A level of one round is measured with the journal only,
            and with one wave.
        waves: the calls of a warm pool, as a multiple of those in flight.
    """
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    for level, repeats in rounds.items():
        callers = CALLERS if repeats > 1 else CALLERS[:2]
        calls = (waves if repeats > 1 else 1) * level
        found = _take_turns(server, callers, repeats, latency=latency, calls=calls, in_flight=level)
        for caller, runs in found.items():
            ratios = _ratios(found, caller)
            rows.append([
                level, *caller.cells(), median([one["cold wall"] for one in runs]),
                median([one["cold cpu"] / level * 1e3 for one in runs]),
                " of ".join(f"{median([one[what] for one in runs]):.0f}" for what in OPENED),
                median([one["resumed"] for one in runs]),
                median([calls / one["wall"] for one in runs]), median(ratios), interval(ratios),
                median([one["cpu"] / calls * 1e3 for one in runs]),
            ])  # fmt: skip
        claims += _pool_claims(rows[-len(callers) :], level)
    taken = ", ".join(f"{repeats} at {level:,}" for level, repeats in rounds.items())
    notes = [
        SERVED,
        f"calls of {latency:g} s in fresh processes, medians of rounds: {taken}; x HTTP is taken within a round",
        "cold: the first `in flight` calls, where one connection is open, and how many of all are open after them",
        "CPU is that of one call; x HTTP compares the calls/s of warm pools",
    ]
    show("calls-tls", COLUMNS, rows, notes, claims)
    return claims


def bodies(
    server: Endpoint, sizes: Mapping[int, int], *, repeats: int, waves: int = 2, latency: float = LATENCY
) -> list[Claim]:
    """Measure large prompts on warm pools; `sizes` are kilobytes, each with its calls in flight."""
    callers = [Caller("http", False), Caller("https", False), Caller("https", True)]
    rows: list[list[Any]] = []
    for size, level in sizes.items():
        calls = waves * level
        options = {"latency": latency, "calls": calls, "in_flight": level, "size": size * 1000}
        found = _take_turns(server, callers, repeats, **options)
        for caller, runs in found.items():
            cpu = [one["cpu"] / calls * 1e3 for one in runs]
            rate = median([calls / one["wall"] for one in runs])
            rows.append(
                [
                    size,
                    level,
                    *caller.cells(),
                    rate,
                    median(_ratios(found, caller)),
                    median(cpu),
                    interval(cpu),
                ]
            )
    large = {row[0]: dict(zip(BODY_COLUMNS, row, strict=True)) for row in rows if row[2:4] == ["HTTPS", "no"]}
    claims = [
        Claim(
            f"CPU ms/call, prompts of {size} kB by HTTPS at {row['in flight']}",
            row["CPU ms/call"],
            LARGE,
            why=f"by HTTP it is {_cell(rows, size, 'HTTP', 'CPU ms/call'):.2g} ms; the rest is TLS",
        )
        for size, row in large.items()
        if size == 200
    ]
    notes = [
        SERVED,
        f"latency {latency:g} s, warm pools, medians of {repeats}; the interval is that of the CPU",
    ]
    show("calls-bodies", BODY_COLUMNS, rows, notes, claims)
    return claims


def memory(server: Endpoint, calls: int) -> list[Claim]:
    """Measure the private memory of each call in flight, its connection included."""
    rows: list[list[Any]] = []
    for scheme in ("http", "https"):
        quick, held = (server.base_url(scheme, latency) for latency in (0.01, 600))
        found = run(
            "benchmarks.children.calls_held", env=server.trust, quick_url=quick, held_url=held,
            counts_port=server.ports["http"], calls=calls,
        )  # fmt: skip
        rows.append([calls, scheme.upper(), found["bytes"] / 1000])
    notes = [
        SERVED,
        "private memory of the process; asyncio's TLS has a buffer of 262 kB for each connection",
    ]
    show("calls-memory", ["in flight", "by", "kB/call"], rows, notes)
    return []


def _take_turns(
    server: Endpoint, callers: Sequence[Caller], repeats: int, *, latency: float, **options: Any
) -> dict[Caller, Rounds]:
    found: dict[Caller, Rounds] = {caller: [] for caller in callers}
    for _ in range(repeats):
        for caller, runs in found.items():
            before = server.counts()
            one = run(
                "benchmarks.children.calls_engine", env=server.trust, journal=caller.journal,
                base_url=server.base_url(caller.scheme, latency), counts_port=server.ports["http"], **options,
            )  # fmt: skip
            after = server.counts()
            runs.append({**one, **{what: after[what] - before[what] for what in ("connections", "resumed")}})
    return found


def _ratios(found: Mapping[Caller, Rounds], caller: Caller) -> list[float]:
    """Return how many times the calls/s of HTTP each round had; with the same journal where there is one."""
    plain = found.get(Caller("http", caller.journal)) or found[Caller("http", False)]
    return [of["wall"] / one["wall"] for of, one in zip(plain, found[caller], strict=True)]


def _pool_claims(rows: Sequence[Sequence[Any]], level: int) -> list[Claim]:
    claims: list[Claim] = []
    for row in rows:
        seen = dict(zip(COLUMNS, row, strict=True))
        if seen["by"] != "HTTPS":
            continue
        where = f"at {level}, journal {'on' if seen['journal'] == 'yes' else 'off'}"
        why = f"from {seen['range']} in the rounds; {seen['CPU ms']:.2g} ms of CPU a call"
        claims.append(
            Claim(f"HTTPS / HTTP, calls/s, warm {where}", seen["x HTTP"], WARM, at_least=True, why=why)
        )
        if level == 1000:
            why = f"{seen['opened']} connections were opened by them; {seen['resumed']:.0f} resumed a session"
            claims.append(Claim(f"CPU ms/call by HTTPS, cold {where}", seen["cold CPU ms"], COLD, why=why))
    return claims


def _cell(rows: Sequence[Sequence[Any]], size: int, by: str, column: str) -> float:
    found = (dict(zip(BODY_COLUMNS, row, strict=True)) for row in rows)
    return next(float(row[column]) for row in found if row["kB"] == size and row["by"] == by)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--bodies", type=int, nargs="*", default=[], help="kilobytes of prompts, 64 in flight"
    )
    parser.add_argument("--memory", type=int, default=0, help="calls in flight")
    given = parser.parse_args()
    with endpoint() as started:
        if given.in_flight:
            pools(started, dict.fromkeys(given.in_flight, given.repeats))
        if given.bodies:
            bodies(started, dict.fromkeys(given.bodies, 64), repeats=given.repeats)
        if given.memory:
            memory(started, given.memory)
