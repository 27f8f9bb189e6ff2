"""The page that compares runs: a sentence on each, the differences behind it, and the samples that differ.

The first run is the baseline, and each of the others is compared with it. The differences are those of
`afnio runs compare`, from the same function. Rows of a test come first, because nothing was chosen by them; other
phases are folded. Every interval of the page is drawn on one axis, which is as wide as the widest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from afnio.stats import Paired
from afnio.tellurio._compare import PhaseComparison, Scores, compare
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import Headline, RunRecord, Spending
from afnio.tellurio.studio._runs import Tallies, best_text, flattened, mapping
from afnio.tellurio.studio._step import Shown, shown_diff
from afnio.tellurio.studio._text import plain

MOST_RUNS: Final = 6
"""Runs in one comparison."""
COMPARED_METRICS: Final = 12
"""Metrics of a run that are compared, the most telling ones."""
CHARTS: Final = 4
COMPARED_PARAMETERS: Final = 20


class Compared(NamedTuple):
    """One run's part in a comparison."""

    run: RunRecord
    total: Spending
    metrics: dict[str, list[tuple[int, float]]]
    scores: Scores
    prompts: dict[str, str]
    headline: Headline | None


def compared(reader: StoreReader, run: RunRecord, tallies: Tallies) -> Compared:
    """Read one run's part in a comparison."""
    return Compared(
        run,
        tallies.of(reader, run).total,
        {name: reader.metric_points(run.id, name) for name in reader.metric_names(run.id)[:COMPARED_METRICS]},
        Scores(reader.scores(run.id)),
        {one.role: one.value for one in reader.parameters(run.id, last=True, limit=COMPARED_PARAMETERS)},
        reader.headline(run.id),
    )


def compare_page(runs: Sequence[Compared]) -> dict[str, Any]:
    """Return the page. The first run is the baseline."""
    base, rest = runs[0], runs[1:]
    names = list(dict.fromkeys(name for one in runs for name in one.metrics if one.metrics[name]))
    settings = [dict(flattened(config)) if (config := mapping(one.run.config)) else {} for one in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    return {
        "runs": runs,
        "baselines": [(one, _query(one, runs)) for one in rest],
        "metrics": [(name, [last_and_best(one, name) for one in runs]) for name in names],
        "settings": [
            (key, [one.get(key) for one in settings])
            for key in keys
            if len({one.get(key) for one in settings}) > 1
        ],
        "paired": [(one, *paired_differences(base, one)) for one in rest],
        "curves": shared_curves(runs, names),
        "prompts": [(one, prompt_differences(base, one)) for one in rest],
    }


def _query(base: Compared, runs: Sequence[Compared]) -> str:
    """Return the query of the same comparison with another baseline."""
    return urlencode([("run", one.run.key) for one in (base, *(one for one in runs if one is not base))])


def last_and_best(one: Compared, name: str) -> dict[str, Any] | None:
    """Return a metric's last value, and its best one if it is the run's headline; None if the run doesn't have it."""
    points = one.metrics.get(name)
    if not points:
        return None
    main = one.headline
    return {"last": points[-1][1], "best": best_text(main) if main and main.metric == name else ""}


def paired_differences(base: Compared, other: Compared) -> tuple[str, list[tuple[str, Paired]]]:
    """Return what can be said of two runs, and their paired differences with titles: tests first, all samples last."""
    comparison = compare(base.scores, other.scores)
    phases = [
        (phases_title(one), one.paired) for one in (*comparison.kinds, *comparison.same) if one.paired.samples
    ]
    return comparison.claim, [*phases, ("Last evaluation of each sample", comparison.last)]


def phases_title(phases: PhaseComparison) -> str:
    """Return the title of two phases: both names if they differ."""
    names = dict.fromkeys(name or "no phase" for name in (phases.first, phases.second))
    return " vs ".join(names)


def prompt_differences(base: Compared, other: Compared) -> list[tuple[str, list[Shown]]]:
    """Return the differences of the parameters that are in both runs and ended with other values."""
    return [
        (role, shown_diff(base.prompts[role], value))
        for role, value in other.prompts.items()
        if role in base.prompts and base.prompts[role] != value
    ]


def shared_curves(runs: Sequence[Compared], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a chart for each metric that several runs have; if there is none, one for the first metric."""
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
        for name in several[:CHARTS]
    ]
