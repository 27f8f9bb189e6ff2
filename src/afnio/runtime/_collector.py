"""The cyclic garbage collector, set for thousands of calls in flight.

CPython starts a collection after a number of allocations, less the objects freed meanwhile: 700 to 2,000. A call in
flight keeps some 250 containers alive, so each burst of calls caused hundreds of collections that found nothing. The
engine leaves no cycles behind (tests check that). Full collections took a third of the CPU time at 1,000 calls in
flight.

The thresholds belong to the whole process, so three rules hold here:

* Thresholds that the program has set are never touched. Whether it has is decided anew at each change: a library may
  set its own for a while.
* They are restored when the last runtime ends, and in a forked child.
* The garbage of the program can't pile up: the first generation grows with the open calls, to `MOST` at most, and the
  older generations are collected as often as they are without calls.
"""

from __future__ import annotations

import gc
import os
import threading
from typing import Final, final

Thresholds = tuple[int, int, int]

_PYTHONS_OWN: Final = ((700, 10, 10), (2000, 10, 0), (2000, 10, 10))
"""CPython's own, from 3.11 to 3.14."""
RARE: Final = (50_000, 20, 100)
"""The thresholds while there is a runtime."""
CALLS: Final = 200
"""Open calls for which `RARE` is enough."""
MOST: Final = 8
"""The most by which the first threshold grows: 400,000 objects, which one collection visits in about 40 ms."""


@final
class Collector:
    """The share of one runtime in the process's thresholds.

    Attributes:
        low, high: the numbers of open calls between which nothing changes.
    """

    def __init__(self) -> None:
        self._set(1)

    def follow(self, calls: int) -> None:
        """Fit the thresholds to the number of open calls. Call it when that number leaves `low` to `high`."""
        factor = 1
        while factor < MOST and calls > factor * CALLS:
            factor *= 2
        self._set(factor)

    def close(self) -> None:
        """Restore the thresholds, unless there is another runtime."""
        with _guard:
            _factors.pop(self, None)
            _apply()

    def _set(self, factor: int) -> None:
        self.high = factor * CALLS if factor < MOST else 1 << 62
        # Half of the next lower step, so that calls that come and go around a step don't change anything.
        self.low = factor * CALLS // 4 if factor > 1 else -1
        with _guard:
            _factors[self] = factor
            _apply()


_guard = threading.Lock()
_factors: Final[dict[Collector, int]] = {}
_found: Thresholds | None = None
"""The thresholds that Python had before ours, or None while ours don't hold."""
_ours: Thresholds | None = None


def _apply() -> None:
    """Set the thresholds for the busiest runtime, or those that were found if there is none."""
    global _found, _ours
    current = gc.get_threshold()
    if _found is None and current in _PYTHONS_OWN and _factors:
        _found = _ours = current
    if current != _ours or _found is None:
        return  # the program has set its own
    factor = max(_factors.values(), default=0)
    wanted = (RARE[0] * factor, RARE[1] // factor, RARE[2]) if factor else _found
    if wanted != current:
        gc.set_threshold(*wanted)
        _ours = wanted
    if not factor:
        _found = _ours = None


def _begin_child() -> None:
    """Restore the thresholds in a forked child, which has none of its parent's runtimes."""
    global _guard
    _guard = threading.Lock()  # a thread of the parent may have held it during the fork
    _factors.clear()
    _apply()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_child)
