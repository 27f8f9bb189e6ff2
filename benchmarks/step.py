"""One training step in which every sample is wrong: forward, backward, update; three latencies are ideal.

Ours alone for growing batches, then against TextGrad, AdalFlow and Trace, all in fresh processes against
provider processes of the same kind.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from afnio.testing import Provider
from benchmarks.child import run
from benchmarks.peers.environment import PEERS, REPLY, PeerError
from benchmarks.report import Claim, median, show

REACH = {1024: 1.25 * 1.10}
"""Wall in units of three latencies, for so many samples; 1.10 for fewer."""
PEER_SAMPLES = 32
FASTER = 25.0
"""How many times TextGrad's wall ours must fit into."""
COLUMNS = ["samples", "wall s", "latencies", "ratio to 3", "CPU ms/sample", "calls", "peak in flight"]
PEER_COLUMNS = ["who", "wall s", "latencies", "x ours", "CPU s", "calls", "peak in flight"]


def main(*, full: bool = False) -> list[Claim]:
    """Print both tables and return the claims."""
    sizes = [8, 32, 64, 128, 256, 512, 1024] if full else [8, 256, 1024]
    claims = grow(sizes, latency=1.0, repeats=5 if full else 1)
    return claims + compare(PEER_SAMPLES, latency=1.0 if full else 0.2, repeats=3 if full else 1)


def grow(sizes: Sequence[int], *, latency: float, repeats: int) -> list[Claim]:
    """Measure our step for growing batches."""
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    for size in sizes:
        runs = [_ours(latency, size) for _ in range(repeats)]
        wall, calls = median([run["wall"] for run in runs]), max(run["calls"] for run in runs)
        cpu, ratio = median([run["cpu"] for run in runs]), wall / latency / 3
        peak = max(run["peak"] for run in runs)
        rows.append([size, wall, wall / latency, ratio, cpu / size * 1e3, calls, peak])
        why = f"{cpu:.2g} s of CPU in one process, {cpu / (2 * size + 1) * 1e3:.2g} ms a call"
        claims.append(Claim(f"step of {size}, wall / 3 latencies", ratio, REACH.get(size, 1.10), why=why))
    notes = [
        f"latency {latency:g} s, median of {repeats}; no level of reduction: one optimizer call reads all"
    ]
    show("step", COLUMNS, rows, notes, claims)
    return claims


def compare(samples: int, *, latency: float, repeats: int) -> list[Claim]:
    """Measure ours and the peers in turns; a peer that can't be run is named with the reason."""
    found: dict[str, list[dict[str, Any]]] = {"afnio": []}
    missing: dict[str, str] = {}
    for _ in range(repeats):
        found["afnio"].append(_ours(latency, samples))
        for peer in PEERS:
            if peer.name not in missing:
                try:
                    found.setdefault(peer.name, []).append(
                        _against(latency, lambda url, peer=peer: peer.step(url, samples))
                    )
                except PeerError as error:
                    missing[peer.name] = str(error)
    walls = {name: median([run["wall"] for run in runs]) for name, runs in found.items() if runs}
    calls = {name: max(run["calls"] for run in runs) for name, runs in found.items() if runs}
    rows: list[list[Any]] = []
    for name, wall in walls.items():
        runs = found[name]
        cpu, peak = median([run["cpu"] for run in runs]), max(run["peak"] for run in runs)
        rows.append([name, wall, wall / latency, wall / walls["afnio"], cpu, calls[name], peak])
    notes = [f"{samples} samples, latency {latency:g} s, median of {repeats}"]
    notes += [f"{peer.name} {peer.version()}" for peer in PEERS if peer.name in walls]
    notes += [f"{name} was not run: {reason}" for name, reason in missing.items()]
    claims = _claims(walls, calls, latency, missing)
    show("step-peers", PEER_COLUMNS, rows, notes, claims)
    return claims


def _claims(
    walls: dict[str, float], calls: dict[str, int], latency: float, missing: dict[str, str]
) -> list[Claim]:
    if "TextGrad" not in walls:
        why = missing.get("TextGrad", "")
        return [Claim("TextGrad's wall / ours", None, FASTER, at_least=True, why=why)]
    ratio, extra = walls["TextGrad"] / walls["afnio"], walls["afnio"] - 3 * latency
    why = f"ours took {extra:.2g} s beyond three latencies, which weigh more the shorter they are"
    more = calls["afnio"] - calls["TextGrad"]
    return [
        Claim("TextGrad's wall / ours", ratio, FASTER, at_least=True, why=why),
        Claim("calls more than TextGrad", float(more), 0.0),
    ]


def _ours(latency: float, samples: int) -> dict[str, Any]:
    return _against(latency, lambda url: run("benchmarks.children.one_step", base_url=url, samples=samples))


def _against(latency: float, step: Any) -> dict[str, Any]:
    """Run `step(base_url)` against a provider of its own and add the peak that it saw."""
    with Provider.process(latency=latency, reply=REPLY) as provider:
        measured: dict[str, Any] = step(provider.base_url)
        return {**measured, "peak": provider.stats()["peak_in_flight"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="*", default=[8, 32, 256, 1024])
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--peers", action="store_true")
    given = parser.parse_args()
    grow(given.samples, latency=given.latency, repeats=given.repeats)
    if given.peers:
        compare(PEER_SAMPLES, latency=given.latency, repeats=given.repeats)
