"""Report: tables of what was learnt, as Markdown, from the lines of the runs.

python -m benchmarks.learning.report RESULTS.jsonl …    a table with intervals for each task and budget
python -m benchmarks.learning.page                      methods down, tasks across, into docs/learning-tables.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.learning import quality
from benchmarks.learning.intervals import KIND, Lead, difference, holm, lead
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.runs import read

AGAINST = ("GEPA", "GEPA, minibatch 8", "TextGrad", "TGD 4, 1,000 characters")
"""Whom each method is compared with, where they were run."""


def tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of all tables, one for each task, budget, critic and latency."""
    starts = {run.task: run for run in outcomes if run.method == "baseline"}
    trained = [run for run in outcomes if run.method != "baseline" and run.scores]

    def setting(run: Outcome) -> tuple[Any, ...]:
        return run.task, run.budget, run.critic, run.latency

    for (task, budget, critic, latency), same in groupby(sorted(trained, key=setting), key=setting):
        runs = list(same)
        what = [task, f"{budget} calls" if budget else "a pass"]
        what += ["critic beside the point"] if critic else []
        what += [f"{latency:g} s latency"] if latency else []
        yield f"\n**{', '.join(what)}**\n"
        yield from table(runs, starts.get(task))
        if latency:
            yield ""
            yield from rows_of(quality.COLUMNS, quality.rows(runs, latency))
    yield f"\nIntervals: {KIND}; `*` stands after Holm's correction over the table."


def table(runs: Sequence[Outcome], start: Outcome | None) -> Iterator[str]:
    """Yield a table of the methods on one task; calls, characters and minutes are means over seeds."""
    methods: dict[str, dict[int, Outcome]] = {}
    for run in runs:
        methods.setdefault(run.method, {})[run.seed] = run
    others = [name for name in AGAINST if name in methods]
    head = ["method", "seeds", "share right", *(f"against {name}" for name in others)]
    yield from rows_of(
        [*head, "below the start", "calls", "characters", "seconds"], _rows(methods, others, start)
    )


def _rows(
    methods: dict[str, dict[int, Outcome]], others: Sequence[str], start: Outcome | None
) -> Iterator[list[Cell]]:
    if start is not None:
        yield ["start", "", f"{start.share:.1%}", *("" for _ in others), "", "0", "", ""]
    for name, runs in methods.items():
        found = list(runs.values())
        yield [
            name,
            str(len(found)),
            f"{mean(run.share for run in found):.1%}",
            *("" if other == name else against(runs, methods[other]) for other in others),
            "" if start is None else below(found, start),
            f"{mean(run.calls for run in found):,.0f}",
            f"{mean(sum(map(len, run.prompts.values())) for run in found):,.0f}",
            f"{mean(run.seconds for run in found):.1f}",
        ]


def against(ours: dict[int, Outcome], theirs: dict[int, Outcome]) -> Lead | str:
    """Return the difference over the seeds that both have; "" if there are none."""
    both = sorted(ours.keys() & theirs.keys())
    return lead([ours[s].scores for s in both], [theirs[s].scores for s in both]) if both else ""


def below(runs: Iterable[Outcome], start: Outcome) -> str:
    """Return how many runs ended below their start, and how many of them beyond chance.

    Beyond chance: a paired bootstrap of that run's test items leaves out 0.
    """
    worse = beyond = 0
    for run in runs:
        worse += run.share < start.share
        beyond += difference([run.scores], [start.scores])[2] < 0
    return f"{worse}, {beyond} beyond chance"


Cell = str | Lead | Sequence[str | Lead]
"""Text, a lead, or a share that is followed by leads."""


def rows_of(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> Iterator[str]:
    """Yield a Markdown table. Holm's correction over all of its leads decides which of them are marked by `*`."""
    cells = [list(row) for row in rows]
    leads = [part for row in cells for cell in row for part in _parts(cell) if isinstance(part, Lead)]
    stands = iter(holm([some.p for some in leads]))

    def text(part: str | Lead, short: bool) -> str:
        return part if isinstance(part, str) else part.text(next(stands), short=short)

    def shown(cell: Cell) -> str:
        if isinstance(cell, str | Lead):
            return text(cell, short=False)
        share, *others = (text(part, short=len(cell) > 2) for part in cell)
        return f"{share} ({'; '.join(others)})" if len(others) > 1 else f"{share}, {others[0]}"

    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in cells:
        yield f"| {' | '.join(map(shown, row))} |"


def _parts(cell: Cell) -> Sequence[str | Lead]:
    return [cell] if isinstance(cell, str | Lead) else cell


if __name__ == "__main__":
    for line in tables(read(map(Path, sys.argv[1:]))):
        print(line)
