"""The batch curve: as many samples in batches of 4 to 256; what is lost as they grow?

Each batch size takes the same samples, so that forward and backward calls are about equal; a constraint keeps all
prompts short, so that it is the size of the batch that differs and not the length of the prompt. With `SAMPLES` the
largest batch has four steps: with a single one nothing shows what that step got wrong, whoever reads the feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks import report
from benchmarks.learning.endpoints import Endpoint
from benchmarks.learning.intervals import KIND, difference
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.tasks import Task
from benchmarks.learning.training import MakeOptimizer, Trial

SIZES = (4, 16, 64, 256)
SAMPLES = 1024
SHORT = "Use at most 2000 characters."
COLUMNS = ["how", "batch", "steps", "test right", "share", "against the smallest", "95 % interval", "calls"]


def curve(
    task: Task,
    endpoint: Endpoint,
    ways: dict[str, MakeOptimizer],
    *,
    seeds: int,
    sizes: Sequence[int] = SIZES,
    samples: int = SAMPLES,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Print the curve of each way to put feedback together and return its runs as plain data.

    Training samples are those of the training and the validation split; the test split decides nothing.
    """
    pooled = replace(task, train=[*task.train, *task.val])
    rows: list[list[Any]] = []
    found: list[Outcome] = []
    for how, make in ways.items():
        smallest: list[Outcome] = []
        for size in sizes:
            runs = [
                Trial(f"{how}, batch {size}", pooled, endpoint, seed, 10**9, size, samples // size).run(make)
                for seed in range(seeds)
            ]
            smallest = smallest or runs
            rows.append([how, size, samples // size, *_cells(runs, smallest), _mean_calls(runs)])
            found += runs
            say(f"curve: {how}, batch {size}")
    notes = [*endpoint.notes, f"{task.name}, {seeds} seeds, {samples} samples in all; constraint: {SHORT}"]
    report.show(f"learning-{endpoint.kind}-curve", COLUMNS, rows, [*notes, KIND])
    return [dict(run.as_dict()) for run in found]


def _cells(runs: Sequence[Outcome], smallest: Sequence[Outcome]) -> list[Any]:
    right, answered = sum(run.correct for run in runs), sum(run.answered for run in runs)
    gain, low, high = difference([run.scores for run in runs], [run.scores for run in smallest])
    interval = None if runs is smallest else f"{100 * low:+.1f} to {100 * high:+.1f}"
    change = None if runs is smallest else f"{100 * gain:+.1f}"
    return [f"{right:g}/{answered}", f"{right / answered:.1%}" if answered else None, change, interval]


def _mean_calls(runs: Sequence[Outcome]) -> int:
    return round(sum(run.calls for run in runs) / len(runs))
