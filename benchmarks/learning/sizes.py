"""Sizes of the steps of `afnio.optimize`: what they reach, and how many rounds of calls wait for one another.

    python -m benchmarks.learning.sizes --task urgency --seed 100 --forms 3/3/8/24/8/2 3/2/12/20/20/2
    python -m benchmarks.learning.sizes --calls 600 --seeds 40

A form is chains/inner/minibatch/race/first/keep; the first one is what the others are compared with, on the same rows
and seeds. "Live" counts rounds of all calls. "By batch" counts those of the agent's calls alone: in a block of
`afnio.batch_api` they wait for batches, and the few calls of critic and optimizer are sent at once.

Forms are chosen on urgency, with seeds from 100 on, and reported on sentiment, with seeds from 0 on. Runs are kept in
`results/learning/sizes.jsonl`, and aren't repeated.
"""

from __future__ import annotations

import argparse
import json
import time
import unittest.mock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import fmean, stdev
from typing import Any, Final

import anyio

from afnio.models._trace import rehearsal
from afnio.optim._sizes import Sizes
from afnio.runtime.events import subscribed
from afnio.studies import _training
from benchmarks import report
from benchmarks.learning.endpoints import simulated
from benchmarks.learning.training import CallTotals
from benchmarks.learning.whole import run

FILE: Final = report.RESULTS / "learning" / "sizes.jsonl"
FORMS = ("3/3/8/24/8/2", "3/2/12/20/20/2")
LATENCY = 1.0
"""Seconds of a call when rounds are counted: long enough that the calls of a round overlap on a busy machine."""
ROUND_SEEDS = 2
"""Seeds whose rounds are counted: they hardly differ."""


@contextmanager
def sized(form: str) -> Iterator[None]:
    """Let `optimize` take steps of this form."""
    with unittest.mock.patch.object(_training, "SIZES", Sizes(*map(int, form.split("/")))):
        yield


def rounds(form: str, task: str, rows: int, calls: int, seed: int, *, by_batch: bool) -> int:
    """Return how many rounds one run takes."""
    totals = CallTotals()
    with simulated(latency=0.0 if by_batch else LATENCY) as endpoint, sized(form):
        if not by_batch:
            with subscribed(totals):
                run(rows, calls, seed, endpoint, {}, task=task, scored=())
            return totals.rounds
        with unittest.mock.patch("benchmarks.learning.whole.before_call", _Waves(totals)):
            run(rows, calls, seed, endpoint, {}, task=task, scored=())
        return totals.rounds


class _Waves:
    """Makes the agent's calls wait, and counts the waits that follow one another."""

    def __init__(self, totals: CallTotals) -> None:
        self.totals = totals

    async def __call__(self) -> None:
        if rehearsal.get() is not None:  # nothing is sent
            return
        began = time.monotonic()
        await anyio.sleep(LATENCY)
        self.totals.ended(time.monotonic() - began)


def row(form: str, runs: Mapping[int, Mapping[str, Any]], first: Mapping[int, Mapping[str, Any]]) -> str:
    """Return the row of the table for one form, compared on the seeds that both have."""
    kept = [100 * run["kept"] for run in runs.values()]
    gains = [100 * (runs[seed]["kept"] - first[seed]["kept"]) for seed in runs if seed in first]
    error = 2.02 * stdev(gains) / len(gains) ** 0.5  # Student's t of 40 pairs
    against = "" if runs is first else f"{fmean(gains):+.1f} ± {error:.1f}"
    better = sum(run["better"] for run in runs.values())
    cells = [form, f"{len(runs)}", f"{fmean(kept):.1f}", against, f"{better} of {len(runs)}"]
    cells.append(f"{fmean(run['calls'] for run in runs.values()):,.0f}")
    for way in ("live", "by batch"):
        counts = [run[way] for run in runs.values() if way in run]
        cells.append(f"{fmean(counts):.0f}" if counts else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", default="sentiment", choices=("sentiment", "urgency"))
    add("--rows", type=int, default=96)
    add("--calls", type=int, default=600)
    add("--seeds", type=int, default=20)
    add("--seed", type=int, default=0, help="the first one (default: %(default)s)")
    add("--rounds", action="store_true", help=f"count them, for the first {ROUND_SEEDS} seeds")
    add("--forms", nargs="+", default=FORMS)
    given = parser.parse_args()
    done: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
    for line in FILE.read_text().splitlines() if FILE.exists() else []:
        _add(done, json.loads(line))
    keys = {form: (form, given.task, str(given.rows), str(given.calls)) for form in given.forms}
    for seed, form in product(range(given.seed, given.seed + given.seeds), given.forms):
        runs = done.setdefault(keys[form], {})
        if seed not in runs:
            _keep(done, keys[form], seed, _reached(keys[form], seed))
        if given.rounds and seed < given.seed + ROUND_SEEDS and "live" not in runs[seed]:
            _keep(done, keys[form], seed, _rounds(keys[form], seed))
    print(f"\n{given.task}, {given.rows} rows, {given.calls:,} calls\n")
    print("| form | seeds | kept | against the first | Better | calls | rounds live | by batch |")
    print("|---|---|---|---|---|---|---|---|")
    for form in given.forms:
        print(row(form, done[keys[form]], done[keys[given.forms[0]]]))


def _add(done: dict[tuple[str, ...], dict[int, dict[str, Any]]], entry: Mapping[str, Any]) -> None:
    done.setdefault(tuple(entry["key"]), {}).setdefault(entry["seed"], {}).update(entry)


def _keep(
    done: dict[tuple[str, ...], dict[int, dict[str, Any]]],
    key: Sequence[str],
    seed: int,
    found: Mapping[str, Any],
) -> None:
    """Append a line to the file."""
    entry = {"key": list(key), "seed": seed, **found}
    _add(done, entry)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    with FILE.open("a") as file:
        file.write(f"{json.dumps(entry)}\n")


def _reached(key: Sequence[str], seed: int) -> dict[str, Any]:
    form, task, rows, calls = key
    with simulated() as endpoint, sized(form):
        found = run(int(rows), int(calls), seed, endpoint, {}, task=task, scored=("kept",))
    better = found.result.verdict.startswith("Better")
    return {"kept": round(found.kept, 4), "better": better, "calls": found.result.calls}


def _rounds(key: Sequence[str], seed: int) -> dict[str, int]:
    form, task, rows, calls = key
    return {
        way: rounds(form, task, int(rows), int(calls), seed, by_batch=way == "by batch")
        for way in ("live", "by batch")
    }


if __name__ == "__main__":
    main()
