"""Values as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import afnio.tellurio as te

if TYPE_CHECKING:
    from conftest import Read

FILE = Path(".afnio/me/emails.db")
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


def test_every_json_value_comes_back(read: Read) -> None:
    """Also texts with any character, and infinity."""
    logged = []
    with te.init("me", "emails") as run:

        @given(VALUES)
        def log(value: Any) -> None:
            run.log("x", value)
            logged.append(value)

        log()
    assert logged == [json.loads(text) for (text,) in read(FILE, "SELECT value FROM metrics ORDER BY id")]


def test_the_offending_part_is_named() -> None:
    """Not the container around it."""
    with (
        te.init("me", "emails") as run,
        pytest.raises(TypeError, match=r"metric 'x' must be JSON \(got bytes in it\)"),
    ):
        run.log("x", {"a": [b""]})
