"""Card: what a run found, in one sentence and with the evidence for it, the same wherever the run is shown.

A study writes its card into its run (`Card.to_json`, recorded as an event `CARD`). The studio, the report, `afnio runs`
and a notebook all show that one. Other runs have no card of their own, and `card_of` makes one of what was recorded. A
training that was tested before and after has a first and a last test, which are compared row by row, and the verdict of
a gate. A run without a test has the metric that it watched, and no gain is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self, final

from afnio._figures import Measured, compared, counted, score_of
from afnio.tellurio._compare import Scores, kind_of
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import CandidateRecord, SampleRecord
from afnio.tellurio._schema import evaluation_of

# The kind of the event that holds a run's card.
CARD: Final = "Card"
# The kind of the phases in which a Trainer tests.
TEST: Final = "test"
# Rows of a test that are read for a card.
MOST_ROWS: Final = 2_000


@final
@dataclass(frozen=True, slots=True)
class Example:
    """A row behind the scores.

    Attributes:
        outputs: of the old and of the new prompts, or only one if there was one look; None where the row crashed.
        scores: likewise.
        sample: the id of its last evaluation in the store, or None if unknown.
    """

    number: int
    inputs: str
    expected: str
    outputs: tuple[str | None, ...]
    scores: tuple[float | None, ...]
    sample: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Bar:
    """A score to draw. Bars are drawn for scores between 0 and 1.

    Attributes:
        low, high: of its 95 % interval, or None.
        count: the rows behind it, such as "25 of 60".
    """

    name: str
    mean: float
    low: float | None
    high: float | None
    count: str

    @classmethod
    def of(cls, name: str, measured: Measured) -> Self:
        right = getattr(measured, "right", None)
        count = counted(measured.rows, "row") if right is None else f"{right} of {measured.rows}"
        return cls(name, measured.mean, measured.low, measured.high, count)

    @property
    def is_share(self) -> bool:
        return all(value is None or 0 <= value <= 1 for value in (self.mean, self.low, self.high))

    def __str__(self) -> str:
        shown = f"{100 * self.mean:.1f} %" if self.is_share else f"{self.mean:.3g}"
        return f"{shown} ({self.count})"


@final
@dataclass(frozen=True, slots=True)
class Card:
    """The findings of a run.

    Attributes:
        verdict: one sentence.
        tone: "good" or "bad" if the sentence claims a gain or a loss, else "".
        bars: the scores that it is about, such as before and after.
        on: the rows that they are of, such as "60 test rows"; "" if unknown.
        facts: other figures, as pairs of a name and a text.
        prompts: those to use, by name; `start` are those that the run began with.
        rows: the rows behind the scores.
        top: the score of a right row.
    """

    verdict: str
    tone: str = ""
    bars: Sequence[Bar] = ()
    on: str = ""
    facts: Sequence[tuple[str, str]] = ()
    start: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Example] = ()
    top: float = 1.0

    @property
    def groups(self) -> list[tuple[str, list[Example]]]:
        """The rows that a reader wants to see, those that are wrong now first.

        >>> rows = [Example(n, "", "", ("a", "b"), scores) for n, scores in enumerate([(0, 1), (1, 0), (0, 0), (1, 1)])]
        >>> [(title, [one.number for one in rows]) for title, rows in Card("", rows=rows).groups]
        [('Wrong now', [1, 2]), ('Worse', [1]), ('Better', [0])]
        """
        ends = [(one, one.scores[0], one.scores[-1]) for one in self.rows]
        both = [
            (one, before, after) for one, before, after in ends if before is not None and after is not None
        ]
        found = (
            ("Wrong now", [one for one, _, after in ends if after is not None and after < self.top]),
            ("Worse", [one for one, before, after in both if after < before]),
            ("Better", [one for one, before, after in both if after > before]),
            ("Crashed", [one for one, _, after in ends if after is None]),
        )
        return [(title, rows) for title, rows in found if rows]

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain data, for `Run.record`."""
        return {
            **{name: getattr(self, name) for name in ("verdict", "tone", "on", "top")},
            "bars": [[one.name, one.mean, one.low, one.high, one.count] for one in self.bars],
            "facts": [list(pair) for pair in self.facts],
            "start": dict(self.start),
            "prompts": dict(self.prompts),
            "rows": [
                [one.number, one.inputs, one.expected, list(one.outputs), list(one.scores)]
                for one in self.rows
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the card that `to_json` made data of.

        Raises:
            KeyError, TypeError, ValueError: if it isn't one.
        """
        return cls(
            str(data["verdict"]), str(data["tone"]), [Bar(*one) for one in data["bars"]], str(data["on"]),
            [(str(name), str(text)) for name, text in data["facts"]], dict(data["start"]), dict(data["prompts"]),
            [Example(a, b, c, tuple(d), tuple(e)) for a, b, c, d, e in data["rows"]], float(data["top"]),
        )  # fmt: skip


# Cards of runs


def card_of(reader: StoreReader, run: str, *, rows: bool = True) -> Card | None:
    """Return a run's card; None if nothing in it was measured yet.

    Args:
        rows: read the rows behind a test. Without them the card is made quickly, as a list of runs needs it.
    """
    return kept_card(reader, run) or _tested(reader, run, rows=rows) or _watched(reader, run)


def kept_card(reader: StoreReader, run: str) -> Card | None:
    """Return the card that a study wrote; None if there is none."""
    try:
        payload = reader.last_event(run, CARD)
        return None if payload is None else Card.from_json(payload)
    except (KeyError, TypeError, ValueError):  # its JSON was redacted, or edited
        return None


def _tested(reader: StoreReader, run: str, *, rows: bool) -> Card | None:
    """Return the card of a run that was tested: its last test against its first."""
    tests = list(dict.fromkeys(map(evaluation_of, reader.phases_like(run, TEST))))
    tests = [name for name in tests if kind_of(name) == TEST]
    ends = list(dict.fromkeys((*tests[:1], *tests[-1:])))
    phases = Scores([row for name in ends for row in reader.scores(run, name)]).phases
    if not ends or len(phases) < len(ends):
        return None
    start, prompts = _prompts(reader, run)
    gate = _gated(reader, run)
    facts = [] if gate is None else [("gate", gate.verdict.removeprefix("accepted: "))]
    looks = _rows(reader, run, ends) if rows else []
    first, last = phases[ends[0]], phases[ends[-1]]
    both = [sample for sample in first if sample in last]
    graded = any(score not in (0, 1) for score in (*first.values(), *last.values()))
    top = max(1.0, *last.values())
    if len(ends) == 1 or not both:
        measured = score_of(list(last.values()), graded=graded)
        more = "; a second test would measure a gain" if prompts else ""
        on = counted(measured.rows, "test row")
        return Card(
            f"{measured} on {on}{more}.",
            "",
            [Bar.of("test", measured)],
            on,
            facts,
            start,
            prompts,
            looks,
            top,
        )
    before, after, gain = compared([first[one] for one in both], [last[one] for one in both], graded=graded)
    bars, on = [Bar.of("before", before), Bar.of("after", after)], counted(len(both), "test row")
    facts.insert(0, ("gain", str(gain)))
    return Card(gain.claim(on), gain.tone, bars, on, facts, start, prompts, looks, top)


def _watched(reader: StoreReader, run: str) -> Card | None:
    """Return the card of a run without a test: the metric that sums it up."""
    main = reader.headline(run)
    if main is None:
        return None
    best = f", at best {main.best:.3g} at {main.unit} {main.step}" if main.best is not None else ""
    start, prompts = _prompts(reader, run)
    claim = "; no test has measured a gain" if prompts else ""
    return Card(f"{main.metric} {main.value:.3g}{best}{claim}.", start=start, prompts=prompts)


def _prompts(reader: StoreReader, run: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the first and the last values of a run's parameters, by role."""
    values = reader.parameters(run)
    roles = [one.role for one in values if one.step == 0]

    def name(role: str, number: int) -> str:
        return role if roles.count(role) == 1 else f"{role} {number + 1}"

    first = {name(one.role, one.number): one.value for one in reversed(values)}
    return first, {name(one.role, one.number): one.value for one in values}


def _gated(reader: StoreReader, run: str) -> CandidateRecord | None:
    """Return the result that a gate last compared with its start; None without a gate."""
    gates = [step.number for step in reader.steps(run) if step.optimizer == "Gate"]
    compared = reader.race(run, gates[-1]) if gates else []
    return compared[-1] if compared else None


def _rows(reader: StoreReader, run: str, phases: Sequence[str]) -> list[Example]:
    """Return the rows of one or two evaluations. A row is known by its key, and its copies by their order."""
    looks: list[dict[tuple[str, int], SampleRecord]] = []
    for phase in phases:
        looks.append({})
        seen: dict[str, int] = {}
        for one in reader.samples(run, phase=phase, limit=MOST_ROWS):
            if one.key is not None:
                seen[one.key] = seen.get(one.key, -1) + 1
                looks[-1][one.key, seen[one.key]] = one
    rows = []
    for number, (sample, last) in enumerate(looks[-1].items()):
        pair = [look[sample] for look in (*looks[:-1], {sample: last}) if sample in look]
        if len(pair) == len(looks):
            outputs, scores = tuple(one.prediction for one in pair), tuple(one.score for one in pair)
            rows.append(Example(number, last.inputs or "", last.target or "", outputs, scores, last.id))
    return rows
