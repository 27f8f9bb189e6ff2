"""The position in an epoch, as every sampler keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from afnio.utils.data import SequentialSampler


def sampler() -> SequentialSampler:
    return SequentialSampler("abcd")


def test_an_epoch_left_early_is_over() -> None:
    """The next epoch begins at its first sample."""
    order = sampler()
    iterator = iter(order)
    assert [next(iterator), next(iterator), next(iterator)] == [0, 1, 2]
    assert list(order) == [0, 1, 2, 3]
    assert order.state_dict() == {"epoch": 2, "position": 0}


def test_a_loaded_epoch_continues_where_it_was() -> None:
    """Only the first epoch after loading starts in the middle."""
    order = sampler()
    order.load_state_dict({"epoch": 4, "position": 2})
    assert list(order) == [2, 3]
    assert order.state_dict() == {"epoch": 5, "position": 0}
    assert list(order) == [0, 1, 2, 3]


def test_an_older_epoch_does_not_move_the_position() -> None:
    """Once another epoch has begun, samples of the one before don't count."""
    order = sampler()
    older = iter(order)
    next(older)
    iter(order)
    assert list(older) == [1, 2, 3]
    assert order.state_dict() == {"epoch": 1, "position": 0}


@pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": -1, "position": 0}])
def test_a_broken_state_is_refused(state: dict[str, Any]) -> None:
    """The error names the key, the value and where a state comes from."""
    with pytest.raises(ValueError, match=r"'(epoch|position)' must .*got .*state_dict\(\)"):
        sampler().load_state_dict(state)
