"""An account that refuses without saying its limits: its pace is found, and nothing is lost; on a virtual clock."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable

import anyio
import pytest
from kit.windows import worst_window
from runtime.demand import Attempt, Demand

from afnio.errors import RateLimitedError
from afnio.runtime import Account, Limits
from afnio.runtime._admission import Admitter
from afnio.runtime._loop import loop_time
from afnio.testing.provider._quota import Bucket, Meter, SlidingWindow

MINUTE = 60.0
_jitter = random.Random(1)


class Silent:
    """A provider that refuses what its meter doesn't take, with the same wait each time, and tells no limit."""

    def __init__(self, meter: Meter, *, retry_after: float | None = 1.0, latency: float = 0.4) -> None:
        self.meter = meter
        self.sent: list[float] = []
        self.refused: list[float] = []
        self._retry_after = retry_after
        self._latency = latency

    async def answer(self) -> None:
        now = loop_time()
        if self.meter.wait(1, now) > 0:
            self.refused.append(now)
            await anyio.sleep(0.02)
            raise RateLimitedError("slow down", status=429, retry_after=self._retry_after)
        self.meter.take(1, now)
        self.sent.append(now)
        await anyio.sleep(self._latency)


async def call(admit: Admitter, answer: Callable[[], object]) -> None:
    """Make one call, again a moment after it is refused."""
    first = True
    while True:
        try:
            async with Attempt(admit, Demand(), first=first):
                await answer()  # type: ignore[misc]
        except RateLimitedError as error:
            first = False
            await anyio.sleep((error.retry_after or 0.0) + _jitter.uniform(0, 0.5))
            continue
        return


async def run(admits: list[Admitter], calls: int, server: Silent) -> float:
    """Make `calls` calls in each process, which is an admitter of its own; return the seconds."""
    started = loop_time()
    async with anyio.create_task_group() as tasks:
        for admit in admits:
            for _ in range(calls):
                tasks.start_soon(call, admit, server.answer)
    return loop_time() - started


def later(times: list[float], seconds: float) -> list[float]:
    return [time for time in times if time > times[0] + seconds]


@pytest.mark.looptime
@pytest.mark.parametrize("shape", [Bucket, SlidingWindow])
@pytest.mark.parametrize("retry_after", [None, 1.0])
@pytest.mark.parametrize("limit", [20, 300])
async def test_finds_the_pace(
    shape: Callable[[int, float], Meter], retry_after: float | None, limit: int
) -> None:
    """All are answered in about the time that the limit allows, with few refusals once it is known."""
    server = Silent(shape(limit, MINUTE), retry_after=retry_after)
    seconds = await run([Admitter()], 4 * limit, server)
    assert 4 * limit == len(server.sent)
    assert seconds <= 5 * MINUTE
    known = later(server.refused, 1.2 * MINUTE)
    assert len(known) <= 0.4 * len(later(server.sent, 1.2 * MINUTE))


@pytest.mark.looptime
@pytest.mark.parametrize("window", [1.0, 2.0, 600.0])
async def test_no_window_is_assumed(window: float) -> None:
    """A limit by the second or by ten minutes is found as well as one by the minute."""
    server = Silent(SlidingWindow(100, window), retry_after=window / 10)
    seconds = await run([Admitter()], 500, server)
    assert len(server.sent) == 500
    assert seconds <= 6 * window + 5


@pytest.mark.looptime
async def test_processes_share_an_account() -> None:
    """Three processes that were each given the whole quota find their shares of it."""
    server, admits = Silent(SlidingWindow(600, MINUTE)), [Admitter() for _ in range(3)]
    for admit in admits:
        admit.apply(Limits(requests_per_minute=600))
    seconds = await run(admits, 350, server)
    assert len(server.sent) == 3 * 350
    assert seconds <= 2.2 * MINUTE
    assert len(server.refused) <= 300


@pytest.mark.looptime
async def test_a_higher_limit_is_noticed() -> None:
    """The pace grows when the account takes more, and is no limit in the end."""
    server, admit = Silent(SlidingWindow(60, MINUTE)), Admitter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, [admit], 3_000, server)
        await anyio.sleep(2 * MINUTE)
        server.meter.resize(100_000, loop_time())
        raised = loop_time()
    assert len(server.sent) == 3_000
    assert loop_time() - raised <= 7 * MINUTE
    assert admit.refusals.pacer is None


@pytest.mark.looptime
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
async def test_random_refusals_are_chance(share: float) -> None:
    """Up to one in five, drawn for each attempt, costs short pauses; no pace is learnt from it."""
    draw, admit, paces = random.Random(3), Admitter(), []
    admit.apply(Limits(max_in_flight=256))

    async def answer() -> None:
        if draw.random() < share:
            await anyio.sleep(0.002)
            raise RateLimitedError("busy", status=429, retry_after=0.1)
        await anyio.sleep(draw.uniform(0.1, 0.3))
        paces.append(admit.refusals.pacer)

    started = loop_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(2_000):
            tasks.start_soon(call, admit, answer)
    assert set(paces) == {None}
    assert loop_time() - started <= 20


@pytest.mark.looptime
async def test_one_probe_at_a_time() -> None:
    """While the account refuses, one request after each pause tries it, and the pauses grow to five seconds."""
    admit, sent = Admitter(), []

    async def answer() -> None:
        sent.append(loop_time())
        if loop_time() < 60:
            raise RateLimitedError("slow down", status=429)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(call, admit, answer)
    probes = [time for time in sent if 0 < time < 60]
    gaps = [after - before for before, after in itertools.pairwise(probes)]
    assert 14 <= len(probes) <= 17
    assert pytest.approx(gaps[:6], abs=0.01) == [0.5, 1, 2, 4, 5, 5]


@pytest.mark.looptime
async def test_a_slow_reply_to_the_probe_holds_nobody_up() -> None:
    """That a probe isn't refused soon is enough: its reply may take minutes."""
    admit, refused, started = Admitter(), 0, loop_time()

    async def answer() -> None:
        nonlocal refused
        if refused < 1:
            refused += 1
            raise RateLimitedError("slow down", status=429, retry_after=1.0)
        await anyio.sleep(120)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call, admit, answer)
    assert loop_time() - started <= 125


@pytest.mark.looptime
async def test_the_pace_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning says that calls wait, one what was let in."""
    admit = Admitter(Account("https://silent.example", "s"))
    server = Silent(SlidingWindow(30, MINUTE))
    with caplog.at_level(logging.WARNING, logger="afnio"):
        await run([admit], 150, server)
    shut, pace = (record.getMessage() for record in caplog.records)
    assert "https://silent.example refuses one request after another (slow down); its calls wait" in shut
    assert "https://silent.example refuses requests; it let in 31 within 6" in pace


@pytest.mark.looptime
async def test_the_pace_is_even() -> None:
    """Once the pace is known there are no bursts: no second holds more than three times its share."""
    server = Silent(SlidingWindow(300, MINUTE))
    await run([Admitter()], 1_000, server)
    assert worst_window([(time, 1) for time in later(server.sent, 80)], 1.0) <= 15
