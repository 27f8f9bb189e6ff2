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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple, Self, final

from afnio._figures import Measured, counted, score_of
from afnio.studies._result import cell_of, in_time
from afnio.studies._rows import in_words, plainly
from afnio.tellurio._card import Bar, Card, Example
from afnio.tellurio._queries import home_folder

FORMAT: Final = 1
SHOWN: Final = 30
"""Groups that a page shows."""
MOST_ROWS: Final = 2_000
"""Rows of a card: those that are wrong, and those that crashed."""
LONGEST: Final = 5_000
"""Characters of a row's texts in a card."""


@final
@dataclass(frozen=True, slots=True)
class Draw:
    """One run of the agent on a row.

    Attributes:
        output: in words; None if the agent crashed.
        score: None if the agent or the metric crashed, or if the agent returned None.
        feedback: the metric's.
        error: why there is no score.
        calls, tokens, cost, seconds: of the agent's calls, the metric's left out. A call that the journal answered
            counts as when it was made. The cost is in dollars, None if a price is unknown; the seconds are on the wire.
    """

    output: str | None
    score: float | None
    feedback: str | None
    error: str | None
    calls: int
    tokens: int
    cost: float | None
    seconds: float


@final
@dataclass(frozen=True, slots=True, repr=False)
class EvaluatedRow:
    """A row and its draws.

    Attributes:
        number: its place in the data, from 0.
        key: a digest of its inputs.
        inputs, expected: as they were given; from a file, as JSON has them.
        draws: each with `output`, `score`, `feedback`, `error`, `calls`, `tokens`, `cost` and `seconds`.
    """

    number: int
    key: str
    inputs: Any
    expected: Any
    draws: tuple[Draw, ...]

    @property
    def score(self) -> float | None:
        """The mean of the draws that have a score; None without any."""
        return _mean(draw.score for draw in self.draws)

    @property
    def calls(self) -> float:
        """Of one draw, on average, as are `tokens`, `cost` and `seconds`."""
        return fmean(draw.calls for draw in self.draws)

    @property
    def tokens(self) -> float:
        return fmean(draw.tokens for draw in self.draws)

    @property
    def cost(self) -> float | None:
        costs = [draw.cost for draw in self.draws]
        return None if None in costs else _mean(costs)

    @property
    def seconds(self) -> float:
        return fmean(draw.seconds for draw in self.draws)

    @property
    def errors(self) -> list[str]:
        """Why draws have no score."""
        return [draw.error for draw in self.draws if draw.error is not None]

    def __repr__(self) -> str:
        said = dict.fromkeys(
            _short(draw.error if draw.output is None else draw.output) for draw in self.draws
        )
        score = "failed" if self.score is None else f"{self.score:.3g}"
        wanted = "" if self.expected is None else f", expected {_short(in_words(self.expected))}"
        return f"row {self.number}: {score}  {_short(in_words(self.inputs))} → {' | '.join(said)}{wanted}"


class RowList(list[EvaluatedRow]):
    """Rows, which `print` shows one a line."""

    def __str__(self) -> str:
        return "\n".join(map(repr, self))


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
class Evaluation:
    """What `afnio.evaluate` found. Print it, look at its rows, compare it with another, or save it.

    Attributes:
        name: of the agent, or the one that was given.
        rows: all rows, in the order of the data.
        perfect: the score of a right row.
        prompts: the agent's prompts.
        replayed: calls that the journal answered.
        judged: calls that the metric made.
        paid: dollars that this call of `evaluate` spent; None if a price is unknown.
        minutes: that it took.
        run: the run's name in the store, for `afnio studio`.
        notes: what else is to be known.
    """

    name: str
    rows: Sequence[EvaluatedRow]
    perfect: float
    prompts: Mapping[str, str]
    replayed: int
    judged: int
    paid: float | None
    minutes: float
    run: str
    home: str = ""
    notes: Sequence[str] = ()

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self

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
        chances: dict[str, list[tuple[float, float]]] = {}
        answers = 0
        for row in self.rows:
            scores = [draw.score for draw in row.draws if draw.score is not None]
            if len(scores) >= k:
                right = sum(score >= self.perfect for score in scores)
                ways = math.comb(len(scores), k)
                wrong = math.comb(len(scores) - right, k)
                chances.setdefault(row.key, []).append((1 - wrong / ways, math.comb(right, k) / ways))
                answers += len(scores)
        columns = [[fmean(part) for part in zip(*found, strict=True)] for found in chances.values()]
        one, every = ([column[place] for column in columns] for place in (0, 1))
        return Passes(*(score_of(part, graded=False, answers=answers) for part in (one, every)))

    def means(self) -> dict[str, float]:
        """Return the mean score of each input, by its key; inputs without a score are left out."""
        return _means(self.rows)

    def _score_of(self, rows: Sequence[EvaluatedRow]) -> Measured:
        answers = sum(draw.score is not None for row in rows for draw in row.draws)
        means = list(_means(rows).values())
        return score_of(means, graded=self.is_graded, highest=self.perfect, answers=answers)

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
            plain = {name: data[name] for name in (*_PLAIN, "prompts", "notes")}
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
        cost = "unpriced" if self.cost is None else f"${self.cost:.4f}"
        spent = (
            f"{counted(self.calls, 'call')}, {counted(self.tokens, 'token')}, {cost}, {in_time(self.minutes)}"
        )
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

    def report(self, path: str | Path = "evaluation.html") -> Path:
        """Write the evaluation and its run as one page that needs neither a server nor a network; return its path.

        The page has prompts, rows and replies in clear. Only the current user can read the file.

        Raises:
            ChoiceError: if the run is no longer in its folder.
        """
        from afnio.tellurio.studio._report import write_report

        return write_report(home_folder(self.home or None), self.run, Path(path))

    def _repr_html_(self) -> str:
        return cell_of(self.card)

    @property
    def card(self) -> Card:
        """What the pages of the run show first."""
        groups = list(self.by().items())
        wrong = [*self.worst(MOST_ROWS), *[row for row in self.failed if row.score is None][:MOST_ROWS]]
        return Card(
            verdict=self.sentence,
            bars=[Bar.of("score", self.score)],
            on=counted(self.score.rows, "row"),
            facts=[
                *self.figures(),
                *((f"expected {name}", str(score)) for name, score in groups if 1 < len(groups) <= SHOWN),
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


_PLAIN: Final = ("name", "perfect", "replayed", "judged", "paid", "minutes", "run", "home")


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _means(rows: Sequence[EvaluatedRow]) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            groups.setdefault(row.key, []).append(row.score)
    return {key: fmean(scores) for key, scores in groups.items()}


def _short(text: str | None) -> str:
    """Return a text on one line, with its ends if it is long; hidden characters by their numbers."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:60]}…{shown[-18:]}"
