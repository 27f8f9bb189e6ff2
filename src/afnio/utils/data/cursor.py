"""How far an epoch has got, so that it can be taken up again at that sample."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class Cursor:
    """Counts epochs, and the samples handed out in the one that was begun last.

    An epoch that is left early is over: the next one begins at its first sample. Only a loaded
    state is taken up where it stands.

    >>> cursor = Cursor()
    >>> cursor.load_state_dict({"epoch": 2, "position": 5})
    >>> cursor.begin(), cursor.begin()
    ((2, 5), (3, 0))
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.position = 0
        self.under_way = False

    def begin(self) -> tuple[int, int]:
        """Start an epoch: its number, and how many of its samples were handed out before."""
        if self.under_way:
            self.epoch += 1
            self.position = 0
        self.under_way = True
        return self.epoch, self.position

    def advance(self, epoch: int, samples: int = 1) -> None:
        """Count samples handed out; those of an epoch begun earlier no longer matter."""
        if epoch == self.epoch:
            self.position += samples

    def end(self, epoch: int) -> None:
        """Note that an epoch has handed out all its samples."""
        if self.under_way and epoch == self.epoch:
            self.epoch += 1
            self.position = 0
            self.under_way = False

    def state_dict(self) -> dict[str, Any]:
        """The epoch and the position in it."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken; the next `begin` goes on from there."""
        self.epoch = natural_number(state, "epoch")
        self.position = natural_number(state, "position")
        self.under_way = False


def natural_number(state: Mapping[str, Any], key: str) -> int:
    """The number under `key` of a saved state."""
    value = state.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= sys.maxsize:
        raise ValueError(
            f"The state's [{key}] is [{value!r}], but has to be a whole number from 0; "
            "pass what state_dict() returned."
        )
    return value
