"""Wilson's interval: known values, and what must hold for every count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.tellurio._compare import wilson
from afnio.trainer._options import Accuracy


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    total = draw(st.integers(1, 10_000))
    return draw(st.integers(0, total)), total


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # From Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_it_has_the_published_values(correct: int, total: int, low: float, high: float):
    assert wilson(correct, total) == pytest.approx((low, high), abs=5e-5)


@given(counts())
def test_it_holds_the_share_and_stays_in_the_unit_interval(count: tuple[int, int]):
    correct, total = count
    low, high = wilson(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    assert low < high


@given(counts())
def test_it_is_symmetric(count: tuple[int, int]):
    correct, total = count
    low, high = wilson(correct, total)
    assert wilson(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(counts())
def test_more_data_narrow_it(count: tuple[int, int]):
    correct, total = count
    low, high = wilson(correct, total)
    narrow_low, narrow_high = wilson(4 * correct, 4 * total)
    assert narrow_high - narrow_low < high - low


def test_without_data_it_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("correct", "total"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(correct: int, total: int):
    with pytest.raises(ValueError, match=rf"got {correct} of {total}"):
        wilson(correct, total)


def test_failures_are_no_wrong_answers():
    both = Accuracy(3, 4, failed=1) + Accuracy(2, 5)
    assert (both.correct, both.total, both.failed) == (5, 9, 1)
    assert both.share == pytest.approx(5 / 9)
    assert Accuracy(0, 0, failed=3).share is None
