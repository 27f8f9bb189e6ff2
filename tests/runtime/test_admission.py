"""Admission and the adaptive limit, on a virtual clock where time matters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runtime.demand import Attempt, Demand

from afnio.errors import RateLimitedError, TransientModelError
from afnio.runtime import Account, Limits
from afnio.runtime._admission import Admitter
from afnio.runtime._call_queue import PATIENCE
from afnio.runtime._health import CEILING, CUT, START, Concurrency
from afnio.runtime._settings import Priority


def admitter(limit: int) -> Admitter:
    made = Admitter()
    made.apply(Limits(max_in_flight=limit))
    return made


@asynccontextmanager
async def held(admit: Admitter, rank: Priority = Priority.TRAINING) -> AsyncIterator[None]:
    async with Attempt(admit, Demand(rank)):
        yield


async def test_never_above_the_limit() -> None:
    """No more permits are out than the limit allows, and all of them come back."""
    admit, peak = admitter(3), 0

    async def call() -> None:
        nonlocal peak
        async with held(admit):
            peak = max(peak, admit.in_flight)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(call)
    assert (peak, admit.in_flight) == (3, 0)


async def test_order() -> None:
    """The class, then retries, then depth, then who came first."""
    admit, order = admitter(1), []
    waiting = {
        "served": Attempt(admit, Demand(Priority.SERVING)),
        "validation": Attempt(admit, Demand(Priority.VALIDATION)),
        "retry": Attempt(admit, Demand(), first=False),
        "deeper": Attempt(admit, Demand(depth=2)),
        "deep": Attempt(admit, Demand(depth=1)),
        "first": Attempt(admit, Demand()),
        "second": Attempt(admit, Demand()),
    }

    async def call(name: str) -> None:
        async with waiting[name]:
            order.append(name)

    async with anyio.create_task_group() as tasks, held(admit):
        for name in ("first", "retry", "second", "deep", "served", "deeper", "validation"):
            tasks.start_soon(call, name)
            await anyio.wait_all_tasks_blocked()
    assert order == list(waiting)


async def test_nobody_starves() -> None:
    """Urgent calls overtake the one that has waited longest a bounded number of times."""
    admit, order = admitter(1), []

    async def call(rank: Priority) -> None:
        async with held(admit, rank):
            order.append(rank)

    async with anyio.create_task_group() as tasks, held(admit):
        for rank in [Priority.TRAINING] * 3 + [Priority.SERVING] * 4 * PATIENCE:
            tasks.start_soon(call, rank)
        await anyio.wait_all_tasks_blocked()
    turns = [turn for turn, rank in enumerate(order) if rank is Priority.TRAINING]
    assert turns == [PATIENCE, 2 * PATIENCE + 1, 3 * PATIENCE + 2]


async def test_cancelled_waiter_leaves_no_permit() -> None:
    """Cancelling who queues, or who has just been admitted, leaks nothing."""
    admit = admitter(1)
    async with anyio.create_task_group() as tasks:
        async with held(admit):
            with anyio.move_on_after(0):
                async with held(admit):
                    raise AssertionError("not reached")

            async def call() -> None:
                async with held(admit):
                    await anyio.sleep_forever()

            tasks.start_soon(call)
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert admit.in_flight == 0
    async with held(admit):
        assert admit.in_flight == 1


@pytest.mark.looptime
async def test_rate_limit_pauses_the_account() -> None:
    """After a 429 nobody goes on the wire until the time that the provider gave."""
    admit = admitter(4)
    started = anyio.current_time()
    with pytest.raises(RateLimitedError):
        async with held(admit):
            raise RateLimitedError("slow down", retry_after=7.0)
    times = []

    async def call() -> None:
        async with held(admit):
            times.append(anyio.current_time() - started)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(call)
    assert [round(time, 3) for time in times] == [7.0] * 3


async def test_other_errors_pause_nobody() -> None:
    """A failed attempt of another kind gives its permit back, and that is all."""
    admit = admitter(2)
    with pytest.raises(TransientModelError):
        async with held(admit):
            raise TransientModelError("reset")
    assert (admit.in_flight, admit.concurrency.limit) == (0, 2)


def grown(limit: Concurrency, now: float = 0.0, saturated: bool = True) -> int:
    limit.sent(limit.limit if saturated else 1)
    for _ in range(max(limit.limit, 4)):
        limit.succeeded(now)
    return limit.limit


def test_slow_start() -> None:
    """Without an explicit limit it starts at 64 and doubles per clean, saturated round up to the ceiling."""
    limit = Concurrency()
    assert [limit.limit, *(grown(limit) for _ in range(5))] == [START, 128, 256, 512, CEILING, CEILING]


def test_no_growth_without_use() -> None:
    """A limit that wasn't used doesn't grow: unused headroom proves nothing."""
    assert grown(Concurrency(), saturated=False) == START


def test_one_cut_per_episode() -> None:
    """Many rate limits at once are one episode; after it growth is slow."""
    limit = Concurrency()
    for _ in range(20):
        limit.limited(1.0, None)
    assert int(START * CUT) == limit.limit
    assert int(START * CUT) == grown(limit, now=2.0)  # successes in the cool-down don't count
    assert int(START * CUT * 1.05) == grown(limit, now=100.0)
    limit.limited(200.0, None)
    assert limit.limit < int(START * CUT)


def test_explicit_ceiling() -> None:
    """An explicit limit is used at once, and never exceeded."""
    limit = Concurrency(10)
    assert grown(limit) == 10
    limit.limited(0.0, None)
    assert limit.limit == 8
    for turn in range(50):
        grown(limit, now=100.0 + turn)
    assert limit.limit == 10


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e6)), max_size=200))
def test_limit_stays_in_bounds(events: list[tuple[bool, float]]) -> None:
    """Whatever happens, the limit stays between 1 and the ceiling."""
    limit = Concurrency()
    for success, now in sorted(events, key=lambda event: event[1]):
        limit.sent(limit.limit)
        if success:
            limit.succeeded(now)
        else:
            limit.limited(now, None)
        assert 1 <= limit.limit <= CEILING


@pytest.mark.looptime
@pytest.mark.parametrize("limit", [10**12, 10**15, 2**63 - 1])
async def test_a_huge_limit_is_none(limit: int, caplog: pytest.LogCaptureFixture) -> None:
    """It holds nobody up, costs no time, and is told once."""
    admit = Admitter(Account(f"https://huge-{limit}.example", "s"))
    limits = Limits(requests_per_minute=limit, tokens_per_minute=limit, max_in_flight=limit)
    for _ in range(3):
        admit.apply(limits)
        async with held(admit):
            await anyio.sleep(1.2)
    assert anyio.current_time() == pytest.approx(3.6)
    assert [
        f"https://huge-{limit}.example was given {name}_per_minute={limit}, which is treated as unlimited"
        for name in ("requests", "tokens")
    ] == [record.getMessage() for record in caplog.records]


@pytest.mark.looptime
async def test_a_pause_ends_for_who_queued_before_it() -> None:
    """The call that was limited, and those that waited behind it, go on when the pause is over."""
    admit, done = admitter(1), []

    async def call(limited: bool) -> None:
        try:
            async with held(admit):
                await anyio.sleep(0.1)
                if limited:
                    raise RateLimitedError("slow down", retry_after=5.0)
        except RateLimitedError:
            await call(False)
            return
        done.append(anyio.current_time())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, True)
        for _ in range(3):
            tasks.start_soon(call, False)
    assert len(done) == 4


async def test_the_same_limits_again_change_nothing() -> None:
    """What was learnt from rate limits survives the next call of the same client."""
    admit, limits = Admitter(), Limits(max_in_flight=10)
    admit.apply(limits)
    admit.concurrency.limited(0.0, None)
    admit.apply(limits)
    assert admit.concurrency.limit == 8


async def test_cancelling_a_long_queue_is_quick() -> None:
    """Cancelling thousands of queued calls takes time in proportion to their number."""
    admit = admitter(1)

    async def call() -> None:
        async with held(admit):
            raise AssertionError("not reached")

    async with held(admit), anyio.create_task_group() as tasks:
        for _ in range(5_000):
            tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert admit.in_flight == 0
    async with held(admit):
        assert len(admit._queue) == 0
