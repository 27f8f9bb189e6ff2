"""The kit: what tests of several folders share. A helper with one folder stays in that folder."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from afnio.runtime.events import subscribed

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["events"]


@contextmanager
def events(*kinds: type) -> Iterator[list[Any]]:
    """Collect the events of these kinds, or all events, that are sent in the block."""
    collected: list[Any] = []
    with subscribed(lambda event: collected.append(event) if not kinds or isinstance(event, kinds) else None):
        yield collected
