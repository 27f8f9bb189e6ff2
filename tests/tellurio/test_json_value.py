"""Values as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.tellurio._recording import encode

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)


@given(VALUES)
def test_every_json_value_comes_back(value: Any) -> None:
    """And its text can be stored as UTF-8."""
    text = encode("metric [x]", value)
    text.encode()
    assert json.loads(text) == value


def test_the_offending_part_is_named() -> None:
    """Not the container around it."""
    with pytest.raises(TypeError, match=r"metric \[x\] holds a \[bytes\]"):
        encode("metric [x]", {"a": [b""]})
