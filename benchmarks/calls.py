"""Chat calls through ChatCompletion, against `asyncio.gather` over plain AsyncOpenAI and bare aiohttp.

Each run is a fresh process against one provider process; the contenders take turns. What TLS, cold pools and large
prompts add is measured in `tls`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import afnio
from afnio.testing import Provider
from benchmarks import tls
from benchmarks.child import run
from benchmarks.children.texts import REPLY
from benchmarks.report import Claim, interval, median, show

OURS, PLAIN, SDK, FLOOR = "afnio", "afnio, no journal", "AsyncOpenAI", "aiohttp"
CALLERS = {OURS: "calls_engine", PLAIN: "calls_engine", SDK: "calls_sdk", FLOOR: "calls_bare"}
REACH = {
    64: {OURS: 1.0, PLAIN: 1.0},
    256: {OURS: 2.5, PLAIN: 3.0},
    1000: {OURS: 8.0, PLAIN: 9.0},
}
"""How many times the calls/s of plain AsyncOpenAI, for so many in flight."""
CPU = {OURS: 0.28, PLAIN: 0.22}
"""Milliseconds of CPU that one of our calls may take."""
JOURNAL = 10.0
"""Percent of the calls/s that the journal may cost."""
COLUMNS = [
    "caller", "in flight", "calls/s", "x AsyncOpenAI", "range", "CPU ms/call", "of it GC", "p50 ms",
]  # fmt: skip


def main(*, full: bool = False) -> list[Claim]:
    """Print the tables and return the claims."""
    # At 64 the latency decides, and a round takes a while: one is enough for the small form.
    rounds = {64: 3, 256: 7, 1000: 7} if full else {64: 1, 256: 3, 1000: 3}
    return compare(rounds, calls=2000, latency=0.2) + tls.main(full=full)


def compare(rounds: Mapping[int, int], *, calls: int, latency: float, journal: bool = True) -> list[Claim]:
    """Measure every caller, ours with the journal where there is one.

    Args:
        rounds: how often at each level of calls in flight. A level of one round makes half the calls.
    """
    known = hasattr(afnio, "journal")
    callers = [name for name in CALLERS if name != OURS or (journal and known)]
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    with Provider.process(latency=latency, reply=REPLY) as provider:
        for level, repeats in rounds.items():
            count = calls if repeats > 1 else calls // 2
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in callers}
            for _ in range(repeats):
                for name in callers:
                    found[name].append(_measure(name, provider.base_url, count, level))
            rows += _rows(found, count, level)
            claims += _claims(rows[-len(callers) :], level)
    taken = ", ".join(f"{repeats} at {level}" for level, repeats in rounds.items())
    notes = [
        f"{calls} calls of {latency:g} s in fresh processes (half as many at a level of one round), over HTTP",
        f"medians of rounds: {taken}; x AsyncOpenAI is taken within a round",
    ]
    notes += [] if known else ["this version has no journal"]
    show("calls", COLUMNS, rows, notes, claims)
    return claims


def _measure(name: str, base_url: str, calls: int, in_flight: int) -> dict[str, Any]:
    options = {"journal": True} if name == OURS else {}
    module = f"benchmarks.children.{CALLERS[name]}"
    return run(module, base_url=base_url, calls=calls, in_flight=in_flight, **options)


def _rows(found: dict[str, list[dict[str, Any]]], calls: int, level: int) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for name, runs in found.items():
        ratios = [sdk["wall"] / one["wall"] for sdk, one in zip(found[SDK], runs, strict=True)]
        rows.append(
            [
                name,
                level,
                median([calls / run["wall"] for run in runs]),
                median(ratios),
                interval(ratios),
                median([run["cpu"] / calls * 1e3 for run in runs]),
                median([run["gc"] / calls * 1e3 for run in runs]),
                median([run["p50"] * 1e3 for run in runs]),
            ]
        )
    return rows


def _claims(rows: list[list[Any]], level: int) -> list[Claim]:
    by_name = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}
    floor = by_name[FLOOR]
    claims: list[Claim] = []
    for name in (OURS, PLAIN):
        if name not in by_name:
            continue
        seen = by_name[name]
        ratio, cpu = seen["x AsyncOpenAI"], seen["CPU ms/call"]
        why = (
            f"from {seen['range']} in the rounds; garbage collection takes {seen['of it GC']:.2g} of "
            f"{cpu:.2g} ms of CPU a call; bare aiohttp reaches {floor['x AsyncOpenAI']:.2g} x with "
            f"{floor['CPU ms/call']:.2g} ms"
        )
        if level in REACH:
            reach = REACH[level][name]
            claims.append(Claim(f"{name}: x AsyncOpenAI at {level}", ratio, reach, at_least=True, why=why))
        claims.append(Claim(f"{name}: CPU ms/call at {level}", cpu, CPU[name], why=why))
    if OURS in by_name:
        ours, plain = by_name[OURS], by_name[PLAIN]
        cost = 100 * (1 - ours["calls/s"] / plain["calls/s"])
        spent = f"{ours['CPU ms/call'] - plain['CPU ms/call']:.2g} ms of CPU a call"
        claims.append(
            Claim(f"journal, % of calls/s at {level}", cost, JOURNAL, why=f"the journal takes {spent}")
        )
    return claims


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[64, 256, 1000])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--journal", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    levels = dict.fromkeys(given.in_flight, given.repeats)
    compare(levels, calls=given.calls, latency=given.latency, journal=given.journal)
