"""The switch for notifications about Variables, which only older programs need."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_suppressed: ContextVar[bool] = ContextVar("afnio_notifications_suppressed", default=False)


@contextmanager
def suppress_variable_notifications() -> Iterator[None]:
    """Do nothing but mark the block, in this context only.

    Creating and changing Variables notifies nobody here, so there is nothing to suppress; the
    block is kept for programs that have it.

    >>> with suppress_variable_notifications():
    ...     notifications_suppressed()
    True
    """
    token = _suppressed.set(True)
    try:
        yield
    finally:
        _suppressed.reset(token)


def notifications_suppressed() -> bool:
    """Whether the caller is inside such a block."""
    return _suppressed.get()
