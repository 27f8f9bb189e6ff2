"""RetryBudget: as many retries as calls and fifty more, within ten minutes."""

from __future__ import annotations

from afnio.runtime._health import PERIOD, RetryBudget


def granted(budget: RetryBudget, now: float) -> int:
    return sum(budget.spend(now) for _ in range(10_000))


def test_share_and_spare() -> None:
    """Each call brings a retry; fifty are there without one."""
    budget = RetryBudget()
    for _ in range(200):
        budget.count_call(0.0)
    assert granted(budget, 1.0) == 250


def test_ten_minutes() -> None:
    """What is older counts no longer, neither calls nor retries."""
    budget = RetryBudget()
    budget.count_call(0.0)
    assert [granted(budget, now) for now in (0.0, PERIOD - 11, PERIOD + 10)] == [51, 0, 50]
    assert (budget.calls, budget.retries) == (0, 50)
