"""Checks: what speaks against a proposed value."""

from __future__ import annotations

import pytest

from afnio.optim._checks import objections


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ("a", "b", []),
        ("Answer {q}.", "Now {q}!", []),
        ("a", "Answer {new}.", []),
        ("Answer {q} as {form}.", "Answer.", ["{q}", "{form}"]),
        ("{q} {q}", "x", ["{q}"]),
        ('{"json": 1} {not a name}', "x", []),
        ("a", "  \n", ["empty"]),
    ],
)
def test_placeholders_are_kept_and_values_are_not_empty(before, after, reasons):
    """Each lost placeholder is named once."""
    found = objections(before, after)
    assert len(reasons) == len(found)
    assert all(reason in text for reason, text in zip(reasons, found, strict=True))
