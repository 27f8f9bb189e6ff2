"""Chat calls through ChatCompletion, against `asyncio.gather` over plain AsyncOpenAI and bare aiohttp.

Each run is a fresh process against one provider process; the contenders take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import afnio
from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.children.texts import REPLY
from benchmarks.report import Claim, median, show

OURS, PLAIN, SDK, FLOOR = "afnio", "afnio, no journal", "AsyncOpenAI", "aiohttp"
CALLERS = {OURS: "calls_engine", PLAIN: "calls_engine", SDK: "calls_sdk", FLOOR: "calls_bare"}
REACH = {64: 1.0, 256: 2.0, 1000: 5.0}
"""How many times the calls/s of plain AsyncOpenAI, for so many in flight."""
CPU = 0.6
"""Milliseconds of CPU that one of our calls may take."""
JOURNAL = 10.0
"""Percent of the calls/s that the journal may cost."""
COLUMNS = ["caller", "in flight", "calls/s", "x AsyncOpenAI", "CPU ms/call", "of it GC", "p50 ms"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    # At 64 the latency decides, and a round takes half a minute: one is enough for the small form.
    rounds = {64: 3, 256: 7, 1000: 7} if full else {64: 1, 256: 3, 1000: 3}
    return compare(rounds, calls=2000, latency=0.2)


def compare(rounds: Mapping[int, int], *, calls: int, latency: float, journal: bool = True) -> list[Claim]:
    """Measure every caller, ours with the journal where there is one.

    Args:
        rounds: how often at each level of calls in flight.
    """
    known = hasattr(afnio, "journal")
    callers = [name for name in CALLERS if name != OURS or (journal and known)]
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    with Provider.process(latency=latency, reply=REPLY) as provider:
        for level, repeats in rounds.items():
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in callers}
            for _ in range(repeats):
                for name in callers:
                    found[name].append(_measure(name, provider.base_url, calls, level))
            rows += _rows(found, calls, level)
            claims += _claims(rows[-len(callers) :], level)
    taken = ", ".join(f"{repeats} at {level}" for level, repeats in rounds.items())
    notes = [f"{calls} calls of {latency:g} s in fresh processes, medians of rounds: {taken}"]
    notes += [] if known else ["this version has no journal"]
    show("calls", COLUMNS, rows, notes, claims)
    return claims


def _measure(name: str, base_url: str, calls: int, in_flight: int) -> dict[str, Any]:
    options = {"journal": True} if name == OURS else {}
    module = f"benchmarks.children.{CALLERS[name]}"
    return run(module, base_url=base_url, calls=calls, in_flight=in_flight, **options)


def _rows(found: dict[str, list[dict[str, Any]]], calls: int, level: int) -> list[list[Any]]:
    rates = {name: median([calls / run["wall"] for run in runs]) for name, runs in found.items()}
    return [
        [
            name,
            level,
            rates[name],
            rates[name] / rates[SDK],
            median([run["cpu"] / calls * 1e3 for run in runs]),
            median([run["gc"] / calls * 1e3 for run in runs]),
            median([run["p50"] * 1e3 for run in runs]),
        ]
        for name, runs in found.items()
    ]


def _claims(rows: list[list[Any]], level: int) -> list[Claim]:
    by_name = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in rows}
    ours, floor = by_name.get(OURS, by_name[PLAIN]), by_name[FLOOR]
    ratio, cpu = ours["x AsyncOpenAI"], ours["CPU ms/call"]
    why = (
        f"garbage collection takes {ours['of it GC']:.2g} of our {cpu:.2g} ms of CPU a call; "
        f"bare aiohttp reaches {floor['x AsyncOpenAI']:.2g} x with {floor['CPU ms/call']:.2g} ms"
    )
    claims = [Claim(f"CPU ms/call at {level}", cpu, CPU, why=why)]
    if level in REACH:
        claims.insert(0, Claim(f"x AsyncOpenAI at {level}", ratio, REACH[level], at_least=True, why=why))
    if OURS in by_name:
        cost = 100 * (1 - ours["calls/s"] / by_name[PLAIN]["calls/s"])
        spent = f"{cpu - by_name[PLAIN]['CPU ms/call']:.2g} ms of CPU a call"
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
