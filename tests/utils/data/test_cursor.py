"""The place in an epoch."""

from __future__ import annotations

import pytest

from afnio.utils.data._sampler import Cursor


def test_an_epoch_left_early_is_over() -> None:
    """The next epoch begins at its first sample."""
    cursor = Cursor()
    epoch, _ = cursor.begin()
    cursor.advance(epoch, 3)
    assert cursor.begin() == (1, 0)


def test_a_loaded_epoch_goes_on_where_it_stood() -> None:
    """Only the first epoch after loading starts in the middle."""
    cursor = Cursor()
    cursor.load_state_dict({"epoch": 4, "position": 2})
    assert cursor.begin() == (4, 2)
    cursor.end(4)
    assert cursor.begin() == (5, 0)


def test_an_older_epoch_does_not_move_the_cursor() -> None:
    """Once another epoch has begun, the one before counts nothing."""
    cursor = Cursor()
    older, _ = cursor.begin()
    cursor.begin()
    cursor.advance(older, 3)
    cursor.end(older)
    assert cursor.state_dict() == {"epoch": 1, "position": 0}


@pytest.mark.parametrize("state", [{}, {"epoch": 0}, {"epoch": -1, "position": 0}])
def test_a_broken_state_is_refused(state: dict[str, int]) -> None:
    """The error names the key, the value and where a state comes from."""
    with pytest.raises(ValueError, match=r"\[(epoch|position)\] is \[.*state_dict\(\)"):
        Cursor().load_state_dict(state)
