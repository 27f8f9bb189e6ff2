"""Rate headers: the forms that providers send, those that mean nothing, and what calls make of them."""

from __future__ import annotations

import time
from dataclasses import replace

import kit
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.errors import RateLimitedError
from afnio.models import ChatClient, ChatRequest, ChatResponse, read_limits
from afnio.runtime import Account, LimitReading, RateLimits
from afnio.runtime.events import LimitsLearnt
from afnio.testing.provider import duration


def headers(limit: str, remaining: str, reset: str | None = None) -> dict[str, str]:
    found = {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": remaining}
    return found if reset is None else found | {"x-ratelimit-reset-tokens": reset}


def tokens(headers: dict[str, str], url: str = "https://example.org") -> LimitReading | None:
    limits = read_limits(headers, url)
    return None if limits is None else limits.tokens


def duration_in(text: str) -> tuple[float | None, float]:
    """The time until the reset, and how exact it is."""
    reading = tokens(headers("600", "599", text))
    assert reading is not None
    return reading.reset, reading.precision


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360), ("20ms", 0.02), ("1s", 1), ("1h2m3.5s", 3723.5), ("2m59.56s", 179.56), ("8.64s", 8.64),
        ("12", 12), ("0.25", 0.25), ("1d", 86_400), ("300µs", 3e-4), (" 7.66s ", 7.66), ("0s", 0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    """Go's durations and plain seconds."""
    found, precision = duration_in(text)
    assert found == pytest.approx(seconds)
    assert 0 < precision <= 1


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-1", "nan", "inf", "2026-01-01T00:00:00Z"])
def test_no_duration(text: str) -> None:
    """What is none is left out, and raises nothing."""
    assert duration_in(text)[0] is None


@given(st.floats(0, 86_000))
def test_provider_durations(seconds: float) -> None:
    """What our provider writes is read within what it rounds away."""
    found, precision = duration_in(duration(seconds))
    assert found is not None
    assert abs(found - seconds) <= 2 * precision + 1e-6


def test_limits() -> None:
    """A limit needs what is left of it; the reset may be missing."""
    assert LimitReading(30_000, 29_000, 2.0, 0.0005) == tokens(headers("30000", "29000", "2s"))
    assert LimitReading(30_000, 0) == tokens(headers("30000", "-5"))
    limits = read_limits(headers("30000", "29000"))
    assert limits is not None
    assert limits.requests is None
    assert read_limits({}) is None


@pytest.mark.parametrize(
    ("limit", "remaining"), [("0", "0"), ("many", "1"), ("nan", "1"), ("10", ""), ("", "1")]
)
def test_nonsense_is_ignored(limit: str, remaining: str) -> None:
    """Headers that can't be limits are none."""
    assert tokens(headers(limit, remaining)) is None


@pytest.mark.parametrize("limit", [str(10**12), str(10**15), str(2**63 - 1), "1e300", "9" * 400])
def test_a_huge_limit_is_none(limit: str) -> None:
    """A number that means "unlimited" is no limit."""
    assert tokens(headers(limit, limit)) is None


@pytest.mark.parametrize("unit", [1, 1_000])
def test_a_unix_time_is_a_time(unit: int) -> None:
    """In seconds or milliseconds it is counted from now."""
    reading = tokens(headers("600", "599", str(int((time.time() + 30) * unit))))
    assert reading is not None
    assert 28 <= (reading.reset or 0) <= 30


@pytest.mark.parametrize("reset", ["1e9", "1e300", str(10**15), "999999999", "1000000h", "9" * 400 + "s"])
def test_a_time_out_of_reach_is_none(reset: str) -> None:
    """A reset in the past or years ahead is left out; the rest is read."""
    assert LimitReading(600, 599) == tokens(headers("600", "599", reset))


def test_what_cannot_be_meant_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """With what was read and what is done, once for each kind of header."""
    soon = int(time.time() + 30)
    for _ in range(3):
        tokens(headers(str(2**63 - 1), "5"), "https://odd.example")
        tokens(headers("5", "5", str(soon)), "https://odd.example")
    huge, unix = (record.getMessage() for record in caplog.records)
    assert (
        huge == f"https://odd.example sent x-ratelimit-limit-tokens: {2**63 - 1}, which is taken for no limit"
    )
    assert f"x-ratelimit-reset-tokens: {soon}, which is taken for a Unix time, " in unix


class Taught(ChatClient):
    """A client of someone else's that reports limits with its replies and its errors."""

    def __init__(self, name: str, *ends: ChatResponse | Exception) -> None:
        super().__init__(Account(f"taught://{name}", ""))
        self._ends = iter(ends)

    async def send(self, request: ChatRequest) -> ChatResponse:
        end = next(self._ends)
        if isinstance(end, Exception):
            raise end
        return end


@pytest.mark.parametrize("refused", [False, True])
async def test_every_client_can_teach_limits(refused: bool) -> None:
    """The engine learns from the limits of a reply and from those of a refusal."""
    limits = RateLimits(requests=LimitReading(6_000, 5_999, 0.01))
    reply = ChatResponse(content="yes")
    first = RateLimitedError("no", status=429, retry_after=0.0, limits=limits)
    ends = (first, reply) if refused else (replace(reply, limits=limits),)
    with kit.events() as events:
        client = Taught(f"refused-{refused}", *ends)
        assert str(await client.achat(messages=[{"role": "user", "content": "Hi"}], model="m")) == "yes"
    learnt = [event for event in events if isinstance(event, LimitsLearnt)]
    assert [event.requests for event in learnt] == [6_000]
