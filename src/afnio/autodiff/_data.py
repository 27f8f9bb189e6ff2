"""Data: what a Variable may hold, and the shape of it.

Leaves are strings, or numbers (int, float, bool); None marks a missing sample. Numbers of other libraries,
such as NumPy's, become Python's own. A list is a batch: its outer elements are lanes, deeper lists are data
of a lane.
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
"""A leaf, or a list of leaves or lists. (The recursive type is no help to type checkers of user code.)"""


@final
class _Jagged:
    """The length of an axis whose lists differ in length."""

    def __repr__(self) -> str:
        return "j"


JAGGED: Final = _Jagged()
_OWN: Final = (str, int, float, bool, type(None))


def checked(data: Any) -> Data:
    """Return `data` as a Variable may hold it, ints promoted to float where floats stand beside them.

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
    """Return a number of another library, NumPy's above all, as Python's own; anything else as it is.

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
    """Return the length of each axis, `JAGGED` where lists differ.

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
    # An enum member is often a str or an int by inheritance; its name would be lost without a word.
    if type(leaf) not in (int, float, bool) and not isinstance(leaf, str):
        raise TypeError(
            f"a Variable holds strings, numbers, None or lists of them (got {_shown(leaf)}, "
            f"a {type(leaf).__name__}); convert it first"
        )
    return leaf


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# Feedback: what travels backward along an edge for one lane, and what gathers at a Variable.


@final
@dataclass(frozen=True, slots=True)
class Feedback:
    """What one consumer says about one lane of a value.

    Attributes:
        text: the feedback; empty from a seedless root, whose node finds its own words.
        seen: the value that the consumer judged, where that is known.
        provenance: where it comes from, plain data: ids, texts and scores, never a node or a Variable.
        led_in: whether the text says already that it is about a whole, not a part.
    """

    text: str
    seen: Any = None
    provenance: tuple[Mapping[str, Any], ...] = ()
    led_in: bool = False


@final
class PendingGradients:
    """What one backward pass adds to a Variable's `grad`; pending until the whole sweep has ended.

    The slot's value is a list with one entry for each gradient: `(data, provenance)`, where data is a text,
    or for a batch Variable a list aligned to its lanes.
    """

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
