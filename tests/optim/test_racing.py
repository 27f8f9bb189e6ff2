"""Races: losers are out early, and nothing depends on who answers first."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from afnio.optim.search import Race

SIZES = [16, 16, 16, 16]


def scores(draw, chance):
    return [[float(draw.random() < chance) for _ in range(size)] for size in SIZES]


def race(k=3):
    return Race(SIZES, candidates=k, confidence=0.8, quorum=0.9)


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_the_order_of_arrival_decides_nothing(seed, order):
    """Any order of blocks, also one that stops as soon as it is over, gives the same verdicts."""
    draw = random.Random(seed)
    table = [scores(draw, chance) for chance in (0.5, 0.5, 0.6, 0.75)]
    arrivals = [(who, block) for who in range(4) for block in range(4)]
    told = []
    for shuffle in (False, True):
        found = race()
        for who, block in order.sample(arrivals, len(arrivals)) if shuffle else arrivals:
            if who == 0:
                found.add_incumbent(block, table[0][block])
            elif found.running(who - 1) or not shuffle:
                found.add(who - 1, block, table[who][block])
        assert found.over
        told.append((found.winner, [found.verdict(number) for number in range(3)]))
    assert told[0] == told[1]


def test_a_hopeless_candidate_is_out_after_one_block():
    """And the race is over with its last one."""
    found = race(k=1)
    found.add(0, 0, [0.0] * 16)
    assert found.running(0)
    found.add_incumbent(0, [1.0] * 16)
    assert (False, True, None, "dropped") == (
        found.running(0),
        found.over,
        found.winner,
        found.verdict(0).outcome,
    )


def test_a_sure_candidate_without_rivals_needs_no_more():
    """Its verdict is that of the block after which it was sure."""
    found = race(k=2)
    for block in range(3):
        found.add_incumbent(block, [0.0] * 16)
        found.add(0, block, [1.0] * 16)
    assert not found.over, "the other may be better still"
    found.add(1, 0, [0.0] * 16)
    assert (True, 0, 1) == (found.over, found.winner, found.verdict(0).blocks)


def test_of_two_better_ones_the_larger_gain_wins():
    """On all samples; of equals the first."""
    found = race(k=3)
    for block in range(4):
        found.add_incumbent(block, [0.0] * 16)
        for number, right in enumerate((8, 16, 16)):
            found.add(number, block, [1.0] * right + [0.0] * (16 - right))
    assert (1, ["accepted"] * 3) == (found.winner, [found.verdict(n).outcome for n in range(3)])


def test_failed_samples_are_left_out_up_to_the_quorum():
    """Below it the candidate fails, with the count."""
    for failed, outcome in ((1, "dropped"), (2, "failed")):
        found = race(k=1)
        found.add_incumbent(0, [1.0] * 16)
        found.add(0, 0, [None] * failed + [1.0] * (16 - failed))
        assert outcome == found.verdict(0).outcome
    assert "only 14 of 16 samples have both scores (quorum=0.9)" in str(found.verdict(0))


def test_an_error_counts_when_its_block_is_reached():
    """A candidate that is out before it has not failed."""
    error = RuntimeError("down")
    found = race(k=2)
    found.add(0, 1, error)
    found.add(1, 1, error)
    found.add_incumbent(0, [1.0, 0.0] * 8)
    found.add_incumbent(1, [1.0, 0.0] * 8)
    found.add(0, 0, [0.0] * 16)
    found.add(1, 0, [1.0] * 16)
    assert ("dropped", "failed") == (found.verdict(0).outcome, found.verdict(1).outcome)
    assert error is found.verdict(1).error


def test_scores_of_another_number_of_samples_are_refused():
    """Pairs could not be made."""
    found = race(k=1)
    found.add_incumbent(0, [1.0] * 16)
    found.add(0, 0, [1.0] * 15)
    assert "as many scores as for the same batch before, 16 (got 15)" in str(found.verdict(0))


def test_nothing_better_changes_nothing():
    """With the confidence asked for, over all candidates together."""
    draw = random.Random(3)
    accepted = 0
    for _ in range(300):
        found = race(k=4)
        for block, incumbent in enumerate(scores(draw, 0.5)):
            found.add_incumbent(block, incumbent)
        for number in range(4):
            for block, mine in enumerate(scores(draw, 0.5)):
                found.add(number, block, mine)
        accepted += found.winner is not None
    assert accepted / 300 <= 0.2
