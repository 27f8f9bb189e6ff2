"""A block that only older programs need."""

from __future__ import annotations

import pytest

import afnio
import afnio.tellurio as te


def test_the_block_changes_nothing() -> None:
    """Variables work in it, and an exception passes through."""
    with pytest.raises(LookupError), te.suppress_variable_notifications():
        assert afnio.Variable("x").data == "x"
        raise LookupError
