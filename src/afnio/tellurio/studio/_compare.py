"""The page that compares runs: figures side by side, curves over each other, and paired intervals."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from afnio.tellurio._compare import Paired, PhaseComparison, compare
from afnio.tellurio._queries import Headline, Scores, StoreReader, headline, metric_names, metric_points
from afnio.tellurio.studio._runs import RunRow, Sums, Tallies, best_text, flattened
from afnio.tellurio.studio._step import Shown, shown_diff
from afnio.tellurio.studio._text import plain

MOST_RUNS: Final = 6
"""Runs that are compared at once."""
METRICS: Final = 12

PROMPTS: Final = """
SELECT role, value FROM parameters p WHERE run_id = ?1 AND step = (
    SELECT max(step) FROM parameters WHERE run_id = ?1 AND number = p.number) ORDER BY number LIMIT 20"""


class Compared(NamedTuple):
    """One run's part in a comparison."""

    run: RunRow
    total: Sums
    metrics: dict[str, list[tuple[int, float]]]
    scores: Scores
    prompts: dict[str, str]
    headline: Headline | None


def compared(reader: StoreReader, db: sqlite3.Connection, run: RunRow, tallies: Tallies) -> Compared:
    """Return what a comparison needs of one run."""
    return Compared(
        run,
        tallies.of(db, run).total,
        {name: metric_points(db, run.id, name) for name in metric_names(db, run.id)[:METRICS]},
        reader.scores(run.id),
        {row["role"]: row["value"] for row in db.execute(PROMPTS, (run.id,))},
        headline(db, run.id),
    )


def compare_page(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return what the page shows: the first run is the baseline, which the others are compared with."""
    base, rest = runs[0], runs[1:]
    names = list(dict.fromkeys(name for one in runs for name in one.metrics if one.metrics[name]))
    settings = [dict(flattened(one.run.config)) if one.run.config else {} for one in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    return {
        "runs": runs,
        "baselines": [(one, _query(one, runs)) for one in rest],
        "metrics": [(name, [summary(one, name) for one in runs]) for name in names],
        "settings": [
            (key, [one.get(key) for one in settings])
            for key in keys
            if len({one.get(key) for one in settings}) > 1
        ],
        "paired": [(one, pairs(base, one)) for one in rest],
        "curves": curves(runs, names),
        "prompts": [(one, prompts(base, one)) for one in rest],
    }


def _query(base: Compared, runs: Sequence[Compared]) -> str:
    """Return the query of the same comparison with another baseline."""
    return urlencode([("run", one.run.key) for one in (base, *(one for one in runs if one is not base))])


def summary(one: Compared, name: str) -> dict[str, Any] | None:
    """Return a metric's last value, and the best one where it is the run's headline; None where it has none."""
    points = one.metrics.get(name)
    if not points:
        return None
    main = one.headline
    return {"last": points[-1][1], "best": best_text(main) if main and main.metric == name else ""}


def pairs(base: Compared, other: Compared) -> list[tuple[str, Paired]]:
    """Return the paired differences over the samples that both have: in all, and in the phases of both."""
    found = compare(base.scores, other.scores)
    phases = [(title(one), one.paired) for one in (*found.kinds, *found.same) if one.paired.samples]
    return [("Last evaluation of each sample", found.last), *phases]


def title(phases: PhaseComparison) -> str:
    """Return what a line calls two phases: both where they differ."""
    names = dict.fromkeys(name or "no phase" for name in (phases.first, phases.second))
    return " vs ".join(names)


def prompts(base: Compared, other: Compared) -> list[tuple[str, list[Shown]]]:
    """Return, for each parameter of both runs that ended differently, the difference."""
    return [
        (role, shown_diff(base.prompts[role], value))
        for role, value in other.prompts.items()
        if role in base.prompts and base.prompts[role] != value
    ]


def curves(runs: Sequence[Compared], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a chart for each metric that several runs have, else for the first one."""
    several = [name for name in names if sum(name in one.metrics for one in runs) > 1] or list(names[:1])
    return [
        {
            "title": name,
            "lines": [
                {"name": plain(one.run.name), "points": one.metrics[name]}
                for one in runs
                if one.metrics.get(name)
            ],
        }
        for name in several[:4]
    ]
