"""The data of Variables: which values one may hold, their shape, and feedback on them.

Leaves are strings or numbers (int, float, bool); None marks a missing sample. Numbers of other libraries, such as
NumPy's, become Python's own. A list is a batch: its elements are lanes, and deeper lists are data of one lane.

The restriction pays off at the other end: every value can be written to a journal, a checkpoint or a prompt, and is
equal to itself after it has been read back. A value of any other type raises where it's assigned, not when it's saved.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Any, Final, final

from afnio.runtime._kernel import Slot

Leaf = str | int | float | bool | None
Data = Any
"""A leaf, or a list of leaves or lists. (Type checkers reject most user code against the recursive type.)"""


@final
class _Jagged:
    """The length of an axis whose lists differ in length."""

    def __repr__(self) -> str:
        return "j"


JAGGED: Final = _Jagged()
_OWN: Final = (str, int, float, bool, type(None))


def checked(data: Any) -> Data:
    """Check that a Variable can hold `data` and return it. Ints become floats if there are floats among them.

    Raises:
        TypeError: for a tuple, a mix of strings and numbers, or a leaf of another type.

    >>> checked([1, 2.5, None])
    [1.0, 2.5, None]
    """
    if isinstance(data, str) or data is None:
        return data
    if not isinstance(data, list):
        return _checked_leaf(plain(data))
    if any(type(leaf) not in _OWN for leaf in leaves(data)):
        data = cast_leaves(data, plain)
    kinds = {kind for leaf in leaves(data) if (kind := _kind(leaf)) is not None}
    if str in kinds and len(kinds) > 1:
        raise TypeError(
            f"a Variable holds strings or numbers, not both (got {_shown(data)}); convert them first"
        )
    return cast_leaves(data, float) if float in kinds and len(kinds) > 1 else list(data)


def plain(number: Any) -> Any:
    """Return a number of another library, such as NumPy, as Python's own; anything else unchanged.

    >>> from fractions import Fraction
    >>> plain(Fraction(1, 4)), plain("a")
    (0.25, 'a')
    """
    if type(number) in _OWN or isinstance(number, str | list | Enum | type):
        return number
    if hasattr(number, "shape") and hasattr(number, "item"):
        if number.shape != ():
            return number
        number = number.item()
    if type(number) in _OWN:
        return number
    if hasattr(number, "__index__"):
        return operator.index(number)
    return float(number) if isinstance(number, Real) else number


def leaves(data: Data) -> Iterator[Leaf]:
    """Yield the leaves of `data`, depth first."""
    if isinstance(data, list):
        for item in data:
            yield from leaves(item)
    else:
        yield data


def cast_leaves(data: Data, dtype: Callable[[Any], Leaf]) -> Data:
    """Return `data` with every leaf but None replaced by `dtype(leaf)`."""
    if isinstance(data, list):
        return [cast_leaves(item, dtype) for item in data]
    return None if data is None else dtype(data)


def shape(data: Data) -> tuple[Any, ...]:
    """Return the length of each axis, `JAGGED` for an axis whose lists differ in length.

    >>> shape([[1, 2], [3]])
    (2, j)
    """
    axes: list[Any] = []
    level = [data]
    while any(isinstance(item, list) for item in level):
        lists = [item for item in level if isinstance(item, list)]
        lengths = {len(item) for item in lists}
        even = len(lengths) == 1 and len(lists) == len(level)
        axes.append(lengths.pop() if even else JAGGED)
        level = [inner for item in lists for inner in item]
    return tuple(axes)


def _kind(leaf: Any) -> type | None:
    if leaf is None:
        return None
    if isinstance(leaf, str):
        return str
    _checked_leaf(leaf)
    return float if isinstance(leaf, float) else int


def _checked_leaf(leaf: Any) -> Any:
    if isinstance(leaf, tuple):
        raise TypeError(f"a Variable holds no tuples (got {_shown(leaf)}); use list({_shown(leaf)})")
    # Reject str and int enums: they would silently turn into plain texts and numbers.
    if type(leaf) not in (int, float, bool) and not isinstance(leaf, str):
        raise TypeError(
            f"a Variable holds strings, numbers, None or lists of them (got {_shown(leaf)}, "
            f"a {type(leaf).__name__}); convert it first"
        )
    return leaf


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Feedback.


@final
@dataclass(frozen=True, slots=True)
class Feedback:
    """One consumer's feedback on one lane of a value.

    Attributes:
        text: the feedback; empty from a root without a seed, where the evaluator writes the first words itself.
        seen: the value that the consumer judged, if known.
        provenance: where it comes from, as plain data (ids, texts, scores). A node or a Variable in it would keep
            the graph alive.
        led_in: True if the text already explains that it is about a whole, not a part.
    """

    text: str
    seen: Any = None
    provenance: tuple[Mapping[str, Any], ...] = ()
    led_in: bool = False


@final
class PendingGradients:
    """The gradients that one backward pass adds to a Variable's `grad`; pending until the whole pass has ended.

    The slot's value is a list of `(data, provenance)`, one for each gradient. The data is a text, or for a batch a
    list aligned to its lanes.
    """

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
