"""Evaluated rows: what `afnio.evaluate` keeps of a row, and how a row differs between two evaluations."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple, final

from afnio.studies._rows import in_words


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
        said = dict.fromkeys(short(draw.error if draw.output is None else draw.output) for draw in self.draws)
        score = "failed" if self.score is None else f"{self.score:.3g}"
        wanted = "" if self.expected is None else f", expected {short(in_words(self.expected))}"
        return f"row {self.number}: {score}  {short(in_words(self.inputs))} → {' | '.join(said)}{wanted}"


class RowList(list[EvaluatedRow]):
    """Rows, which `print` shows one a line."""

    def __str__(self) -> str:
        return "\n".join(map(repr, self))


class ChangedRow(NamedTuple):
    """A row in both evaluations."""

    before: EvaluatedRow
    after: EvaluatedRow

    @property
    def difference(self) -> float:
        """The second mean score less the first."""
        return (self.after.score or 0.0) - (self.before.score or 0.0)

    def __repr__(self) -> str:
        outputs = " → ".join(short(row.draws[0].output) for row in self)
        wanted = "" if self.after.expected is None else f", expected {short(in_words(self.after.expected))}"
        text = short(in_words(self.after.inputs))
        return f"row {self.after.number}: {self.difference:+.3g}  {text}: {outputs}{wanted}"


class Changes(list[ChangedRow]):
    """Rows whose score changed, the largest changes first; `print` shows one a line."""

    def __str__(self) -> str:
        return "\n".join(map(repr, self))


def _mean(values: Any) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None


def short(text: str | None) -> str:
    """Return a text on one line, with its ends if it is long; hidden characters by their numbers."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:60]}…{shown[-18:]}"
