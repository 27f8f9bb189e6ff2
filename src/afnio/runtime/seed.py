"""Seed: where what needs randomness gets a seed, so that a run can be repeated."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from afnio.runtime.setting import Setting

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
