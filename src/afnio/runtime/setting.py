"""Setting: a value with a process default and context-local overrides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Generic, TypeVar

T = TypeVar("T")


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
        self.default = default
        self._local: ContextVar[T] = ContextVar(f"afnio_{name}")

    def get(self) -> T:
        return self._local.get(self.default)

    def set(self, value: T) -> Token[T]:
        """Set the value for this context; hand the token to `reset`."""
        return self._local.set(value)

    def reset(self, token: Token[T]) -> None:
        self._local.reset(token)

    @contextmanager
    def override(self, value: T) -> Iterator[T]:
        token = self._local.set(value)
        try:
            yield value
        finally:
            self._local.reset(token)
