"""Pacer: never above the limit in any window, nearly all of it used; on a virtual clock."""

from __future__ import annotations

import anyio
import pytest
from kit.windows import worst_window

from afnio.runtime._limits import MARGIN, Pacer
from afnio.runtime._loop import loop_time


async def send(pacer: Pacer, count: int) -> list[float]:
    """Send as soon as it may, and return the times."""
    times: list[float] = []
    while len(times) < count:
        wait = pacer.wait(loop_time())
        if wait > 0:
            await anyio.sleep(wait)
            continue
        pacer.take(loop_time())
        times.append(loop_time())
    return times


@pytest.mark.looptime
@pytest.mark.parametrize(
    "limit", [1, 7, 60, 199, *(pytest.param(limit, marks=pytest.mark.nightly) for limit in (500, 6_000))]
)
async def test_never_above_in_any_window(limit: int) -> None:
    """Whatever the limit, no minute holds more, and on the whole at least 97 % of it is used."""
    times = await send(Pacer(limit), 3 * limit + 1)
    assert worst_window([(time, 1) for time in times], 60.0) <= limit
    assert (len(times) - 1) / (times[-1] - times[0]) >= 0.97 * limit / 60


@pytest.mark.looptime
async def test_short_windows_hold_as_well() -> None:
    """A limit that a provider counts by the second holds within each second, too."""
    times = await send(Pacer(60 * 200), 1_000)
    assert worst_window([(time, 1) for time in times], 1.0) <= 200


@pytest.mark.looptime
async def test_no_burst_after_idling() -> None:
    """An account that was idle gets no minute's worth at once."""
    pacer = Pacer(600)
    await send(pacer, 50)
    await anyio.sleep(600)
    times = await send(pacer, 601)
    assert worst_window([(time, 1) for time in times], 60.0) <= 600


@pytest.mark.looptime
async def test_what_is_used_counts_as_paced() -> None:
    """What went before the limit was known takes its time from what comes."""
    pacer = Pacer(60, now=loop_time(), used=20)
    started = loop_time()
    (first,) = await send(pacer, 1)
    assert first - started == pytest.approx(20 / MARGIN, abs=0.01)


@pytest.mark.looptime
async def test_retuned() -> None:
    """Another pace holds at once, without a burst in between."""
    pacer = Pacer(6_000)
    await send(pacer, 1_000)
    pacer.retune(600, 60.0)
    times = await send(pacer, 700)
    assert worst_window([(time, 1) for time in times], 60.0) <= 600


@pytest.mark.looptime
async def test_late_timers_lose_nothing() -> None:
    """A timer that is a few milliseconds late catches up."""
    pacer, times = Pacer(60 * 500), []
    while len(times) < 2_000:
        wait = pacer.wait(loop_time())
        if wait > 0:
            await anyio.sleep(wait + 0.003)
            continue
        pacer.take(loop_time())
        times.append(loop_time())
    late = times[1_000:]
    assert len(late) / (late[-1] - late[0]) >= 0.97 * 500


@pytest.mark.looptime
@pytest.mark.parametrize("limit", [1e9, 1e15, 1e300])
async def test_a_huge_limit_costs_no_time(limit: float) -> None:
    """A burst is taken at once, however large it may be."""
    pacer = Pacer(limit)
    await send(pacer, 10)
    await anyio.sleep(1.5)
    started = loop_time()
    await send(pacer, 10)
    assert loop_time() - started <= 0.01
