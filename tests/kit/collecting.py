"""What the engine tells while a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from afnio.runtime.events import subscribed

E = TypeVar("E")


@contextmanager
def collected(kind: type[E]) -> Iterator[list[E]]:
    """Collect the events of a kind, in their order.

    >>> from afnio.runtime.events import CallEnded
    >>> with collected(CallEnded) as ended:
    ...     pass
    >>> ended
    []
    """
    seen: list[E] = []
    with subscribed(lambda event: seen.append(event) if isinstance(event, kind) else None):
        yield seen
