"""Report: tables of what was learnt, and one file with everything that they were made from.

python -m benchmarks.learning.report RESULTS.json …     prints the tables of the runs in all of these files
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import report
from benchmarks.learning.intervals import KIND, difference
from benchmarks.learning.outcome import Outcome

COLUMNS = [
    "method",
    "test right",
    "share",
    "against baseline",
    "95 % interval",
    "calls",
    "tokens",
    "cost",
    "minutes",
    "prompt chars",
]


def table(lm: str, task: str, outcomes: Sequence[Outcome], notes: Sequence[str]) -> list[list[Any]]:
    """Print what each method reached on one task and return the rows.

    Counts are pooled over seeds; calls, tokens and minutes are of one training, the mean over seeds.
    """
    by_method: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_method.setdefault(outcome.method, []).append(outcome)
    baseline = by_method["baseline"]
    done = {name: [run for run in runs if run.scores] for name, runs in by_method.items()}
    rows = [_row(runs, baseline) for runs in done.values() if runs]
    seeds = "; ".join(f"{name} {len(runs)}" for name, runs in done.items() if name != "baseline")
    said = [*notes, f"seeds, over which counts are pooled: {seeds}", KIND]
    said += [f"{o.method}, seed {o.seed}: {o.note}" for o in outcomes if o.note]
    report.show(f"learning-{lm}-{task}", COLUMNS, rows, said)
    return rows


def _row(runs: Sequence[Outcome], baseline: Sequence[Outcome]) -> list[Any]:
    right, answered = sum(run.correct for run in runs), sum(run.answered for run in runs)
    first = runs[0].method == "baseline"
    # The first prompt is the same for every seed: one baseline stands for all.
    theirs = [baseline[number % len(baseline)].scores for number in range(len(runs))]
    gain, low, high = (0.0, 0.0, 0.0) if first else difference([run.scores for run in runs], theirs)
    costs = [run.cost for run in runs]
    return [
        runs[0].method,
        f"{right:g}/{answered}" if right == int(right) else f"{right:.1f}/{answered}",
        f"{right / answered:.1%}" if answered else None,
        None if first else f"{100 * gain:+.1f}",
        None if first else f"{100 * low:+.1f} to {100 * high:+.1f}",
        round(mean(run.calls for run in runs)),
        round(mean(run.prompt_tokens + run.completion_tokens for run in runs)),
        None if None in costs else sum(cost for cost in costs if cost is not None),
        round(mean(run.seconds for run in runs) / 60, 3),
        round(mean(sum(map(len, run.prompts.values())) for run in runs)),
    ]


def credit(outcomes: Sequence[Outcome], at_fault: str) -> list[list[Any]]:
    """Return, for each method, how much of the feedback and of the changes went to the prompt at fault."""
    rows = []
    for method in dict.fromkeys(o.method for o in outcomes if o.gradients):
        runs = [o for o in outcomes if o.method == method]
        found = sum(
            max(o.gradients, key=lambda name: o.gradients[name]) == at_fault for o in runs if o.gradients
        )
        said = [o.gradients.get(at_fault, 0) for o in runs]
        total = [sum(o.gradients.values()) for o in runs]
        rows.append([at_fault, method, f"{found}/{len(runs)}", f"{sum(said)}/{sum(total)}"])
    return rows


def save(lm: str, document: dict[str, Any]) -> Path:
    """Write everything as `results/learning-<lm>.json` and return where."""
    report.RESULTS.mkdir(exist_ok=True)
    path = report.RESULTS / f"learning-{lm}.json"
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False))
    return path


def read(paths: Sequence[str]) -> dict[str, list[Outcome]]:
    """Return the runs in files that `save` wrote, by task; of several baselines all stand, by their order."""
    found: dict[str, list[Outcome]] = {}
    for path in paths:
        for task, saved in json.loads(Path(path).read_text())["tasks"].items():
            found.setdefault(task, []).extend(Outcome(**run) for run in saved["runs"])
    return found


if __name__ == "__main__":
    for name, runs in read(sys.argv[1:]).items():
        table("saved", name, runs, [f"from {', '.join(sys.argv[1:])}"])
