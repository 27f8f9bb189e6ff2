"""Rate headers: the forms that providers send, those that mean nothing, and what calls make of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import anyio
import looptime
import pytest
from demand import Attempt, Demand
from hypothesis import given, settings
from hypothesis import strategies as st

from afnio.errors import RateLimitedError
from afnio.models import ChatClient, ChatRequest, ChatResponse, Usage
from afnio.models._replies import read_duration, read_limit, read_limits
from afnio.runtime import Account, LimitReading, RateLimits
from afnio.runtime._admission import Admitter
from afnio.runtime._loop import loop_time
from afnio.runtime.events import LimitsLearnt, subscribed
from afnio.testing.provider import duration


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
    assert LimitReading(30_000, 29_000, 2.0, 0.0005) == read_limit(headers("30000", "29000", "2s"), "tokens")
    assert LimitReading(30_000, 0) == read_limit(headers("30000", "-5"), "tokens")
    assert read_limit(headers("30000", "29000"), "requests") is None


@pytest.mark.parametrize(
    ("limit", "remaining"), [("0", "0"), ("many", "1"), ("nan", "1"), ("10", ""), ("", "1")]
)
def test_nonsense_is_ignored(limit: str, remaining: str) -> None:
    """Headers that can't be limits are none."""
    assert read_limit(headers(limit, remaining), "tokens") is None


@pytest.mark.parametrize("limit", [str(10**12), str(10**15), str(2**63 - 1), "1e300", "9" * 400])
def test_a_huge_limit_is_none(limit: str) -> None:
    """A number that means "unlimited" is no limit."""
    assert read_limit(headers(limit, limit), "tokens") is None


@pytest.mark.parametrize("unit", [1, 1_000])
def test_a_unix_time_is_a_time(unit: int) -> None:
    """In seconds or milliseconds it is counted from now."""
    reading = read_limit(headers("600", "599", str(int((time.time() + 30) * unit))), "tokens")
    assert reading is not None
    assert 28 <= (reading.reset or 0) <= 30


@pytest.mark.parametrize("reset", ["1e9", "1e300", str(10**15), "999999999", "1000000h", "9" * 400 + "s"])
def test_a_time_out_of_reach_is_none(reset: str) -> None:
    """A reset in the past or years ahead is left out; the rest is read."""
    assert LimitReading(600, 599) == read_limit(headers("600", "599", reset), "tokens")


def test_what_cannot_be_meant_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """With what was read and what is done, once for each kind of header."""
    soon = int(time.time() + 30)
    for _ in range(3):
        read_limit(headers(str(2**63 - 1), "5"), "tokens", "https://odd.example")
        read_limit(headers("5", "5", str(soon)), "tokens", "https://odd.example")
    huge, unix = (record.getMessage() for record in caplog.records)
    assert (
        f"https://odd.example sent x-ratelimit-limit-tokens: {2**63 - 1}, which is taken for no limit" == huge
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
    events: list[object] = []
    with subscribed(events.append):
        client = Taught(f"refused-{refused}", *ends)
        assert "yes" == str(await client.achat(messages=[{"role": "user", "content": "Hi"}], model="m"))
    learnt = [event for event in events if isinstance(event, LimitsLearnt)]
    assert [6_000] == [event.requests for event in learnt]


class FixedWindow:
    """A provider that counts requests from each full minute on, and says when the next one begins."""

    def __init__(self, limit: int, said: Callable[[float], str]) -> None:
        self.limit = limit
        self.refused = 0
        self.counts: dict[int, int] = {}
        self._said = said

    async def answer(self) -> RateLimits | None:
        now = loop_time()
        minute = int(now // 60)
        used = self.counts[minute] = self.counts.get(minute, 0) + 1
        told = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(max(0, self.limit - used)),
            "x-ratelimit-reset-requests": self._said(60 - now % 60),
        }
        limits = read_limits(told, "https://fixed.example")
        if used > self.limit:
            self.refused += 1
            raise RateLimitedError("slow down", status=429, limits=limits)
        await anyio.sleep(0.2)
        return limits


@pytest.mark.looptime
@pytest.mark.parametrize(
    "said",
    [lambda left: str(math.ceil(left)), lambda left: str(int(time.time() + left)), lambda left: "1e300"],
)
@pytest.mark.parametrize("limit", [60, 1_000])
async def test_fixed_windows(limit: int, said: Callable[[float], str]) -> None:
    """They are used up evenly, without a refusal: one by one, then many at once."""
    admit, server = Admitter(), FixedWindow(limit, said)

    async def call() -> None:
        async with Attempt(admit, Demand()) as attempt:
            attempt.reply(Usage(), await server.answer())

    for _ in range(5):
        started = loop_time()
        await call()
        assert loop_time() - started <= 60 / limit + 0.3
        await anyio.sleep(1.3)
    started = loop_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(2 * limit):
            tasks.start_soon(call)
    assert loop_time() - started <= 130
    assert 0 == server.refused


numbers = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.integers(0, 1_000).map(str),
    st.floats().map(str),
    st.sampled_from(["1e300", "inf", "nan", "-0", "0", "1", "", "1_0", "9" * 400, "١٢", str(2**63 - 1)]),
)
resets = numbers | st.tuples(numbers, st.sampled_from(["s", "ms", "h", "ns", "d", "1s"])).map("".join)
hostile = st.fixed_dictionaries(
    {},
    optional={
        f"x-ratelimit-{what}-{kind}": resets if what == "reset" else numbers
        for what in ("limit", "remaining", "reset")
        for kind in ("requests", "tokens")
    },
)


@settings(max_examples=150)
@given(st.lists(st.tuples(hostile, st.floats(0, 100)), min_size=1, max_size=5))
def test_hostile_headers(replies: list[tuple[dict[str, str], float]]) -> None:
    """Whatever a provider says, arithmetic holds, and the next call goes in time."""

    async def main() -> None:
        admit = Admitter()
        for told, seconds in replies:
            async with Attempt(admit, Demand(prompt_tokens=100)) as attempt:
                attempt.reply(Usage(), read_limits(told, "https://hostile.example"))
            await anyio.sleep(seconds)
        wait = admit._allowance("m").wait(100, loop_time())
        assert 0 <= wait < math.inf
        async with Attempt(admit, Demand(prompt_tokens=100)):
            pass
        assert loop_time() <= 6 * 86_400 * 1.1

    loop = looptime.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
