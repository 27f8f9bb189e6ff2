"""Rows: the data of `afnio.optimize`, read once and split once.

A user's row says what the agent gets and what is expected. `read_rows` accepts the few forms in which people keep such
data and refuses the rest: a guess at which column is the label would train on the wrong one without an error.

`split_rows` decides which rows do what. Each row has one job, because a row that was used to choose a prompt can't
measure it any more:

    train    the optimizer learns from its mistakes on these, and races candidates on them; guards are among them
    held     used once, at the end (`_held`): are the new prompts better than the old ones, and by how much?
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final, Self, final

from afnio.autodiff._variable import Variable

# Fewer training rows than these can't teach.
TAUGHT: Final = 8
# Fewer held-out rows than these say nothing: a gain of ten points would be kept as often as chance.
HELD: Final = 12
FEWEST: Final = TAUGHT + HELD
_INPUTS: Final = "inputs"
_EXPECTED: Final = ("expected", "expectations")
_FORMS: Final = (
    '(inputs, expected), or a dict with "inputs" and "expected", or a dict of inputs with the key "expected"'
)


@final
@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: its place in the user's data, from 0.
        args, kwargs: what the agent is called with: one value by position, or a dict by name.
        expected: what the metric compares with; None if there is nothing.
        text: the inputs in words, for critics and pages.
    """

    number: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: Any
    text: str

    @property
    def inputs(self) -> Any:
        """The inputs as the user gave them: the value, or the dict."""
        return self.args[0] if self.args else dict(self.kwargs)

    @property
    def key(self) -> str:
        """A digest of the inputs: the unit of evidence, as copies of a row say nothing new."""
        return digest(self.args, self.kwargs)

    @classmethod
    def of(cls, number: int, inputs: Any, expected: Any) -> Self:
        inputs, expected = unwrapped(inputs), unwrapped(expected)
        for value in (inputs, expected):
            check_text(f"row {number}", in_words(value))
        if not isinstance(inputs, Mapping):
            return cls(number, (inputs,), {}, expected, in_words(inputs))
        for name in inputs:
            if not isinstance(name, str) or not name.isidentifier():
                raise TypeError(
                    f"row {number}: inputs in a dict are arguments by name, so each key must be an identifier "
                    f"(got {name!r}); to pass the dict itself, wrap it: ({{'data': {{...}}}}, expected)"
                )
        return cls(number, (), dict(inputs), expected, in_words(dict(inputs)))


def in_words(value: Any) -> str:
    """Return a value as a text for critics and pages: a text itself, other data as JSON if possible.

    >>> in_words("Hi"), in_words({"question": "Why?", "n": 2})
    ('Hi', '{"question": "Why?", "n": 2}')
    """
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=plainly)
    except (TypeError, ValueError):
        return repr(value)


def check_text(name: str, text: str) -> None:
    """Raise a `ValueError` for a text that can't be sent or stored."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must have text that UTF-8 can express (got {text[error.start]!a} at {error.start}, half of a "
            "character); clean it by text.encode('utf-8', 'replace').decode()"
        ) from None


def plainly(value: Any) -> Any:
    for method in ("model_dump", "to_dict", "tolist", "_asdict"):
        if callable(to_plain := getattr(value, method, None)):
            return to_plain()
    return repr(value)


def unwrapped(value: Any) -> Any:
    """Return a value with the data of Variables in their places, as Afnio's own datasets have them."""
    if isinstance(value, Variable):
        return value.data
    if type(value) is tuple:
        return tuple(unwrapped(part) for part in value)
    if type(value) is dict:
        return {name: unwrapped(part) for name, part in value.items()}
    return value


# Reading


def read_rows(data: Any, name: str = "rows", *, labelled: bool = True) -> list[Row]:
    """Return the rows of a user's data.

    Args:
        labelled: whether the metric compares with what is expected; if not, rows may be inputs alone.

    Raises:
        TypeError: if the data isn't a sequence, or a row has none of the forms.

    >>> [(row.inputs, row.expected) for row in read_rows([("Hi", "good"), {"inputs": "Bah", "expected": "bad"}])]
    [('Hi', 'good'), ('Bah', 'bad')]
    """
    if hasattr(data, "to_dict") and hasattr(data, "columns"):
        raise TypeError(
            f'{name} must be a sequence of rows (got a {type(data).__name__}); pass .to_dict("records")'
        )
    if isinstance(data, str | bytes | Mapping) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        raise TypeError(
            f"{name} must be a sequence of rows, each {_FORMS} (got {type(data).__name__}); "
            "make a list of an iterator"
        )
    rows = [_read(number, data[number], name, labelled) for number in range(len(data))]
    shapes = Counter((len(row.args), *sorted(row.kwargs)) for row in rows)
    if len(shapes) > 1:
        usual = shapes.most_common(1)[0][0]
        odd = next(row for row in rows if (len(row.args), *sorted(row.kwargs)) != usual)
        raise TypeError(
            f"all {name} must have the same inputs (got {_named(odd)} in row {odd.number}, and "
            f"{' '.join(map(str, usual[1:])) or 'one value'} in most); give each row the same keys"
        )
    return rows


def _named(row: Row) -> str:
    return " ".join(sorted(row.kwargs)) or "one value"


