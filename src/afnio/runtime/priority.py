"""Priority: who goes on the wire first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import IntEnum
from typing import Final, Literal, final

from afnio.runtime.setting import Assignment, Setting


class Priority(IntEnum):
    """The classes, most urgent first; see `CallQueue` for the order within one."""

    SERVING = 0
    VALIDATION = 1
    TRAINING = 2
    SPECULATIVE = 3


_priority: Final[Setting[Priority]] = Setting("priority", Priority.TRAINING)

Class = Literal["serving", "validation", "training", "speculative"]


class priority(Assignment[Priority]):  # noqa: N801
    """Give what is launched a priority over the other calls of its account; the default is "training".

    As a `with` block it holds for the block's context; a plain call sets the process default.

    >>> from afnio.runtime.priority import current_priority
    >>> with priority("serving"):
    ...     current_priority().name
    'SERVING'
    """

    def __init__(self, name: Class | Priority) -> None:
        names = {rank.name.lower(): rank for rank in Priority}
        rank = name if isinstance(name, Priority) else names.get(name)
        if rank is None:
            raise ValueError(f"priority must be one of {', '.join(names)} (got {name!r})")
        super().__init__(_priority, rank)


def prioritised(rank: Priority) -> AbstractContextManager[Priority]:
    """Give what is launched in the block `rank`; unlike `priority`, without a word to the process default."""
    return _priority.override(rank)


def current_priority() -> Priority:
    """Return the priority of what is launched here."""
    return _priority.get()


@final
class Urgency:
    """The priority of one call, which a more urgent caller that joins it may raise.

    >>> urgency = Urgency(Priority.TRAINING)
    >>> urgency.raise_to(Priority.SERVING)
    >>> urgency.rank.name
    'SERVING'
    """

    __slots__ = ("on_raise", "rank")

    def __init__(self, rank: Priority) -> None:
        self.rank = rank
        self.on_raise: Callable[[], object] | None = None

    def raise_to(self, rank: Priority) -> None:
        """Take `rank` if it is more urgent, and tell the queue that the call may be in."""
        if rank < self.rank:
            self.rank = rank
            if self.on_raise is not None:
                self.on_raise()
