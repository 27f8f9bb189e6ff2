"""The switch that only older programs need."""

from __future__ import annotations

import threading

import pytest

import afnio.tellurio as te
from afnio.tellurio._run import notifications_suppressed


def test_the_block_marks_its_context_only() -> None:
    """Another thread doesn't see it."""
    seen = []
    with te.suppress_variable_notifications():
        assert notifications_suppressed()
        thread = threading.Thread(target=lambda: seen.append(notifications_suppressed()))
        thread.start()
        thread.join()
    assert seen == [False]
    assert not notifications_suppressed()


def test_an_exception_ends_the_mark() -> None:
    """And goes on its way."""
    with pytest.raises(LookupError), te.suppress_variable_notifications():
        raise LookupError
    assert not notifications_suppressed()
