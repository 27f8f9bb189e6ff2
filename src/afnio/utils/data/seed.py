"""Where a sampler without a seed gets one."""

from __future__ import annotations

import random
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

seed_source: ContextVar[Callable[[], int] | None] = ContextVar("afnio_seed_source", default=None)
"""What draws seeds in this context; None means the operating system."""


def draw_seed() -> int:
    """A seed from the context's source, else from the operating system.

    >>> token = seed_source.set(lambda: 7)
    >>> draw_seed()
    7
    >>> seed_source.reset(token)
    """
    source = seed_source.get()
    if source is not None:
        return source()
    # 63 bits fit into a JSON number of most readers and into an SQLite integer.
    return random.SystemRandom().getrandbits(63)
