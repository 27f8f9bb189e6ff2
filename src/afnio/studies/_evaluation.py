"""Evaluation: what `afnio.evaluate` found, as an object, a text, a page, a table and a file.

The unit of evidence is an input. Its score is the mean over its draws and over rows with equal inputs: answers to one
input resemble each other, and counted as independent they would make the interval too narrow.
"""

from __future__ import annotations

import functools
import json
import math
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, final

from afnio._figures import Gain, Measured, compared, counted, score_of
from afnio.stats import ratio_interval
from afnio.studies._evaluated import ChangedRow, Changes, Draw, EvaluatedRow, RowList
from afnio.studies._result import Carded, Reported, spending
from afnio.studies._rows import in_words, means_by_input, plainly
from afnio.tellurio._card import Bar, Card, Example

FORMAT: Final = 1
# Groups that a page shows.
SHOWN: Final = 30
# Rows of a card: those that are wrong, and those that crashed.
MOST_ROWS: Final = 2_000
# Characters of a row's texts in a card.
LONGEST: Final = 5_000
# A row that changes by more than this share of the perfect score has flipped, and not just one draw of
# several.
HALF: Final = 0.5
TIMES: Final = "\N{MULTIPLICATION SIGN}"
MEASURES: Final = ("tokens", "cost", "seconds", "calls")
Measure = Literal["tokens", "cost", "seconds", "calls"]


class Groups(dict[str, Measured]):
    """The scores of groups of rows, the lowest first; `print` shows one a line."""

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=0)
        return "\n".join(f"{name:<{width}}  {score}" for name, score in self.items())


class Passes(NamedTuple):
    """How often at least one of k draws of a row is right (pass@k), and how often all are (pass^k)."""

    any: Measured
    all: Measured


