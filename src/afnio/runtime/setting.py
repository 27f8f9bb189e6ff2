"""Setting: a value with a process default and context-local overrides."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token
from typing import Any, Final, Generic, TypeVar, cast

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
