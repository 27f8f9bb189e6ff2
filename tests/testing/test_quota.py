"""Quotas on an injected clock: exact, to the promise of when to come back."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.testing import Quota
from afnio.testing.provider import (
    AccountBalance,
    Bucket,
    QuotaError,
    SlidingWindow,
    duration,
)

shapes = pytest.mark.parametrize("shape", [Bucket, SlidingWindow])
eager = st.lists(st.tuples(st.floats(0, 1.0), st.integers(0, 12)), min_size=1, max_size=80)
"""Gaps and costs of a client that sends without looking."""


def admitted(meter, gaps, limit=10):
    """Send all, and return when what was taken; also check each promise of when it would fit."""
    now, taken = 100.0, []
    for gap, cost in gaps:
        now += gap
        wait = meter.wait(cost, now)
        if cost > limit:
            assert wait == math.inf
        elif wait == 0:
            meter.take(cost, now)
            taken.append((now, cost))
        else:
            assert meter.wait(cost, now + wait * 0.99) > 0
            now += wait
            assert meter.wait(cost, now) == 0
    return taken


@given(eager)
def test_no_window_holds_more_than_a_sliding_limit(gaps):
    """In (t - window, t] for each t at which something was taken."""
    taken = admitted(SlidingWindow(10, window=2.0), gaps)
    for end, _ in taken:
        assert sum(cost for time, cost in taken if end - 2.0 < time <= end) <= 10


@given(eager)
def test_a_bucket_gives_its_limit_and_what_refills(gaps):
    """Between any two moments: no more than a full bucket and the refill between them."""
    taken = admitted(Bucket(10, window=2.0), gaps)
    for start, end in itertools.combinations_with_replacement(range(len(taken)), 2):
        spent = sum(cost for _, cost in taken[start : end + 1])
        assert spent <= 10 + (taken[end][0] - taken[start][0]) * 10 / 2.0 + 1e-6


@shapes
def test_one_second_of_ten_a_second(shape):
    """Full at first; ten fit, the eleventh does not; then all of it comes back."""
    meter = shape(10, window=1.0)
    assert (meter.remaining(5.0), meter.reset(5.0)) == (10, 0.0)
    for taken in range(10):
        assert meter.wait(1, 5.0) == 0
        meter.take(1, 5.0)
        assert meter.remaining(5.0) == 9 - taken
    assert meter.wait(1, 5.0) == pytest.approx(0.1 if shape is Bucket else 1.0)
    assert meter.reset(5.0) == pytest.approx(1.0)
    assert (meter.remaining(6.0), meter.reset(6.0)) == (10, 0.0)


def test_a_steady_client_is_never_refused():
    """One request each 0.1 s for 100 s against ten in a second: floats don't add up to a refusal."""
    for meter in (Bucket(10, 1.0), SlidingWindow(10, 1.0)):
        for number in range(1000):
            assert meter.wait(1, number / 10) == 0
            meter.take(1, number / 10)


@shapes
def test_a_smaller_limit_keeps_what_was_used(shape):
    """What was left is cut to the new limit, and a larger limit gives it no present."""
    meter = shape(10, window=1.0)
    meter.take(3, 0.0)
    meter.resize(5, 0.0)
    assert meter.remaining(0.0) == (5 if shape is Bucket else 2)
    meter.take(2, 0.0)
    assert meter.wait(4, 0.0) > 0
    assert meter.wait(6, 0.0) == math.inf
    assert meter.wait(5, 1.0) == 0


def test_both_limits_must_agree():
    """A request that the tokens refuse takes no request, and the longer wait is told."""
    balance = AccountBalance(Quota(requests=2, tokens=100, window=10.0))
    balance.admit(90, 0.0)
    with pytest.raises(QuotaError, match="tokens: limit 100, requested 20") as refused:
        balance.admit(20, 0.0)
    assert (refused.value.limit, refused.value.wait) == ("tokens", pytest.approx(1.0))
    assert refused.value.headers() == {"retry-after-ms": "1000", "retry-after": "1"}
    assert balance.headers(0.0) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "5s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "10",
        "x-ratelimit-reset-tokens": "9s",
    }
    balance.admit(10, 0.0)
    with pytest.raises(QuotaError, match="requests: limit 2"):
        balance.admit(0, 0.0)


def test_a_request_above_the_limit_never_fits():
    """It is told so, without a time to come back."""
    with pytest.raises(QuotaError, match="Send a smaller request") as refused:
        AccountBalance(Quota(tokens=100)).admit(101, 0.0)
    assert refused.value.headers() == {}


def test_it_halves_after_so_many_requests():
    """Refused ones count too; once."""
    balance = AccountBalance(Quota(requests=10, window=1.0, halve_after=12))
    refusals = 0
    for _ in range(12):
        try:
            balance.admit(0, 0.0)
        except QuotaError:
            refusals += 1
    assert (refusals, balance.quota.requests) == (2, 10)
    for _ in range(5):
        balance.admit(0, 9.0)
    with pytest.raises(QuotaError, match="limit 5"):
        balance.admit(0, 9.0)
    assert balance.quota.requests == 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.000_001, "0.001ms"),
        (0.003_333_3, "3.334ms"),
        (0.999_999_5, "1s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (90.5, "1m30.5s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_are_written_as_providers_do(seconds, text):
    """Rounded up: nobody is told to come too early."""
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"requests": 0}, r"requests of a quota must .*got 0"),
        ({"tokens": -5}, r"tokens of a quota must .*got -5"),
        ({"window": float("inf")}, r"window of a quota must .*got inf"),
        ({"shape": "leaky"}, r"shape of a quota must .*got 'leaky'"),
    ],
)
def test_what_is_no_quota_is_refused(options, said):
    """With the value in the sentence."""
    with pytest.raises(ValueError, match=said):
        Quota(**options)


def test_a_quota_can_say_little_and_lie():
    """No headers, and the same wait whatever is true; what never fits still says so."""
    balance = AccountBalance(Quota(requests=2, tokens=10, window=60.0, headers=False, retry_after=0.5))
    for _ in range(2):
        balance.admit(1, 0.0)
    assert balance.headers(0.0) == {}
    with pytest.raises(QuotaError) as refused:
        balance.admit(1, 0.0)
    assert refused.value.headers() == {"retry-after-ms": "500", "retry-after": "1"}
    with pytest.raises(QuotaError, match="Send a smaller request"):
        balance.admit(11, 0.0)
