"""The page that compares runs: a sentence on each, the differences behind it, and the samples that differ.

The first run is the baseline, and each of the others is compared with it. The differences are those of
`afnio runs compare`, from the same function. Rows of a test come first, because nothing was chosen by them; other
phases are folded. Every interval of the page is drawn on one axis, which is as wide as the widest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

from afnio.stats import Paired
from afnio.tellurio._compare import PhaseComparison, RunComparison, Sample, Scores, compare
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import Headline, RunRecord, SampleRecord, Spending
from afnio.tellurio.studio._runs import Tallies, best_text, flattened, mapping
from afnio.tellurio.studio._step import Shown, shown_diff
from afnio.tellurio.studio._text import plain

# Runs in one comparison.
MOST_RUNS: Final = 6
# Metrics of a run that are compared, the most telling ones.
COMPARED_METRICS: Final = 12
CHARTS: Final = 4
# Samples that are shown of those that one run did better, and of those that the other did.
DIFFERENT: Final = 20
COMPARED_PARAMETERS: Final = 20


class ComparedRun(NamedTuple):
    """One run's part in a comparison."""

    run: RunRecord
    total: Spending
    metrics: dict[str, list[tuple[int, float]]]
    scores: Scores
    prompts: dict[str, str]
    headline: Headline | None


def compared(reader: StoreReader, run: RunRecord, tallies: Tallies) -> ComparedRun:
    """Read one run's part in a comparison."""
    return ComparedRun(
        run,
        tallies.of(reader, run).total,
        {name: reader.metric_points(run.id, name) for name in reader.metric_names(run.id)[:COMPARED_METRICS]},
        Scores(reader.scores(run.id)),
        {one.role: one.value for one in reader.parameters(run.id, last=True, limit=COMPARED_PARAMETERS)},
        reader.headline(run.id),
    )


def compare_page(runs: Sequence[ComparedRun]) -> dict[str, Any]:
    """Return the page. The first run is the baseline."""
    base, rest = runs[0], runs[1:]
    names = list(dict.fromkeys(name for one in runs for name in one.metrics if one.metrics[name]))
    settings = [dict(flattened(config)) if (config := mapping(one.run.config)) else {} for one in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    pairs = {
        (one.run.key, other.run.key): compare(one.scores, other.scores)
        for one, other in combinations(runs, 2)
    }
    return {
        "runs": runs,
        "pairs": [[_pair(pairs, one.run.key, other.run.key) for other in runs] for one in runs],
        "reach": max((reach_of(one) for one in pairs.values()), default=0.0),
        "baselines": [(one, _query(one, runs)) for one in rest],
        "metrics": [(name, [last_and_best(one, name) for one in runs]) for name in names],
        "settings": [
            (key, [one.get(key) for one in settings])
            for key in keys
            if len({one.get(key) for one in settings}) > 1
        ],
        "paired": [difference_of(base, one, pairs[base.run.key, one.run.key]) for one in rest],
        "curves": shared_curves(runs, names),
        "prompts": [(one, prompt_differences(base, one)) for one in rest],
    }


def _pair(pairs: Mapping[tuple[str, str], RunComparison], run: str, other: str) -> Paired | None:
    """Return what decides between two runs, the first one minus the other; None of a run and itself."""
    if (other, run) in pairs:
        return pairs[other, run].main
    if (run, other) not in pairs:
        return None
    main = pairs[run, other].main
    low, high = (None if one is None else -one for one in (main.high, main.low))
    return main._replace(won=main.lost, lost=main.won, difference=-main.difference, low=low, high=high)


def _query(base: ComparedRun, runs: Sequence[ComparedRun]) -> str:
    """Return the query of the same comparison with another baseline."""
    return urlencode([("run", one.run.key) for one in (base, *(one for one in runs if one is not base))])


def last_and_best(one: ComparedRun, name: str) -> dict[str, Any] | None:
    """Return a metric's last value, and its best one if it is the run's headline; None if the run doesn't have it."""
    points = one.metrics.get(name)
    if not points:
        return None
    main = one.headline
    return {"last": points[-1][1], "best": best_text(main) if main and main.metric == name else ""}


class DifferentSample(NamedTuple):
    """A sample that two runs have different scores of: the rows of both."""

    first: SampleRecord
    second: SampleRecord


class Difference(NamedTuple):
    """What can be said of the baseline and another run.

    Attributes:
        claim: the sentence.
        lines: titles and paired differences, those that the sentence is about first.
        samples: how many are worse in the other run, and some of them; then the same of those that are better.
    """

    other: ComparedRun
    claim: str
    lines: list[tuple[str, Paired]]
    samples: list[tuple[str, int, list[DifferentSample]]]


def difference_of(base: ComparedRun, other: ComparedRun, comparison: RunComparison) -> Difference:
    """Return the difference of a run from the baseline: tests first, all samples last."""
    phases = [
        (phases_title(one), one.paired) for one in (*comparison.kinds, *comparison.same) if one.paired.samples
    ]
    lines = [*phases, ("Last evaluation of each sample", comparison.last)]
    if comparison.test is None:
        lines = [lines[-1], *phases]
    claim = comparison.claim(base.run.name, other.run.name)
    return Difference(other, claim, lines, different_samples(base, other, comparison.test))


def different_samples(
    base: ComparedRun, other: ComparedRun, test: PhaseComparison | None
) -> list[tuple[str, int, list[DifferentSample]]]:
    """Return the samples that did worse, and those that did better, in the phases that the claim is about."""
    phases = (None, None) if test is None else (test.first, test.second)
    first, second = (
        run.scores.last if phase is None else run.scores.phases[phase]
        for run, phase in zip((base, other), phases, strict=True)
    )
    found = []
    with StoreReader(base.run.store) as mine, StoreReader(other.run.store) as theirs:
        for title, sign in (("worse", -1), ("better", 1)):
            keys = [one for one, score in first.items() if one in second and sign * (second[one] - score) > 0]
            rows = [
                DifferentSample(
                    _sample(mine, base.run.id, one, phases[0]), _sample(theirs, other.run.id, one, phases[1])
                )
                for one in keys[:DIFFERENT]
            ]
            found.append((title, len(keys), rows))
    return [one for one in found if one[1]]


def _sample(reader: StoreReader, run: str, sample: Sample, phase: str | None) -> SampleRecord:
    key, number = sample
    if phase is None:
        return reader.samples(run, key=key, newest=True, limit=1)[0]
    return reader.samples(run, key=key, phase=phase, limit=number + 1)[-1]


def reach_of(comparison: RunComparison) -> float:
    """Return how far from 0 the intervals of a comparison reach."""
    paired = [one.paired for one in (*comparison.kinds, *comparison.same)] + [comparison.last]
    ends = [(one.low, one.high) for one in paired if one.samples]
    return max((abs(end) for both in ends for end in both if end is not None), default=0.0)


def phases_title(phases: PhaseComparison) -> str:
    """Return the title of two phases: both names if they differ."""
    names = dict.fromkeys(name or "no phase" for name in (phases.first, phases.second))
    return " vs ".join(names)


def prompt_differences(base: ComparedRun, other: ComparedRun) -> list[tuple[str, list[Shown]]]:
    """Return the differences of the parameters that are in both runs and ended with other values."""
    return [
        (role, shown_diff(base.prompts[role], value))
        for role, value in other.prompts.items()
        if role in base.prompts and base.prompts[role] != value
    ]


def shared_curves(runs: Sequence[ComparedRun], names: Sequence[str]) -> list[dict[str, Any]]:
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
