"""Setting: a value with a process default and context-local overrides."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from enum import IntEnum
from typing import Any, Final, Generic, Literal, TypeVar, cast, final

T = TypeVar("T")

_UNSET: Final = object()


class Setting(Generic[T]):
    """A setting that plain calls set for the process and `with` blocks set for their context.

    >>> colour = Setting("colour", "red")
    >>> with colour.override("blue"):
    ...     colour.get()
    'blue'
    >>> colour.get()
    'red'
    """

    def __init__(self, name: str, default: T) -> None:
        self._first = default
        # Newest last; changed by append and remove alone, which are atomic, so it needs no lock.
        self._assigned: list[_Entry[T]] = []
        self._local: ContextVar[Any] = ContextVar(f"afnio_{name}")

    @property
    def default(self) -> T:
        """The process default."""
        try:
            return self._assigned[-1].value
        except IndexError:
            return self._first

    @default.setter
    def default(self, value: T) -> None:
        self._first = value
        self._assigned = []

    def get(self) -> T:
        value = self._local.get(_UNSET)
        if value is not _UNSET:
            return cast("T", value)
        # Asked several times for each call; an empty list must not cost an exception.
        return self.default if self._assigned else self._first

    @contextmanager
    def override(self, value: T) -> Iterator[T]:
        token = self._local.set(value)
        try:
            yield value
        finally:
            self._local.reset(token)

    def assign(self, assignment: Assignment[T], value: T) -> None:
        """Make `value` the process default until `retract`."""
        # An older one whose assignment is gone can't become a `with` block any more, nor the default.
        self._remove([entry for entry in self._assigned[:-1] if entry.assignment() is None])
        self._assigned.append(_Entry(weakref.ref(assignment), value))

    def retract(self, assignment: Assignment[T]) -> None:
        self._remove([entry for entry in self._assigned if entry.assignment() is assignment])

    def _remove(self, entries: list[_Entry[T]]) -> None:
        for entry in entries:
            with suppress(ValueError):  # another thread was quicker
                self._assigned.remove(entry)


class _Entry(Generic[T]):
    __slots__ = ("assignment", "value")

    def __init__(self, assignment: weakref.ref[Assignment[T]], value: T) -> None:
        self.assignment = assignment
        self.value = value


class Assignment(AbstractContextManager[T], Generic[T]):
    """A `set_…` call: it sets the process default; entered as a block, it sets the block's context instead.

    >>> colour = Setting("colour", "red")
    >>> with Assignment(colour, "blue"):
    ...     colour.get(), colour.default
    ('blue', 'red')
    """

    def __init__(self, setting: Setting[T], value: T) -> None:
        self._setting = setting
        self._value = value
        self._tokens: list[Token[T]] = []
        setting.assign(self, value)

    def __enter__(self) -> T:
        self._setting.retract(self)
        self._tokens.append(self._setting._local.set(self._value))
        return self._value

    def __exit__(self, *exc: object) -> None:
        self._setting._local.reset(self._tokens.pop())


# Seed: where what needs randomness gets a seed, so that a run can be repeated.


seed_source: Final[Setting[Callable[[], int] | None]] = Setting("seed_source", None)
"""What draws seeds; a run sets it. None means the operating system."""


def draw_seed() -> int:
    """Return a seed of 63 bits from the context's source, else from the operating system.

    >>> with seed_source.override(lambda: 7):
    ...     draw_seed()
    7
    """
    source = seed_source.get()
    # 63 bits fit into a JSON number of most readers and into an SQLite integer.
    return source() if source is not None else random.SystemRandom().getrandbits(63)


# Priority: who goes on the wire first.


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

    >>> from afnio.runtime._settings import current_priority
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
class CallPriority:
    """The priority of one call. A more urgent caller that joins the call raises it.

    >>> priority = CallPriority(Priority.TRAINING)
    >>> priority.raise_to(Priority.SERVING)
    >>> priority.level.name
    'SERVING'
    """

    __slots__ = ("level", "on_raise")

    def __init__(self, level: Priority) -> None:
        self.level = level
        self.on_raise: Callable[[], object] | None = None

    def raise_to(self, level: Priority) -> None:
        """Take `level` if it is more urgent, and tell the queue that the call may be in."""
        if level < self.level:
            self.level = level
            if self.on_raise is not None:
                self.on_raise()
