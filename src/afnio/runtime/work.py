"""Work: a handle on something under way that a caller may wait for, await, or leave alone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar, final

from afnio.runtime.fold import folding
from afnio.runtime.slot import PENDING, Failure, Slot
from afnio.runtime.waiting import may_block, wait, wait_async

T = TypeVar("T")


@final
class Work(Generic[T]):
    """What `backward()`, `step()` and `to_thread()` return: await it, or call `wait()` in a thread.

    >>> import afnio
    >>> work = afnio.to_thread(lambda: 1)
    >>> work.wait(), work.done
    (1, True)
    """

    def __init__(self, slot: Slot, result: Callable[[Any], T]) -> None:
        self._slot = slot
        self._result = result

    @property
    def done(self) -> bool:
        return self._slot.outcome is not PENDING

    @folding
    def wait(self) -> T:
        """Block until it is done and return its result, or raise its error."""
        wait([self._slot])
        return self._read()

    @folding
    def wait_if_allowed(self) -> Work[T]:
        """Wait where a blocking wait is allowed, so that an error surfaces on this line; return self."""
        if self.done or may_block():
            self.wait()
        return self

    @folding
    def __await__(self) -> Generator[Any, None, T]:
        yield from wait_async([self._slot]).__await__()
        return self._read()

    def _read(self) -> T:
        outcome = self._slot.outcome
        if isinstance(outcome, Failure):
            raise outcome.raised()
        return self._result(outcome)

    def __repr__(self) -> str:
        return f"<Work {'done' if self.done else 'pending'}>"
