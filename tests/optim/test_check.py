"""Checks: what speaks against a proposed value."""

from __future__ import annotations

import pytest

import afnio
from afnio.optim import tgd
from afnio.testing import ScriptedClient


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
    parameter = afnio.Parameter(before, role="prompt")
    client = ScriptedClient(lambda request: {"value": after})
    (change,) = tgd([parameter], [[afnio.Variable("Do better.")]], [[]], client, model="m").wait()
    found = change.rejected.split("; ") if change.rejected else []
    assert len(reasons) == len(found)
    assert (before if reasons else after) == parameter.data
    assert all(reason in text for reason, text in zip(reasons, found, strict=True))
