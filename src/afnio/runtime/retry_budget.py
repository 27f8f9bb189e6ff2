"""RetryBudget: how many retries an account may cost, so that an outage isn't met with a storm."""

from __future__ import annotations

from typing import Final, final

PERIOD: Final = 600.0
"""Seconds that calls and retries are counted over."""
SHARE: Final = 1.0
"""Retries for each call."""
SPARE: Final = 50
"""Retries on top, for accounts with few calls."""
_SLICES: Final = 60


@final
class RetryBudget:
    """Grants a retry while the last ten minutes have fewer than 100 % of their calls and 50 more.

    Counts are kept in slices of ten seconds: exact enough, and a million calls cost sixty numbers.

    >>> budget = RetryBudget()
    >>> sum(budget.spend(now=0.0) for _ in range(100))
    50
    >>> budget.count_call(now=1.0)
    >>> budget.spend(now=1.0), budget.spend(now=1.0)
    (True, False)
    """

    def __init__(self) -> None:
        self.calls = 0
        self.retries = 0
        self._slices: dict[int, list[int]] = {}

    def count_call(self, now: float) -> None:
        """Count the first attempt of a call."""
        self._slice(now)[0] += 1
        self.calls += 1

    def spend(self, now: float) -> bool:
        """Take one retry; returns whether there was one."""
        current = self._slice(now)
        if self.retries >= SHARE * self.calls + SPARE:
            return False
        current[1] += 1
        self.retries += 1
        return True

    def _slice(self, now: float) -> list[int]:
        index = int(now // (PERIOD / _SLICES))
        found = self._slices.get(index)
        if found is None:
            found = self._slices[index] = [0, 0]
            for old in [old for old in self._slices if old <= index - _SLICES]:
                calls, retries = self._slices.pop(old)
                self.calls -= calls
                self.retries -= retries
        return found
