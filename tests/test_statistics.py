"""Paired statistics: exact where they say so, and right about chance."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afnio._statistics import differences, p_value

SMALL = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=9)


@given(SMALL)
@settings(max_examples=60, deadline=None)
def test_p_counts_the_signs_that_do_as_well(pairs):
    """The share of all sign patterns whose sum is at least the one seen."""
    patterns = list(itertools.product((1, -1), repeat=len(pairs)))
    sums = [sum(sign * abs(pair) for sign, pair in zip(signs, pairs, strict=True)) for signs in patterns]
    assert sum(total >= sum(pairs) for total in sums) / len(sums) == pytest.approx(p_value(pairs))


def test_differences_of_any_sizes_are_tested_exactly_or_a_little_strictly():
    """On a grid that rounds them, no sum that is as high is missed."""
    draw = random.Random(0)
    for number in range(40):
        sizes = [1 / 9, 2 / 9, 1.0] if number % 2 else [draw.random() for _ in range(5)]
        pairs = [draw.choice([-1, 1]) * draw.choice(sizes) for _ in range(11)]
        exact = sum(
            sum(signed) >= sum(pairs) - 1e-9 for signed in itertools.product(*((p, -p) for p in pairs))
        )
        assert exact / 2**11 <= p_value(pairs) <= exact / 2**11 + 0.01


@pytest.mark.parametrize(
    ("large", "small", "level"), [(1, 12, 0.25), (3, 12, 0.05), (3, 60, 0.05), (3, 200, 0.05)]
)
def test_a_few_large_differences_among_small_ones_do_not_pass_for_a_gain(large, small, level):
    """The normal approximation takes them for one twice as often as it may."""
    draw, runs = random.Random(3), 300

    def pairs():
        return [draw.choice([-1, 1]) * size for size in [1.0] * large + [0.01] * small]

    passed = sum(p_value(pairs()) <= level for _ in range(runs))
    assert passed <= runs * level + 2.3 * (runs * level * (1 - level)) ** 0.5


def test_more_than_a_thousand_differences_are_no_overflow():
    """Right and wrong answers of a large test set."""
    assert pytest.approx(p_value([1.0] * 600 + [-1.0] * 500), abs=1e-4) == 0.0014


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_no_better_candidate_is_rarely_accepted(scale):
    """At a level of 0.1, one in ten at most of candidates that differ by noise alone; whatever the scale."""
    draw = random.Random(1)
    found = [p_value([scale * draw.choice([-1, 0, 0, 1]) for _ in range(64)]) for _ in range(1000)]
    assert 0.02 < sum(p <= 0.1 for p in found) / 1000 <= 0.12


def test_a_failed_sample_is_left_out():
    """It is no wrong answer, of whichever text."""
    assert differences([1, None, 0, 0], [0, 1, None, 1]) == [1.0, -1.0]
