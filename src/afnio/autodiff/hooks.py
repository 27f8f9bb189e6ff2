"""Hooks: callables that a Variable or a Module calls at a certain point, and the handles that remove them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, final

Hook = Callable[..., Any]
H = TypeVar("H")

_numbers = itertools.count()


def checked_hook(hook: Hook) -> Hook:
    """Return `hook`; raises for what can't be called."""
    if not callable(hook):
        raise TypeError(f"a hook is a callable (got {hook!r})")
    return hook


@final
class Hooks(Generic[H]):
    """Hooks in the order in which they are called.

    >>> hooks = Hooks()
    >>> handle = hooks.add(print)
    >>> with hooks.add(len, prepend=True):
    ...     [hook.__name__ for hook in hooks]
    ['len', 'print']
    >>> handle.remove()
    >>> list(hooks)
    []
    """

    __slots__ = ("__weakref__", "_by_number")

    def __init__(self) -> None:
        # Replaced, never changed: another thread may be calling the hooks.
        self._by_number: dict[int, H] = {}

    def add(self, hook: H, *, prepend: bool = False) -> RemovableHandle:
        number = next(_numbers)
        if prepend:
            self._by_number = {number: hook, **self._by_number}
        else:
            self._by_number = {**self._by_number, number: hook}
        return RemovableHandle(self, number)

    def remove(self, number: int) -> None:
        self._by_number = {other: hook for other, hook in self._by_number.items() if other != number}

    def __iter__(self) -> Iterator[H]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)


@final
class RemovableHandle:
    """What registering a hook returns: `remove()` takes the hook away; as a block it does so at the end."""

    def __init__(self, hooks: Hooks[Any], number: int) -> None:
        self._hooks = weakref.ref(hooks)
        self._number = number

    def remove(self) -> None:
        """Take the hook away; once is enough."""
        hooks = self._hooks()
        if hooks is not None:
            hooks.remove(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()
