"""TokenBucket: windows, settling, large requests; times are plain numbers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.windows import worst_window

from afnio.runtime._limits import TokenBucket


def spend(
    bucket: TokenBucket, costs: list[float], now: float = 0.0
) -> tuple[list[tuple[float, float]], float]:
    """Reserve one after the other, each as soon as it may."""
    sent = []
    for cost in costs:
        while (wait := bucket.wait(cost, now)) > 0:
            now += wait
        bucket.reserve(cost, now)
        sent.append((now, cost))
    return sent, now


@pytest.mark.parametrize("share", [0.001, 0.01, 0.02])
def test_window_and_use(share: float) -> None:
    """Requests of any mixed size keep within the limit in every minute, and use 97 % of it."""
    draw, limit = random.Random(3), 100_000
    costs = [draw.uniform(0.2, 1) * share * limit for _ in range(int(5 / share))]
    sent, end = spend(TokenBucket(limit, now=0.0), costs)
    assert worst_window(sent, 60.0) <= limit + 1e-3
    assert sum(costs[:-1]) / end >= 0.97 * limit / 60


@given(
    st.lists(st.tuples(st.floats(1, 500), st.floats(0, 600), st.floats(0, 30)), min_size=1, max_size=60),
    st.integers(100, 2_000),
)
def test_settled_windows(requests: list[tuple[float, float, float]], limit: int) -> None:
    """Whatever is reserved, used and refunded: what a window holds, as far as it was known when it was sent,
    is within the limit; a request that is larger goes alone."""
    bucket, now = TokenBucket(limit, now=0.0), 0.0
    sent: list[list[float]] = []
    for cost, used, pause in requests:
        now += pause
        while (wait := bucket.wait(cost, now)) > 0:
            now += wait
        inside = sum(entry[1] for entry in sent if entry[0] > now - 60 + 1e-6)
        assert inside + cost <= limit + 1e-3 or inside <= 1e-3
        reservation = bucket.reserve(cost, now)
        entry = [now, cost]
        sent.append(entry)
        if used < cost:  # a reply that used less, or a refusal that used nothing
            bucket.settle(reservation, used, now)
            entry[1] = used


def test_larger_than_the_bucket_leaves_a_debt() -> None:
    """It goes at once from a full bucket; the next one waits until its debt is paid."""
    bucket = TokenBucket(6_000, now=0.0)
    assert bucket.wait(3_000, 0.0) == 0
    bucket.reserve(3_000, 0.0)
    assert 30 <= bucket.wait(1, 0.0) <= 31


def test_larger_than_the_limit_goes_alone() -> None:
    """It waits for an empty window, and is followed by one."""
    bucket = TokenBucket(1_000, now=0.0)
    bucket.reserve(10, 0.0)
    assert bucket.wait(5_000, 0.0) == 60
    bucket.reserve(5_000, 60.0)
    assert bucket.wait(1, 60.0) >= 300


def test_refund_is_exact() -> None:
    """A refused request costs nothing: the wait for the next one is as if it hadn't been."""
    with_refusal, without = TokenBucket(6_000, now=0.0), TokenBucket(6_000, now=0.0)
    for bucket in (with_refusal, without):
        bucket.reserve(600, 0.0)
    refused = with_refusal.reserve(900, 0.0)
    with_refusal.settle(refused, 0, 0.5)
    assert with_refusal.wait(500, 1.0) == pytest.approx(without.wait(500, 1.0))


def test_underestimates_are_made_up_for() -> None:
    """Requests that use more than they reserved slow down those that follow."""
    bucket, now, used = TokenBucket(6_000, now=0.0), 0.0, 0.0
    while now < 600:
        wait = bucket.wait(50, now)
        if wait > 0:
            now += wait
            continue
        bucket.settle(bucket.reserve(50, now), 100, now)
        used += 100
    assert 0.95 * 6_000 <= used / 10 <= 6_000 + 100


def test_used_before() -> None:
    """What of the window is gone already is a debt."""
    assert TokenBucket(6_000, now=0.0, used=3_000).wait(10, 0.0) >= 30
