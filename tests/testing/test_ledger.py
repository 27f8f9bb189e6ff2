"""The ledger counts what came: the worst window is the worst there was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from afnio.testing.provider import ProviderLedger, WorstWindow

arrivals = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), max_size=60)


@given(arrivals, st.integers(1, 12))
def test_the_worst_window_is_the_worst_of_all(gaps, seconds):
    """Against the sum over each window that ends at an arrival; times in quarters are exact."""
    worst, now, came = WorstWindow(seconds / 4), 0.0, []
    for gap, tokens in gaps:
        now += gap / 4 % 3
        came.append((now, tokens))
        worst.add(now, tokens)
    windows = [
        [tokens for time, tokens in came[: end + 1] if time > came[end][0] - seconds / 4]
        for end in range(len(came))
    ]
    assert worst.requests == max(map(len, windows), default=0)
    assert worst.tokens == max(map(sum, windows), default=0)


@given(arrivals)
def test_windows_end_to_end_hold_everything_once(gaps):
    """From the first request on, however late that comes; empty ones are left out."""
    ledger, now = ProviderLedger(window=2.0), 1000.3
    for gap, tokens in gaps:
        now += gap
        ledger.read("r", tokens, now)
    windows = ledger.stats()["windows"]
    assert sum(window["requests"] for window in windows) == len(gaps)
    assert sum(window["tokens"] for window in windows) == sum(tokens for _, tokens in gaps)
    assert all(window["requests"] for window in windows)
    assert [window["window"] for window in windows] == sorted({window["window"] for window in windows})
    assert not windows or windows[0]["window"] == 0