@final
@dataclass(frozen=True, repr=False, eq=False)
class Evaluation(Reported):
    """What `afnio.evaluate` found. Print it, look at its rows, compare it with another, or save it.

    Attributes:
        name: of the agent, or the one that was given.
        rows: all rows, in the order of the data.
        metric: its name.
        perfect: the score of a right row.
        prompts: the agent's prompts.
        replayed: calls that the journal answered.
        judged: calls that the metric made.
        paid: dollars that this call of `evaluate` spent; None if a price is unknown.
        minutes: that it took.
        run: the run's name in the store, for `afnio studio`.
        notes: what else is to be known.
        trained: digests of those inputs that an optimization in the same folder trained the prompts on.
    """

    name: str
    rows: Sequence[EvaluatedRow]
    metric: str
    perfect: float
    prompts: Mapping[str, str]
    replayed: int
    judged: int
    paid: float | None
    minutes: float
    run: str
    home: str = ""
    notes: Sequence[str] = ()
    trained: Sequence[str] = ()

    @property
    def draws(self) -> int:
        return max((len(row.draws) for row in self.rows), default=0)

    @functools.cached_property
    def is_graded(self) -> bool:
        """True if a score is neither 0 nor 1."""
        return any(draw.score not in (None, 0, 1) for row in self.rows for draw in row.draws)

    @property
    def score(self) -> Measured:
        """The mean score of all inputs, with its 95 % interval (`mean`, `low`, `high`)."""
        return self._score_of(self.rows)

    @property
    def calls(self) -> int:
        """Calls of the agent, those included that the journal answered; likewise `tokens` and `cost`."""
        return sum(draw.calls for row in self.rows for draw in row.draws)

    @property
    def tokens(self) -> int:
        return sum(draw.tokens for row in self.rows for draw in row.draws)

    @property
    def cost(self) -> float | None:
        costs = [draw.cost for row in self.rows for draw in row.draws]
        return None if None in costs else math.fsum(cost for cost in costs if cost is not None)

    @property
    def flaky(self) -> RowList:
        """The rows whose draws have different scores."""
        return RowList(row for row in self.rows if len({draw.score for draw in row.draws} - {None}) > 1)

    @property
    def failed(self) -> RowList:
        """The rows of which a draw has no score; `row.errors` says why."""
        return RowList(row for row in self.rows if row.errors)

    def worst(self, count: int = 5) -> RowList:
        """Return the rows with the lowest scores, right ones left out."""
        wrong = [row for row in self.rows if row.score is not None and row.score < self.perfect]
        return RowList(sorted(wrong, key=lambda row: (row.score, row.number))[:count])

    def by(self, group: str | Callable[[EvaluatedRow], object] | None = None) -> Groups:
        """Return the scores of groups of rows, the lowest first.

        Args:
            group: the name of an input, or a function of a row; by default what is expected.

        Raises:
            ValueError: if the rows have no such input.
        """
        groups: dict[str, list[EvaluatedRow]] = {}
        for row in self.rows:
            if callable(group):
                value = group(row)
            elif group is None:
                value = row.expected
            elif isinstance(row.inputs, Mapping) and group in row.inputs:
                value = row.inputs[group]
            else:
                names = (
                    ", ".join(row.inputs) if isinstance(row.inputs, Mapping) else "one value without a name"
                )
                raise ValueError(
                    f"group must be an input's name (got {group!r}; row {row.number} has {names})"
                )
            groups.setdefault(in_words(value), []).append(row)
        scores = {name: self._score_of(rows) for name, rows in groups.items()}
        return Groups(sorted(scores.items(), key=lambda pair: (not pair[1].mean >= 0, pair[1].mean)))

    def passes(self, k: int) -> Passes:
        """Return how often one of `k` draws is right, and how often all are, estimated without bias from all draws.

        Rows with fewer than `k` scores are left out.

        Raises:
            ValueError: if there are fewer draws.
        """
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.draws:
            raise ValueError(f"k must be from 1 to the number of draws, {self.draws} (got {k!r})")
        keys: list[str] = []
        any_right: list[float] = []
        all_right: list[float] = []
        answers = 0
        for row in self.rows:
            scores = [draw.score for draw in row.draws if draw.score is not None]
            if len(scores) >= k:
                right = sum(score >= self.perfect for score in scores)
                ways = math.comb(len(scores), k)
                wrong = math.comb(len(scores) - right, k)
                keys.append(row.key)
                any_right.append(1 - wrong / ways)
                all_right.append(math.comb(right, k) / ways)
                answers += len(scores)
        means = means_by_input(keys, any_right, all_right)
        return Passes(*(score_of(part, graded=False, answers=answers) for part in means))

    def _score_of(self, rows: Sequence[EvaluatedRow]) -> Measured:
        (means,) = means_by_input([row.key for row in rows], [row.score for row in rows])
        return score_of(means, graded=self.is_graded, highest=self.perfect, answers=_answers(rows))

    def compare(self, after: Evaluation) -> Comparison:
        """Compare this evaluation with a later one, or another agent's, on the inputs that both have.

        Raises:
            ValueError: if no input has a score in both.
        """
        return Comparison.of(self, after)

    # Other forms

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield a dict for each draw of each row."""
        for row in self.rows:
            inputs = row.inputs if isinstance(row.inputs, Mapping) else {"inputs": row.inputs}
            for number, draw in enumerate(row.draws, 1):
                yield {"row": row.number, "draw": number, **inputs, "expected": row.expected, **asdict(draw)}

    def to_pandas(self) -> Any:
        """Return a DataFrame with a line for each draw of each row.

        Raises:
            ImportError: if pandas isn't installed.
        """
        import pandas as pd  # type: ignore[import-untyped]

        return pd.DataFrame(list(self.records()))

    def save(self, path: str | Path) -> Path:
        """Write the evaluation to a JSON file, which only the current user can read. It is replaced as a whole."""
        path = Path(path)
        data = {
            "afnio.evaluation": FORMAT,
            **{name: getattr(self, name) for name in _PLAIN},
            "prompts": dict(self.prompts),
            "notes": list(self.notes),
            "trained": list(self.trained),
            "rows": [
                [
                    row.number,
                    row.key,
                    row.inputs,
                    row.expected,
                    [list(asdict(draw).values()) for draw in row.draws],
                ]
                for row in self.rows
            ],
        }
        text = json.dumps(data, default=plainly)
        descriptor, temporary = tempfile.mkstemp(prefix=".evaluation-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Return the evaluation that `save` wrote.

        Raises:
            ValueError: if the file is no evaluation.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
            if data["afnio.evaluation"] != FORMAT:
                raise ValueError(f"its format is {data['afnio.evaluation']!r}, which this Afnio can't read")
            rows = [
                EvaluatedRow(number, key, inputs, expected, tuple(Draw(*draw) for draw in draws))
                for number, key, inputs, expected, draws in data["rows"]
            ]
            plain = {name: data[name] for name in (*_PLAIN, "prompts", "notes", "trained")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} must be a file of Evaluation.save (got {error!r})") from None
        return cls(rows=rows, **plain)

    def __repr__(self) -> str:
        return f"<Evaluation of {self.name}: {self.score}>"

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"{name}: {text}" for name, text in self.figures())])

    @property
    def sentence(self) -> str:
        """The score, and how many rows are flaky."""
        said = f"{self.name}: {self.score}"
        if self.draws > 1:
            said += (
                f"; {len(self.flaky)} of {counted(len(self.rows), 'row')} differ between {self.draws} draws"
            )
        return said

    def figures(self) -> list[tuple[str, str]]:
        """Return the figures as pairs of a name and a text, as `print` and the page show them."""
        spent = spending(self.calls, self.tokens, self.cost, self.minutes)
        if self.judged:
            spent += f"; {counted(self.judged, 'call')} of the metric"
        if self.replayed:
            spent += f"; {self.replayed:,} of the calls from the journal"
        rows = [("spent", spent)]
        if self.failed:
            first = self.failed[0]
            text = f"{counted(len(self.failed), 'row')}, first row {first.number}: {first.errors[0]}"
            rows.append(("failed", text))
        return [*rows, *(("note", note) for note in self.notes), ("run", self.run)]

    @property
    def card(self) -> Card:
        """The card that the pages of the run show first."""
        labels = {in_words(row.expected) for row in self.rows}
        groups = self.by().items() if 1 < len(labels) <= SHOWN else ()
        wrong = [*self.worst(MOST_ROWS), *[row for row in self.failed if row.score is None][:MOST_ROWS]]
        return Card(
            verdict=self.sentence,
            bars=[Bar.of("score", self.score)],
            on=counted(self.score.rows, "row"),
            facts=[
                *self.figures(),
                *((f"expected {name}", str(score)) for name, score in groups),
            ],
            start=self.prompts,
            prompts=self.prompts,
            rows=[_example(row) for row in wrong],
            top=self.perfect,
        )


def _example(row: EvaluatedRow) -> Example:
    said = dict.fromkeys(
        draw.error or "no output" if draw.output is None else draw.output for draw in row.draws
    )
    text = " | ".join(said)[:LONGEST]
    return Example(
        row.number, in_words(row.inputs)[:LONGEST], in_words(row.expected)[:LONGEST], (text,), (row.score,)
    )


def _paired_example(change: ChangedRow) -> Example:
    before, after = _example(change.before), _example(change.after)
    return replace(after, outputs=before.outputs + after.outputs, scores=before.scores + after.scores)


# Comparing two


class Ratio(NamedTuple):
    """How many times as much a row takes in the second evaluation: the geometric mean, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{TIMES}{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@final
@dataclass(frozen=True, repr=False, eq=False)
class Comparison(Carded):
    """The difference between two evaluations. `print` it for the verdict.

    Attributes:
        before, after: the evaluations.
        changes: the rows that have a score in both.
        scores: the mean scores of the inputs in both, before and after.
        gain: their paired difference, with its interval; `gain.is_clear` and `gain.is_loss`.
        notes: what the difference may be due to other than the agent.
    """

    before: Evaluation
    after: Evaluation
    changes: Sequence[ChangedRow]
    scores: tuple[Measured, Measured]
    gain: Gain
    notes: Sequence[str]

    @classmethod
    def of(cls, before: Evaluation, after: Evaluation) -> Self:
        """Pair two evaluations by input; equal inputs in the order of their rows.

        Raises:
            ValueError: if no input has a score in both.
        """
        theirs: dict[str, list[EvaluatedRow]] = defaultdict(list)
        for row in before.rows:
            theirs[row.key].append(row)
        pairs = [ChangedRow(theirs[row.key].pop(0), row) for row in after.rows if theirs.get(row.key)]
        changes = [pair for pair in pairs if pair.before.score is not None and pair.after.score is not None]
        if not changes:
            raise ValueError(
                f"two evaluations must have rows with equal inputs that both could score (got none among "
                f"{len(before.rows)} and {len(after.rows)} rows)"
            )
        old, new, gain = compared(
            *_by_input(changes, lambda row: row.score),
            graded=before.is_graded or after.is_graded,
            highest=max(before.perfect, after.perfect),
            answers=(_answers(one.before for one in changes), _answers(one.after for one in changes)),
        )
        return cls(before, after, changes, (old, new), gain, _notes(before, after, pairs, changes))

    @property
    def won(self) -> Changes:
        """The rows that are better in the second evaluation."""
        return Changes(
            sorted((one for one in self.changes if one.difference > 0), key=lambda one: -one.difference)
        )

    @property
    def lost(self) -> Changes:
        """The rows that are worse."""
        return Changes(
            sorted((one for one in self.changes if one.difference < 0), key=lambda one: one.difference)
        )

    def ratio(self, measure: Measure) -> Ratio | None:
        """Return how many times the tokens, the cost, the seconds or the calls of a row the second evaluation takes.

        None if fewer than two inputs have both, as without calls or prices.
        """
        if measure not in MEASURES:
            raise ValueError(f'measure must be "tokens", "cost", "seconds" or "calls" (got {measure!r})')
        interval = ratio_interval(*_by_input(self.changes, lambda row: getattr(row, measure)))
        return None if interval is None else Ratio(*interval)

    @property
    def verdict(self) -> str:
        """The difference in a sentence."""
        said = (
            "Better" if self.gain.is_clear else "Worse" if self.gain.is_loss else "No difference beyond noise"
        )
        before, after = (
            f"{one.mean:.3g}" if self.gain.graded else f"{100 * one.mean:.1f} %" for one in self.scores
        )
        rows = counted(self.gain.rows, "row")
        return f"{said}: {self.gain.amount} (95 %: {self.gain.interval}) on {rows}, {before} before and {after} after."

    def figures(self) -> list[tuple[str, str]]:
        """Return the figures as pairs of a name and a text, as `print` shows them."""
        highest = HALF * abs(self.after.perfect)
        parts = []
        for name, changes in (("better", self.won), ("worse", self.lost)):
            large = sum(abs(one.difference) > highest for one in changes)
            text = f"{counted(len(changes), 'row')} {name}"
            parts.append(text if large == len(changes) else f"{text}, {large} of them by more than half")
        ratios = [f"{name} {ratio}" for name in MEASURES[:3] if (ratio := self.ratio(name)) is not None]
        rows = [("changed", "; ".join(parts)), *([("takes", ", ".join(ratios))] if ratios else [])]
        return [*rows, *(("note", note) for note in self.notes)]

    def __str__(self) -> str:
        return "\n".join([self.verdict, *(f"{name}: {text}" for name, text in self.figures())])

    def __repr__(self) -> str:
        return f"<Comparison: {self.verdict}>"

    @property
    def card(self) -> Card:
        """The card that a notebook shows: the scores of the compared rows, and those that changed."""
        return Card(
            verdict=self.verdict,
            tone=self.gain.tone,
            bars=[Bar.of(name, score) for name, score in zip(("before", "after"), self.scores, strict=True)],
            on=counted(self.gain.rows, "row"),
            facts=self.figures(),
            start=self.before.prompts,
            prompts=self.after.prompts,
            rows=[_paired_example(one) for one in (*self.lost[:MOST_ROWS], *self.won[:MOST_ROWS])],
            top=self.after.perfect,
        )


# Helpers


_PLAIN: Final = ("name", "metric", "perfect", "replayed", "judged", "paid", "minutes", "run", "home")


def _answers(rows: Iterable[EvaluatedRow]) -> int:
    return sum(draw.score is not None for row in rows for draw in row.draws)


def _notes(
    before: Evaluation, after: Evaluation, pairs: Sequence[ChangedRow], changes: Sequence[ChangedRow]
) -> list[str]:
    notes = []
    trained = {*before.trained, *after.trained}
    seen = sum(one.after.key in trained for one in changes)
    if seen:
        notes.append(
            f"{seen} of these {len(changes)} rows were trained on, so the gain on new rows is smaller"
        )
    alone = len(before.rows) + len(after.rows) - 2 * len(pairs)
    if alone:
        notes.append(f"{counted(alone, 'row')} in only one of the two evaluations, left out")
    if len(changes) < len(pairs):
        notes.append(
            f"{counted(len(pairs) - len(changes), 'row')} without a score in one of the two, left out"
        )
    relabelled = sum(in_words(one.before.expected) != in_words(one.after.expected) for one in changes)
    if relabelled:
        notes.append(f"{counted(relabelled, 'row')} with another label than before")
    if (before.metric, before.perfect) != (after.metric, after.perfect):
        metrics = [f"{one.metric} (perfect {one.perfect:g})" for one in (before, after)]
        notes.append(f"the metrics have different names: {metrics[0]} and {metrics[1]}")
    return notes


def _by_input(
    changes: Sequence[ChangedRow], value: Callable[[EvaluatedRow], float | None]
) -> tuple[list[float], list[float]]:
    """Return the mean of a row's figure for each input, before and after."""
    sides = ([value(one[place]) for one in changes] for place in (0, 1))
    before, after = means_by_input([one.after.key for one in changes], *sides)
    return before, after
