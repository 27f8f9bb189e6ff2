"""Feedback: what travels backward along an edge for one lane, and what gathers at a Variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from afnio.runtime._kernel import Slot


@final
@dataclass(frozen=True, slots=True)
class Feedback:
    """What one consumer says about one lane of a value.

    Attributes:
        text: the feedback; empty from a seedless root, whose node finds its own words.
        seen: the value that the consumer judged, where that is known.
        trail: where it comes from, plain data: ids, texts and scores, never a node or a Variable.
        led_in: whether the text says already that it is about a whole, not a part.
    """

    text: str
    seen: Any = None
    trail: tuple[Mapping[str, Any], ...] = ()
    led_in: bool = False


@final
class Segment:
    """What one backward pass adds to a Variable's `grad`; pending until the whole sweep has ended.

    The slot's value is a list with one entry for each gradient: `(data, trail)`, where data is a text,
    or for a batch Variable a list aligned to its lanes.
    """

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
