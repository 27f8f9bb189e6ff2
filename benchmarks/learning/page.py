"""Page: the tables of docs/learning-tables.md, made from the runs that are kept.

    python -m benchmarks.learning.page [NAME …]            writes the tables, or those named
    python -m benchmarks.learning.page --check [NAME …]    says which ones differ from the runs

A table stands between <!-- runs: NAME --> and <!-- end -->. All take some minutes: each interval is a bootstrap.
A cell has the share right, and in brackets the difference in points to GEPA, GEPA with minibatches of 8 and TextGrad;
`*` where it stands after Holm's correction over the table.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Final

from benchmarks import report as kept
from benchmarks.learning import quality
from benchmarks.learning.intervals import difference
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.report import AGAINST, Cell, against, rows_of
from benchmarks.learning.runs import read
from benchmarks.learning.tasks import FAULTY, HARD, LABELS

PAGE: Final = Path("docs/learning-tables.md")
MAILS: Final = tuple(LABELS)
NOTES: Final = ("notes-retrieve", "notes-draft", "notes-judge")
UNNAMED: Final = ("sentiment/harm-unnamed", "urgency/harm-unnamed")
ORDER: Final = (
    "EditTGD",
    "EditTGD, no gate",
    "TGD 4, 1,000 characters",
    "TGD 4, 1,000 characters, gate",
    "TGD",
    "GEPA",
    "GEPA, minibatch 8",
    "GEPA, 4 proposals",
    "TextGrad",
)
BY_SEED = dict[str, dict[str, dict[int, Outcome]]]
"""Runs by method, task and seed."""
_TABLE: Final = re.compile(r"(<!-- runs: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


HEALTHY = {
    f"{task}/{fault}": share
    for task, share in (("sentiment", 25 / 68), ("urgency", 33 / 68))
    for fault in ("harm-named", "harm-unnamed", "wrong-labels", "wrong-format")
}
"""What the start prompt reaches without its fault; a run above it has escaped."""


def runs_of(name: str, budget: int | None = None, latency: float | None = None) -> list[Outcome]:
    found = read([kept.RESULTS / "learning" / f"{name}.jsonl"])
    return [
        run
        for run in found
        if run.scores
        and (run.method == "baseline" or budget is None or run.budget == budget)
        and (run.method == "baseline" or latency is None or run.latency == latency)
    ]


def grouped(runs: Iterable[Outcome]) -> BY_SEED:
    found: BY_SEED = {}
    for run in runs:
        if run.method != "baseline":
            found.setdefault(run.method, {}).setdefault(run.task, {})[run.seed] = run
    ranks = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda entry: ranks.get(entry[0], len(ranks))))


def matrix(runs: Sequence[Outcome], tasks: Sequence[str], *, escaped: bool = False) -> Iterator[str]:
    """Yield the table of methods by tasks. The number of seeds stands behind the method, or a range of it."""
    starts = {run.task: run for run in runs if run.method == "baseline"}
    found = grouped(run for run in runs if run.task in tasks)
    head = [
        "method",
        "seeds",
        *tasks,
        "below the start",
        *(["escaped"] if escaped else []),
        "calls",
        "characters",
    ]
    cells: list[list[Cell]] = [
        ["start", "", *(f"{100 * starts[task].share:.1f}" for task in tasks), *[""] * (3 + escaped)]
    ]
    for name, by_task in found.items():
        mine = [run for some in by_task.values() for run in some.values()]
        counts = sorted({len(some) for some in by_task.values()})
        worse = sum(difference([run.scores], [starts[run.task].scores])[2] < 0 for run in mine)
        cells.append(
            [
                name,
                str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}",
                *(_cell(name, by_task.get(task, {}), found, task) for task in tasks),
                f"{worse} of {len(mine)}",
                *(
                    [f"{sum(run.share > HEALTHY[run.task] for run in mine)} of {len(mine)}"]
                    if escaped
                    else []
                ),
                f"{mean(run.calls for run in mine):,.0f}",
                f"{mean(sum(map(len, run.prompts.values())) for run in mine):,.0f}",
            ]
        )
    yield from rows_of(head, cells)


def _cell(name: str, runs: dict[int, Outcome], found: BY_SEED, task: str) -> Cell:
    if not runs:
        return ""
    share = f"{100 * mean(run.share for run in runs.values()):.1f}"
    others = [found.get(other, {}).get(task, {}) for other in AGAINST[:3]]
    if name in AGAINST[:3] or not any(others):
        return share
    return [share, *(against(runs, theirs) or "-" for theirs in others)]


def rivals() -> Iterator[str]:
    """Yield the table of rivals with `EditTGD`'s lead over each."""
    first = "EditTGD, no gate"
    found = grouped(runs_of("rivals"))
    tasks = sorted(found[first])
    cells: list[list[Cell]] = []
    for name, by_task in found.items():
        row: list[Cell] = [name]
        for task in tasks:
            runs = by_task.get(task, {})
            row += [str(len(runs)), f"{100 * mean(run.share for run in runs.values()):.1f}" if runs else ""]
            row.append("" if name == first else against(found[first][task], runs))
        calls = mean(run.calls for runs in by_task.values() for run in runs.values())
        cells.append([*row, f"{calls:,.0f}"])
    head = [part for task in tasks for part in ("seeds", task, "lead of EditTGD")]
    yield from rows_of(["method", *head, "calls"], cells)


