"""Counters: how far a training is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self, final


@final
@dataclass(slots=True)
class Counters:
    """How far a training is; what a checkpoint says of it.

    Attributes:
        epoch: epochs that have ended.
        batch: batches of the epoch under way that were trained on.
        step: steps that have ended, over all epochs.
        samples: samples that were trained on.
        skipped: steps in a row that changed nothing because of an error.
        validating: whether the parameters' validation was under way when the checkpoint was made.
        scope: the address path that the training's launches start with, the same when it goes on.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    skipped: int = 0
    validating: bool = False
    scope: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the counters of a checkpoint; what an older one lacks is at its start.

        Raises:
            ValueError: for a value that is no counter's.
        """
        known = {name: data[name] for name in cls.__slots__ if name in data}
        for name, value in known.items():
            kind = type(getattr(_START, name))
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"its counter {name} must be {_KINDS[kind]} (got {value!r})")
        return cls(**known)


_START: Final = Counters()
_KINDS: Final = {int: "a whole number from 0", bool: "true or false", str: "a text"}
