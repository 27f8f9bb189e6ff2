"""Rate headers and admission: fixed windows are used up evenly, and hostile headers never stop an account."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import anyio
import looptime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runtime.demand import Attempt, Demand

from afnio.errors import RateLimitedError
from afnio.models import Usage, read_limits
from afnio.runtime import RateLimits
from afnio.runtime._admission import Admitter
from afnio.runtime._loop import loop_time


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
    [lambda left: str(math.ceil(left)), lambda left: str(round(time.time() + left)), lambda left: "1e300"],
)
@pytest.mark.parametrize("limit", [60, 1_000])
async def test_fixed_windows(
    limit: int, said: Callable[[float], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are used up evenly, without a refusal: one by one, then many at once."""
    monkeypatch.setattr(
        time, "time", lambda: 1_800_000_000 + loop_time()
    )  # a full minute, as the loop's 0 is
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
    assert server.refused == 0


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
        assert loop_time() <= 6 * 86_400 * 1.2  # and what is left of the first window

    loop = looptime.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
