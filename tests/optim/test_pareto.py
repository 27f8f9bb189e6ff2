"""The pool: who is on the front, who is drawn, whose ancestor is whose."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from afnio.optim.search import Pool, PoolMember


def pool_of(*scores, parents=()):
    pool = Pool()
    for number, row in enumerate(scores):
        pool.add(PoolMember(number, parents[number] if parents else (), (f"v{number}",), tuple(row)))
    return pool


def test_who_is_best_on_some_sample_is_on_the_front():
    """With the number of samples; who is best nowhere is not."""
    assert {0: 2, 1: 1} == pool_of([1, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]).front


def test_a_member_that_others_make_superfluous_is_left_out():
    """Here each sample that the last is best on has another best one that stays."""
    assert {0: 2, 1: 2} == pool_of([1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]).front


def test_a_failed_sample_is_no_lost_one():
    """Whoever has no score of it is not among those compared."""
    pool = pool_of([None, 0.0], [1.0, 0.0])
    assert (0.0, 0.5, 1) == (pool.members[0].mean, pool.members[1].mean, pool.best.number)
    assert {1: 2} == pool.front
    assert {0: 0} == pool_of([None, None]).front


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_front_covers_every_sample(rows):
    """On each sample one of its best is on the front, and the best member of all is too where it leads alone."""
    pool = pool_of(*rows)
    for sample in range(4):
        top = max(row[sample] for row in rows)
        assert any(rows[number][sample] == top for number in pool.front)
    assert all(wins > 0 for wins in pool.front.values())


def test_parents_are_drawn_by_how_often_they_lead():
    """Three samples of four make three quarters of the draws."""
    pool, draw = pool_of([1, 1, 1, 0], [0, 0, 0, 1]), random.Random(0)
    drawn = [pool.parent(draw).number for _ in range(1000)]
    assert 700 < drawn.count(0) < 800


def test_ancestors_are_found_through_merges():
    """Both parents and theirs."""
    pool = pool_of([1], [1], [1], [1], parents=[(), (0,), (0,), (1, 2)])
    assert [0, 1, 2] == pool.ancestors(3)
    restored = Pool()
    restored.load_state_dict(pool.state_dict())
    assert pool.members == restored.members
