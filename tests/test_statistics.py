"""Statistics of scores: exact where they say so, right about chance, and intervals that cover the truth."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afnio.stats import differences, mean_interval, p_value, paired_interval, power, share_interval, wilson

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


# Intervals and power ------------------------------------------------------------------------------


def right_and_wrong(draw):
    """Answers of two texts to one row, the second right more often; the mean gain is 0.08."""
    first = float(draw.random() < 0.5)
    return first, first if draw.random() < 0.6 else float(draw.random() < 0.7)


def rare(share, size):
    """Equal scores, but for a rare large difference."""
    return lambda draw: (0.99, 0.99 - size if draw.random() < share else 0.99)


GAINS = {
    "right and wrong": (right_and_wrong, 0.08),
    "uniform": (lambda draw: (draw.random(), draw.random()), 0.0),
    "small": (lambda draw: (0.5, 0.5 + draw.gauss(0, 0.1)), 0.0),
    **{f"{share} lose 0.9": (rare(share, 0.9), -0.9 * share) for share in (0.02, 0.03, 0.05, 0.1)},
}


def coverage(name, rows, runs):
    """The share of made experiments whose interval has the true gain."""
    draw, (pair, truth) = random.Random(f"{name} {rows}"), GAINS[name]
    covered = 0
    for _ in range(runs):
        scores = [pair(draw) for _ in range(rows)]
        found = paired_interval([first for first, _ in scores], [second for _, second in scores])
        covered += found.low <= truth <= found.high
    return covered / runs


@pytest.mark.parametrize("name", GAINS)
def test_a_gains_interval_covers_the_truth(name):
    """Student's t missed it in 36 of 100 experiments with 32 rows of which 3 in 100 lose much."""
    assert coverage(name, 32, 400) >= 0.93


@pytest.mark.nightly
@pytest.mark.parametrize("rows", [12, 20, 60, 120, 200])
@pytest.mark.parametrize("name", GAINS)
def test_a_gains_interval_covers_the_truth_for_any_number_of_rows(name, rows):
    """94 of 100 less what 3,000 experiments are off by chance."""
    assert coverage(name, rows, 3_000) >= 0.93


@pytest.mark.parametrize("share", [0.03, 0.1])
def test_a_means_interval_covers_the_truth(share):
    """Of scores of which a few are low."""
    draw, covered = random.Random(2), 0
    for _ in range(1_000):
        low, high = mean_interval([0.01 if draw.random() < share else 1.0 for _ in range(32)])
        covered += low <= 1 - 0.99 * share <= high
    assert covered / 1_000 >= 0.94


def test_the_range_of_scores_widens_an_interval():
    """Rare scores of up to `highest` may be missing in few rows."""
    narrow, wide = (paired_interval([0.5] * 40, [0.8] * 40, highest=highest) for highest in (1.0, 10.0))
    assert wide.low < 0 < narrow.low


def test_an_interval_needs_samples():
    """And the same number of both scores."""
    assert paired_interval([], []).low is None
    assert paired_interval([0.3], [0.5]).low is None
    assert mean_interval([0.3]) is None
    with pytest.raises(ValueError, match="the same length"):
        paired_interval([1.0], [])


@pytest.mark.parametrize(("rows", "gain", "losing"), [(60, 0.15, 0.05), (100, 0.1, 0.1), (32, 0.0, 0.1)])
def test_power_is_how_often_a_gain_is_seen(rows, gain, losing):
    draw, seen, runs = random.Random(4), 0, 2_000
    for _ in range(runs):
        marks = [draw.random() for _ in range(rows)]
        first = [float(gain + losing <= mark < gain + 2 * losing) for mark in marks]
        second = [float(mark < gain + losing) for mark in marks]
        seen += paired_interval(first, second).low > 0
    assert seen / runs == pytest.approx(power(rows, gain, losing=losing), abs=0.035)


@pytest.mark.parametrize(
    ("rows", "gain", "losing"), [(0, 0.1, 0.1), (10, 0.95, 0.1), (10, -0.2, 0.1), (True, 0.1, 0.1)]
)
def test_power_of_what_cannot_be_is_refused(rows, gain, losing):
    with pytest.raises(ValueError, match="must be"):
        power(rows, gain, losing=losing)


@pytest.mark.parametrize("draws", [2, 5])
def test_equal_draws_of_a_row_are_no_evidence(draws):
    """The interval is the one of a single draw; draws that differ by chance make it narrower."""
    sure = [1.0] * 30 + [0.0] * 10
    assert share_interval(sure, draws * 40) == pytest.approx(wilson(30, 40))
    low, high = share_interval([0.7, 0.8] * 20, draws * 40)
    assert high - low < 0.8 * (wilson(30, 40)[1] - wilson(30, 40)[0])
    assert share_interval([1.0] * 40, draws * 40) == wilson(40, 40)


@pytest.mark.parametrize(
    "answers",
    [5, 12, 25, 60, *(pytest.param(many, marks=pytest.mark.nightly) for many in (8, 40, 131, 500, 5_000))],
)
def test_the_interval_of_a_share_covers_it(answers):
    """In 95 % of all samples, whatever the share. Without the correction it was 84 % of 5 answers, and 91 % of 25."""
    bounds = [wilson(right, answers) for right in range(answers + 1)]
    ways = [
        math.lgamma(answers + 1) - math.lgamma(right + 1) - math.lgamma(answers - right + 1)
        for right in range(answers + 1)
    ]
    for percent in range(50, 99):
        share = percent / 100
        covered = math.fsum(
            math.exp(ways[right] + right * math.log(share) + (answers - right) * math.log1p(-share))
            for right, (low, high) in enumerate(bounds)
            if low <= share <= high
        )
        assert covered >= 0.95


@pytest.mark.nightly
@pytest.mark.parametrize("rows", [5, 10, 30, 60])
@pytest.mark.parametrize("draws", [1, 2, 3, 5])
@pytest.mark.parametrize("mean", [0.5, 0.65, 0.8, 0.9, 0.95, 0.98])
def test_the_interval_of_several_draws_covers_the_share(rows, draws, mean):
    """In 94 % of 3,000 simulations at least, whether rows or draws vary more."""
    for correlation in (0.3, 0.7, 0.9):
        draw, covered, runs = random.Random(7), 0, 3_000
        ways = (1 - correlation) / correlation
        for _ in range(runs):
            chances = [draw.betavariate(mean * ways, (1 - mean) * ways) for _ in range(rows)]
            shares = [sum(draw.random() < chance for _ in range(draws)) / draws for chance in chances]
            low, high = share_interval(shares, rows * draws)
            covered += low <= mean <= high
        assert covered / runs >= 0.94
