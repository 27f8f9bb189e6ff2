"""Rate headers: the forms that providers send, and those that mean nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.models.rate_headers import read_duration, read_limit
from afnio.runtime.server_limits import Reading
from afnio.testing.quota import duration


def headers(limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    found = {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": remaining}
    return found if reset is None else found | {"x-ratelimit-reset-tokens": reset}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360), ("20ms", 0.02), ("1s", 1), ("1h2m3.5s", 3723.5), ("2m59.56s", 179.56), ("8.64s", 8.64),
        ("12", 12), ("0.25", 0.25), ("1d", 86_400), ("300µs", 3e-4), (" 7.66s ", 7.66), ("0s", 0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    """Go's durations and plain seconds."""
    found, precision = read_duration(text)
    assert pytest.approx(seconds) == found
    assert 0 < precision <= 1


@pytest.mark.parametrize("text", [None, "", "soon", "5 minutes", "-1", "nan", "inf", "2026-01-01T00:00:00Z"])
def test_no_duration(text: str | None) -> None:
    """What is none is left out, and raises nothing."""
    assert read_duration(text)[0] is None


@given(st.floats(0, 1e5))
def test_provider_durations(seconds: float) -> None:
    """What our provider writes is read within what it rounds away."""
    found, precision = read_duration(duration(seconds))
    assert found is not None
    assert abs(found - seconds) <= 2 * precision + 1e-6


def test_limits() -> None:
    """A limit needs what is left of it; the reset may be missing."""
    assert Reading(30_000, 29_000, 2.0, 0.0005) == read_limit(headers("30000", "29000", "2s"), "tokens")
    assert Reading(30_000, 0) == read_limit(headers("30000", "-5"), "tokens")
    assert read_limit(headers("30000", "29000"), "requests") is None


@pytest.mark.parametrize(
    ("limit", "remaining"), [("0", "0"), ("many", "1"), ("nan", "1"), ("10", ""), ("", "1")]
)
def test_nonsense_is_ignored(limit: str, remaining: str) -> None:
    """Headers that can't be limits are none."""
    assert read_limit(headers(limit, remaining), "tokens") is None
