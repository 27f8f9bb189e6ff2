"""What headers tell: the length of a window, what is left by now, whether others draw on it."""

from __future__ import annotations

import pytest

from afnio.runtime._limits import MINUTE, LimitReading, ServerLimit, WindowLength
from afnio.testing.provider._quota import Bucket, Meter, SlidingWindow


def readings(meter: Meter, times: list[float]) -> list[LimitReading]:
    """Take one at each time, and read what a provider would say."""
    found = []
    for time in times:
        meter.take(1, time)
        found.append(LimitReading(meter.limit, meter.remaining(time), meter.reset(time), 5e-7))
    return found


def length(found: list[LimitReading]) -> float:
    window = WindowLength()
    for reading in found:
        window.update(reading)
    return window.seconds


@pytest.mark.parametrize("window", [1.0, 2.0, 60.0, 86_400.0])
def test_window_of_a_bucket(window: float) -> None:
    """Three readings of a bucket tell its window; a burst tells it exactly."""
    assert length(readings(Bucket(200, window), [0.0, 0.001, 0.002])) == pytest.approx(window, rel=0.01)
    burst = readings(Bucket(200, window), [0.0005 * n for n in range(64)])
    assert length(burst) == pytest.approx(window, rel=0.02)


@pytest.mark.parametrize("window", [1.0, 60.0])
def test_window_that_slides(window: float) -> None:
    """Readings that no bucket would give are those of a window as long as the longest reset."""
    burst = readings(SlidingWindow(200, window), [0.0005 * n for n in range(64)])
    assert length(burst) == pytest.approx(window, rel=0.01)


@pytest.mark.parametrize(("limit", "window"), [(1_000, 60), (10, 60), (1_000, 3_600)])
def test_fixed_window(limit: int, window: int) -> None:
    """A window that ends in so many seconds is no bucket that is full then, from the first reading on."""
    assert window == length([LimitReading(limit, limit - 1, window, 1.0)])
    assert window == length([LimitReading(limit, limit - 1, window, 1.0)] * 3)
    counted = [LimitReading(limit, limit - used, window - used, 1.0) for used in range(1, 10)]
    assert window == pytest.approx(length(counted), abs=1)


def test_a_minute_where_nothing_is_said() -> None:
    """Without a reset, or with one in whole seconds that fits it, a window is a minute."""
    assert length([LimitReading(500, 499)]) == MINUTE
    assert length([LimitReading(6_000, 5_999, reset=1.0, precision=1.0)]) == MINUTE


def test_downwards_only() -> None:
    """A reading that shows more than is expected is old; one that shows less holds."""
    limit = ServerLimit(LimitReading(60, 10, 50.0), sent_at=0.0, sent_since=4, now=0.0)
    assert limit.level(0.0) == 6
    limit.update(LimitReading(60, 30, 30.0), sent_at=0.0, sent_since=0, now=0.0)
    assert limit.level(0.0) == 6
    limit.update(LimitReading(60, 2, 58.0), sent_at=0.0, sent_since=0, now=0.0)
    assert limit.level(0.0) == 2


def test_change_of_the_limit_is_told_once() -> None:
    """A halved limit is another pace; the same again is none."""
    limit = ServerLimit(LimitReading(600, 599, 0.1), sent_at=0.0, sent_since=0, now=0.0)
    heard = [limit.update(LimitReading(300, 299, 0.2), sent_at=1.0, sent_since=0, now=1.0) for _ in range(2)]
    assert heard == [True, False]
    assert pytest.approx(limit.rate) == 5.0


def test_others_are_noticed() -> None:
    """A limit that falls faster than we send is drawn on by somebody else."""
    alone, shared = (
        ServerLimit(LimitReading(100, 99, 0.6), sent_at=0.0, sent_since=0, now=0.0) for _ in range(2)
    )
    for turn in range(1, 20):
        now = turn * 0.6
        for limit, left in ((alone, 99), (shared, 99 - turn)):
            limit.take(1)
            limit.update(LimitReading(100, left, (100 - left) * 0.6), sent_at=now, sent_since=0, now=now)
    assert (alone.shared, shared.shared) == (False, True)
