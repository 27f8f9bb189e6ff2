"""Paired statistics: exact where they say so, and right about chance."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afnio.optim.search import chance, differences, each_alpha, p_value

SMALL = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=9)


@given(SMALL)
@settings(max_examples=60, deadline=None)
def test_p_counts_the_signs_that_do_as_well(pairs):
    """The share of all sign patterns whose sum is at least the one seen."""
    patterns = list(itertools.product((1, -1), repeat=len(pairs)))
    sums = [sum(sign * abs(pair) for sign, pair in zip(signs, pairs, strict=True)) for signs in patterns]
    assert sum(total >= sum(pairs) for total in sums) / len(sums) == pytest.approx(p_value(pairs))


def test_the_approximation_is_near_the_exact_test():
    """Thirteen differences are the first that it is used for."""
    draw = random.Random(0)
    for _ in range(20):
        pairs = [draw.choice([-1, 1]) * (0.5 + draw.random()) for _ in range(13)]
        exact = sum(
            sum(signed) >= sum(pairs) - 1e-9 for signed in itertools.product(*((p, -p) for p in pairs))
        )
        assert exact / 2**13 == pytest.approx(p_value(pairs), abs=0.03)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_no_better_candidate_is_rarely_accepted(scale):
    """At a level of 0.1, one in ten at most of candidates that differ by noise alone; whatever the scale."""
    draw = random.Random(1)
    found = [p_value([scale * draw.choice([-1, 0, 0, 1]) for _ in range(64)]) for _ in range(1000)]
    assert 0.02 < sum(p <= 0.1 for p in found) / 1000 <= 0.12


def test_a_failed_sample_is_left_out():
    """It is no wrong answer, of whichever text."""
    assert [1.0, -1.0] == differences([1, None, 0, 0], [0, 1, None, 1])


def test_chance_is_what_it_promises():
    """Of candidates whose effects are drawn from the prior, about so many are accepted in the end."""
    draw = random.Random(2)
    promised: dict[bool, list[tuple[float, bool]]] = {True: [], False: []}
    for _ in range(3000):
        effect = draw.gauss(0, 0.5)
        pairs = [draw.gauss(effect, 1) for _ in range(64)]
        probable = chance(pairs[:16], 64, 0.05)
        promised[probable < 0.1].append((probable, p_value(pairs) <= 0.05))
    for group in promised.values():
        expected = sum(probable for probable, _ in group) / len(group)
        happened = sum(accepted for _, accepted in group) / len(group)
        assert expected == pytest.approx(happened, abs=0.06)


def test_levels_hold_for_all_candidates_together():
    """The chance that all stay out is the confidence."""
    assert 0.8 == pytest.approx((1 - each_alpha(0.8, 4)) ** 4)
    assert 0.2 == pytest.approx(each_alpha(0.8, 1))
