"""The whole of `afnio.optimize`, end to end: what the training finds, what is kept, what is claimed, what is left.

    python -m benchmarks.learning.whole --rows 40 96 --seeds 10

For each seed some e-mails are drawn, whose sentiment is asked for. The true accuracies are those on the
other e-mails, which `optimize` doesn't get.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import unittest.mock
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import afnio
from afnio.utils.datasets import FacilitySupport
from benchmarks.learning.endpoints import Endpoint, simulated
from benchmarks.learning.tasks import load

START = "Say the sentiment: positive, neutral or negative."


@dataclass(frozen=True, slots=True)
class Whole:
    """One run. Accuracies are shares of the rows that it didn't have."""

    start: float
    found: float
    kept: float
    result: afnio.Result


def emails(task: str) -> list[tuple[str, str]]:
    return [
        (message.data, {"urgency": urgency, "sentiment": sentiment}[task].data)
        for split in ("train", "val", "test")
        for message, (urgency, sentiment, _) in FacilitySupport(split)
    ]


async def before_call() -> None:
    """Do nothing. `sizes` waits here to count rounds."""


def run(
    count: int,
    calls: int,
    seed: int,
    endpoint: Endpoint,
    options: Mapping[str, Any],
    *,
    task: str = "sentiment",
    scored: Sequence[str] = ("start", "found", "kept"),
) -> Whole:
    """Optimize on `count` drawn rows, and score the first, the found and the kept prompts on the others.

    Args:
        scored: the prompts whose accuracy is wanted. The others' is 0.
    """
    rows = random.Random(seed).sample(emails(task), 200)
    other = None if task == "sentiment" else load(task)
    start = START if other is None else other.prompt
    form = {} if other is None else {"response_format": other.response_format}

    async def classify(message: str, system: str) -> str:
        await before_call()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": message}]
        return (await endpoint.client.achat(messages=messages, **form, **endpoint.forward)).content

    def right(output: str, expected: str) -> bool:
        return (output if other is None else other.read(output)) == expected

    def truly(name: str, system: str) -> float:
        if name not in scored:
            return 0.0
        return afnio.evaluate(
            classify, rows[count:], right, prompts={"system": system}, dir=folder
        ).score.mean

    with tempfile.TemporaryDirectory() as folder:
        result = afnio.optimize(
            classify, rows[:count], right, prompts={"system": start}, seed=seed, dir=folder,
            critic=(endpoint.client, dict(endpoint.step)), budget=afnio.budget(max_calls=calls), **options,
        )  # fmt: skip
        with unittest.mock.patch.dict(os.environ, AFNIO_HOME=folder):
            found = afnio.load_prompts(f"run:{result.run}@found")["system"]
        versions = {"start": start, "found": found, "kept": result.prompts["system"]}
        return Whole(*(truly(name, system) for name, system in versions.items()), result)


def line(rows: int, calls: int, runs: Sequence[Whole]) -> str:
    """Return the row of the table for runs of one size."""
    start, found, kept = (
        100 * fmean(getattr(one, name) for one in runs) for name in ("start", "found", "kept")
    )
    cost = [100 * (one.kept - one.found) for one in runs]
    error = 2 * stdev(cost) / len(cost) ** 0.5
    unspent = 100 * fmean(1 - one.result.calls / calls for one in runs)
    better = sum(one.result.verdict.startswith("Better") for one in runs)
    below = sum(one.kept < one.start - 0.005 for one in runs)
    return (
        f"| {rows} | {len(runs)} | {start:.1f} | {found:.1f} | {kept:.1f} | {fmean(cost):+.1f} ± {error:.1f} "
        f"| {better} | {below} | {unspent:.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[40, 96])
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--patience", type=int, help="steps; by default that of optimize")
    given = parser.parse_args()
    options = {} if given.patience is None else {"patience": given.patience}
    print("| rows | runs | start | found | kept | kept - found | Better | below the start | calls unspent |")
    print("|---|---|---|---|---|---|---|---|---|")
    with simulated() as endpoint:
        for rows in given.rows:
            runs = [run(rows, given.calls, seed, endpoint, options) for seed in range(given.seeds)]
            print(line(rows, given.calls, runs), flush=True)


if __name__ == "__main__":
    main()