def intervals() -> Iterator[str]:
    """Yield the differences of `EditTGD` at equal calls, with their intervals."""
    for budget, tasks in ((600, (*MAILS, *NOTES, "counting", "sorting")), (300, (*MAILS, *NOTES))):
        found = grouped(runs_of("equal", budget))
        others = [name for name in AGAINST if name in found]
        cells = [
            [task, *(against(found["EditTGD"][task], found[name].get(task, {})) for name in others)]
            for task in tasks
        ]
        yield from rows_of([f"EditTGD, {budget} calls", *(f"against {name}" for name in others)], cells)
        yield ""


def compared(name: str, tasks: Sequence[str], first: str, waits: BY_SEED | None = None) -> Iterator[str]:
    """Yield a table of methods with the difference to the first one; `waits` has runs whose latencies were counted."""
    found = grouped(runs_of(name))
    found = {first: found[first], **found}
    cells = list[list[Cell]]()
    for method, by_task in found.items():
        mine = [run for some in by_task.values() for run in some.values()]
        seeds = sorted({len(some) for some in by_task.values()})
        row: list[Cell] = [method, str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"]
        for task in tasks:
            runs = by_task.get(task, {})
            share = f"{100 * mean(run.share for run in runs.values()):.1f}" if runs else ""
            row.append(share if method == first or not runs else [share, against(runs, found[first][task])])
        row.append(f"{mean(run.calls for run in mine):,.0f}")
        counted = [run.rounds for some in (waits or {}).get(method, {}).values() for run in some.values()]
        row.append(f"{mean(counted):.0f}" if counted else "")
        cells.append(row)
    yield from rows_of(["method", "seeds", *tasks, "calls", "latencies"], cells)


def in_time(latency: float) -> Iterator[str]:
    """Yield the table of time to quality."""
    runs = runs_of("time", 600, latency)
    cells = [
        [task, *row]
        for task in MAILS
        for row in quality.rows([run for run in runs if run.task == task], latency)
    ]
    yield from rows_of(["task", *quality.COLUMNS], cells)


def gated(name: str) -> Iterator[str]:
    """Yield a table of single runs with what their gate said."""
    runs = runs_of(name)
    start = next(run for run in runs if run.method == "baseline")
    mine = sorted((run for run in runs if run.method != "baseline"), key=lambda run: run.seed)
    cells = [
        [
            str(run.seed),
            f"{run.correct:g}/{run.answered}",
            "the same prompt" if run.prompts == start.prompts else _points([run], start),
            run.gate,
            str(sum(run.dropped.values())),
            str(run.calls),
            str(sum(map(len, run.prompts.values()))),
        ]
        for run in mine
    ]
    worse = sum(difference([run.scores], [start.scores])[2] < 0 for run in mine)
    all_right = f"{sum(run.correct for run in mine):g}/{sum(run.answered for run in mine)}"
    below = f"below the start beyond chance: {worse} of {len(mine)}"
    cells.append(
        [
            "all",
            all_right,
            _points(mine, start),
            below,
            str(sum(sum(run.dropped.values()) for run in mine)),
            f"{mean(run.calls for run in mine):.0f}",
            f"{mean(sum(map(len, run.prompts.values())) for run in mine):.0f}",
        ]
    )
    yield from rows_of(
        ["seed", "test right", "against the start", "gate", "edits left out", "calls", "characters"], cells
    )


def _points(runs: Sequence[Outcome], start: Outcome) -> str:
    """Return the difference to the start in points, with its interval."""
    found = difference([run.scores for run in runs], [start.scores] * len(runs))
    gain, low, high = (100 * value + 0.0 for value in found)
    return f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"


def _equal(budget: int, tasks: Sequence[str]) -> Iterator[str]:
    return matrix(runs_of("equal", budget), tasks)


TABLES: Final[dict[str, Callable[[], Iterator[str]]]] = {
    "time-1": lambda: in_time(1.0),
    "time-02": lambda: in_time(0.2),
    "equal-600": lambda: _equal(600, MAILS),
    "equal-600-others": lambda: _equal(600, (*NOTES, "counting", "sorting")),
    "equal-300": lambda: _equal(300, MAILS),
    "equal-300-others": lambda: _equal(300, NOTES),
    "equal-1200": lambda: _equal(1200, MAILS[:2]),
    "intervals": intervals,
    "rivals": rivals,
    "hard": lambda: matrix(runs_of("hard"), HARD),
    "faults": lambda: matrix(runs_of("faults"), UNNAMED, escaped=True),
    "faults-others": lambda: matrix(
        runs_of("faults"), [task for task in FAULTY if task not in UNNAMED], escaped=True
    ),
    "astray": lambda: matrix(runs_of("astray"), MAILS[:2]),
    "width": lambda: compared("width", MAILS, "EditTGD, 3 chains", grouped(runs_of("width-latency"))),
    "local-gate": lambda: gated("local-gate"),
    "pass": lambda: compared("pass", MAILS, "TGD 4, pass of 256", grouped(runs_of("pass-latency"))),
}


def main(arguments: Sequence[str]) -> int:
    """Write the tables, or compare them. Returns 1 if some differ."""
    text, differ = PAGE.read_text(), list[str]()
    named = [name for name in arguments if name != "--check"] or list(TABLES)

    def made(match: re.Match[str]) -> str:
        if match[2] not in TABLES or match[2] not in named:
            return match[0]
        table = "\n".join(TABLES[match[2]]()).strip() + "\n"
        if table != match[3]:
            differ.append(match[2])
        return f"{match[1]}{table}{match[4]}"

    page = _TABLE.sub(made, text)
    if "--check" not in arguments:
        PAGE.write_text(page)
        return 0
    print("\n".join(f"{name} differs" for name in differ) or "all tables are those of the runs")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