def _read(number: int, row: Any, name: str, labelled: bool) -> Row:
    if not labelled and isinstance(row, tuple) and len(row) == 1:
        return Row.of(number, row[0], None)
    if not labelled and (
        isinstance(row, str) or (isinstance(row, Mapping) and not {*row} & {_INPUTS, *_EXPECTED})
    ):
        return Row.of(number, row, None)
    if isinstance(row, tuple | list) and len(row) == 2:
        return Row.of(number, row[0], row[1])
    if isinstance(row, Mapping):
        expected = [key for key in _EXPECTED if key in row]
        value = row[expected[0]] if expected else None
        if _INPUTS in row:
            return Row.of(number, row[_INPUTS], value)
        if expected:
            return Row.of(number, {key: row[key] for key in row if key != expected[0]}, value)
        raise TypeError(
            f"each of the {name} must be {_FORMS} (got row {number} with the keys {', '.join(map(str, row))}); "
            'say which column is expected: [{"inputs": row["…"], "expected": row["…"]} for row in data]'
        )
    raise TypeError(f"each of the {name} must be {_FORMS} (got {_short(row)} as row {number})")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def digest(*parts: Any) -> str:
    """Return a digest of data that is the same in another process."""
    text = json.dumps(parts, sort_keys=True, default=plainly)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


# Splitting


@final
@dataclass(frozen=True, slots=True)
class Splits:
    """The rows by their job, those of an input together; inputs are in an order drawn from the seed.

    Attributes:
        notes: which rows were left out, and why.
    """

    train: Sequence[Row]
    held: Sequence[Row]
    notes: Sequence[str] = ()


def by_input(rows: Sequence[Row]) -> list[list[Row]]:
    """Return rows in groups with equal inputs, in the order of the first ones."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return list(groups.values())


def means_by_input(keys: Iterable[str], *columns: Iterable[float | None]) -> list[list[float]]:
    """Return the mean of each input's values in each column. A row without a value in one of them is left out.

    >>> means_by_input(["a", "b", "a"], [0, 1, 1], [1, None, 1])
    [[0.5], [1.0]]
    """
    groups: dict[str, list[tuple[Any, ...]]] = {}
    for key, *values in zip(keys, *columns, strict=True):
        if None not in values:
            groups.setdefault(key, []).append(tuple(values))
    return [[fmean(row[place] for row in rows) for rows in groups.values()] for place in range(len(columns))]


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Return rows without exact copies, and a note on those. A copy would count as evidence of its own."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(f"{row.key} {digest(row.expected)}", row)
    copies = len(rows) - len(kept)
    note = f"{copies} of {len(rows)} rows repeat another one's inputs and what is expected, and are left out"
    return list(kept.values()), [note] if copies else []


def split_rows(rows: Sequence[Row], testset: Sequence[Row], seed: int, guards: Sequence[Row] = ()) -> Splits:
    """Return the splits of `rows`: half of them train. With a `testset` all do, and that is held out.

    Labels are spread evenly. Inputs are what is counted: rows with equal inputs stay together. Rows whose inputs are in
    `testset`, too, aren't used in the training. Guards train, and aren't held out. Fewer than 20 inputs all train.

    Raises:
        ValueError: for too few rows to train on or in `testset`, or a guard that is held out.
    """
    (rows, notes), (testset, _), (guards, _) = distinct(rows), distinct(testset), distinct(guards)
    tested, guarded = {row.key for row in testset}, {row.key for row in guards}
    if tested & guarded:
        both = next(row for row in guards if row.key in tested)
        raise ValueError(
            f"guards must not be in testset, as they choose the prompts that it measures (got {both.text[:60]!r} in "
            "both); take it out of one"
        )
    rows = [row for row in rows if row.key not in guarded]
    twice = [row.number for row in rows if row.key in tested]
    if twice:
        notes.append(f"{_numbers(twice)} have inputs of testset and are left out of the training")
        rows = [row for row in rows if row.key not in tested]
    groups, given = by_input(rows), by_input(testset)
    if given and len(given) < HELD:
        raise ValueError(f"testset must have at least {HELD} rows (got {len(given)}); leave it out")
    held = 0 if given or len(groups) < FEWEST else max(HELD, len(groups) // 2)
    if len(groups) + len(guarded) < TAUGHT:
        raise ValueError(
            f"optimize needs at least {TAUGHT} rows with different inputs to train on (got "
            f"{len(groups) + len(guarded)}); add rows{', or leave testset out' if given else ''}"
        )
    draw = random.Random(f"splits {seed}")
    parts = _dealt(groups, {"train": len(groups) - held, "held": held}, draw)
    draw.shuffle(given)
    return Splits(
        [*parts["train"], *guards], [row for group in given for row in group] or parts["held"], notes
    )


def _numbers(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:5]))
    return f"row {shown}" if len(rows) == 1 else f"rows {shown}{' and others' if len(rows) > 5 else ''}"


def _dealt(
    groups: Sequence[list[Row]], sizes: Mapping[str, int], draw: random.Random
) -> dict[str, list[Row]]:
    """Deal inputs to parts of these sizes: stratum after stratum, each to the part that is furthest behind."""
    strata: dict[str, list[list[Row]]] = {}
    labels = Counter(digest(row.expected) for group in groups for row in group)
    for group in groups:
        label = digest(group[0].expected)
        strata.setdefault(label if labels[label] > 2 else "", []).append(group)
    parts: dict[str, list[list[Row]]] = {name: [] for name in sizes}
    done = 0
    for label in sorted(strata):
        draw.shuffle(strata[label])
        for group in strata[label]:
            done += 1
            behind = {
                name: size * done / len(groups) - len(parts[name])
                for name, size in sizes.items()
                if len(parts[name]) < size
            }
            parts[max(behind, key=lambda name: behind[name])].append(group)
    for part in parts.values():
        draw.shuffle(part)
    return {name: [row for group in part for row in group] for name, part in parts.items()}
