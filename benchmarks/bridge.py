"""The OpenAI SDK over the bridge, against the same SDK over its own client: calls/s and CPU time a call.

Each run is a fresh process against one provider process; the two take turns. At 64 in flight the latency is short, so
that CPU time decides and not the provider.
"""

from __future__ import annotations

from typing import Any

from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.children.texts import REPLY
from benchmarks.report import Claim, median, show

OWN, BRIDGED = "SDK, own client", "SDK over the bridge"
LEVELS = {64: (0.02, 1.0), 1000: (0.2, 3.0)}
"""Calls in flight: the latency, and how many times the calls/s of the SDK's own client."""
COLUMNS = ["client", "in flight", "calls/s", "x own client", "CPU ms/call", "p50 ms"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    calls, repeats = (2000, 5) if full else (1500, 2)
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    for level, (latency, reach) in LEVELS.items():
        found: dict[str, list[dict[str, Any]]] = {OWN: [], BRIDGED: []}
        with Provider.process(latency=latency, reply=REPLY) as provider:
            for _ in range(repeats):
                for name, runs in found.items():
                    options = {"base_url": provider.base_url, "calls": calls, "in_flight": level}
                    bridged = name == BRIDGED
                    runs.append(run("benchmarks.children.calls_sdk", **options, bridged=bridged))
        rates = {name: median([calls / run["wall"] for run in runs]) for name, runs in found.items()}
        cpu = {name: median([run["cpu"] / calls * 1e3 for run in runs]) for name, runs in found.items()}
        for name, runs in found.items():
            waits = median([run["p50"] * 1e3 for run in runs])
            rows.append([name, level, rates[name], rates[name] / rates[OWN], cpu[name], waits])
        ratio = rates[BRIDGED] / rates[OWN]
        why = f"{cpu[BRIDGED]:.2g} ms of CPU a call, {cpu[OWN]:.2g} over the SDK's own client"
        claims.append(Claim(f"x own client at {level}", ratio, reach, at_least=True, why=why))
    notes = [f"{calls} calls in fresh processes, medians of {repeats} rounds"]
    show("bridge", COLUMNS, rows, notes, claims)
    return claims


if __name__ == "__main__":
    main()
