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


def test_attempts_are_counted_for_each_request():
    """In the order in which they come."""
    ledger = ProviderLedger(window=1.0)
    assert [ledger.read(request, 1, 0.0) for request in ("a", "b", "a", "a")] == [1, 1, 2, 3]
    assert ledger.stats()["attempts"] == {"a": 3, "b": 1}


def test_the_peak_is_the_most_at_once():
    """Indices go on, places don't."""
    ledger = ProviderLedger(window=1.0)
    assert [ledger.enter(), ledger.enter()] == [0, 1]
    ledger.leave()
    assert ledger.enter() == 2
    assert ledger.stats()["peak_in_flight"] == 2


def test_refusals_count_as_429():
    """By the limit that was in the way, and in their window."""
    ledger = ProviderLedger(window=1.0)
    ledger.read("a", 1, 5.0)
    ledger.refuse("tokens", 5.0)
    stats = ledger.stats()
    assert (stats["by_refusal"], stats["sent_429"]) == ({"tokens": 1}, 1)
    assert stats["windows"] == [{"window": 0, "requests": 1, "tokens": 1, "refused": 1}]
