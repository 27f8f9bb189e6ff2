"""Phase: which part of a program an address belongs to."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import takewhile
from typing import Final

_BATCH: Final = re.compile(r"/batch \d+$")

IN_PHASE: Final = "(phase = ? OR phase > ? AND phase < ?)"
"""SQL for rows of a phase and of its batches; takes what `of_phase` returns."""


@lru_cache(maxsize=1024)
def phase_of(address: str) -> str:
    """The scopes of an address, without the run's own.

    >>> phase_of("run/epoch 1/step 3/7/12/forward"), phase_of("run/4/chat"), phase_of("/4")
    ('epoch 1/step 3', '', '')
    """
    parts = list(takewhile(lambda part: not part.isdecimal(), address.split("/")))
    return "/".join(parts[1:] if parts[:1] in (["run"], [""]) else parts)


def evaluation_of(phase: str) -> str:
    """The phase that a batch of an evaluation belongs to; another phase is its own.

    >>> evaluation_of("fit/val step 2/batch 1"), evaluation_of("epoch 1/step 3")
    ('fit/val step 2', 'epoch 1/step 3')
    """
    return _BATCH.sub("", phase)


def of_phase(phase: str) -> list[str]:
    """The values of `IN_PHASE`: a phase, and the bounds between which the names of its batches are."""
    return [phase, f"{phase}/batch ", f"{phase}/batch!"]
