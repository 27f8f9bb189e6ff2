"""Budgets: what fits is sent, what doesn't waits, what never will is refused with a sentence and the ledger."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from decimal import Decimal
from typing import Any

import anyio
import pytest
from runtime.budgets import ITEM, PRICE, FakeRuntime, estimate, turns

from afnio.errors import (
    BudgetExceeded,
    FinalModelError,
    RateLimitedError,
    TransientModelError,
    UnknownPriceError,
)
from afnio.runtime import Budget, Ledger, budget, current_runtime
from afnio.runtime._budget import Charge, Reservation, current_budgets, reserve
from afnio.runtime._call import AttemptOutcome
from afnio.runtime._kernel import Launch, Slot
from afnio.runtime._limits import DEFAULT_OUTPUT
from afnio.runtime._spending import AttemptEstimate, Spent
from afnio.runtime._waiting import wait
from afnio.runtime.events import Usage


@pytest.fixture
def runtime() -> Any:
    return FakeRuntime()


async def held(runtime: Any, asked: AttemptEstimate) -> Reservation:
    return await reserve(runtime, asked)


async def sent(runtime: Any, asked: AttemptEstimate) -> Reservation:
    reservation = await reserve(runtime, asked)
    reservation.attempt()
    return reservation


def open_of(one: Budget) -> tuple[int, int]:
    return one.balance.open, one.balance.promised.tokens


async def test_without_budgets(runtime: Any) -> None:
    """Where no budget governs, a reservation costs no wait and counts nowhere."""
    with await reserve(runtime, estimate()) as reservation:
        reservation.attempt()
        reservation.settle(Charge.USED, Usage(1, 1))
    assert current_budgets() == ()


async def test_one_call(runtime: Any) -> None:
    """Settling counts what was used, at the price of the model; the rest is room again."""
    with budget(max_calls=2, max_tokens=25, max_cost=1) as spending:
        reservation = await sent(runtime, estimate())
        assert open_of(spending) == (1, 20)
        reservation.settle(Charge.USED, Usage(8, 4, cached_tokens=2))
    assert open_of(spending) == (0, 0)
    expected = Spent(1, 1, usage=Usage(8, 4, 2), known_cost=Decimal("0.000015"), prices=(PRICE,))
    assert dict(spending.ledger.items) == {ITEM: expected}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_calls": 1}, "max_calls=1 leaves no room .* need 1 calls: 1 calls spent, 0 calls reserved"),
        ({"max_tokens": 31}, "max_tokens=31 leaves .* need 20 tokens: 12 tokens spent, 0 tokens reserved"),
        (
            {"max_cost": 0.00004},
            r"max_cost=0.00004 leaves .* need \$0.00003: \$0.000016 spent, \$0.00 reserved",
        ),
    ],
)
async def test_exceeded(runtime: Any, limits: dict[str, Any], said: str) -> None:
    """The error names the limit, its value, what was spent, and carries the ledger."""
    with budget(**limits):
        (await sent(runtime, estimate())).settle(Charge.USED, Usage(8, 4))
        with pytest.raises(BudgetExceeded, match=said) as caught:
            await reserve(runtime, estimate())
    error = caught.value
    assert next(iter(limits)) == error.limit
    assert float(next(iter(limits.values()))) == float(error.value)
    assert error.ledger.items[ITEM].calls == 1
    assert "raise max_" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (error.limit, error.spent, error.ledger) == (copy.limit, copy.spent, copy.ledger)


async def test_waits_for_running_calls(runtime: Any) -> None:
    """What doesn't fit waits until a call settles for less than its reserve."""
    with budget(max_tokens=30):
        first = await sent(runtime, estimate())
        async with anyio.create_task_group() as tasks:
            seen: list[Reservation] = []

            async def second() -> None:
                seen.append(await reserve(runtime, estimate()))

            tasks.start_soon(second)
            await turns()
            assert seen == []
            first.settle(Charge.USED, Usage(5, 5))
            await turns()
            assert len(seen) == 1
            seen[0].release()


async def test_first_come_first_served(runtime: Any) -> None:
    """A large request is not starved by small ones that came later and would fit."""
    order: list[int] = []
    with budget(max_tokens=100):
        running = [await sent(runtime, estimate(20, 20)) for _ in range(2)]
        async with anyio.create_task_group() as tasks:

            async def call(tokens: int) -> None:
                reservation = await sent(runtime, estimate(tokens, 0))
                order.append(tokens)
                reservation.settle(Charge.NOTHING)

            for tokens in (50, 10, 5):
                tasks.start_soon(call, tokens)
                await turns()
            assert order == []
            for reservation in running:
                reservation.settle(Charge.NOTHING)
            await turns()
    assert order == [50, 10, 5]


async def test_waiter_is_refused_once_nothing_can_free_enough(runtime: Any) -> None:
    """A wait ends with the error as soon as what was spent leaves no room, and those behind go on."""
    results: list[Any] = []
    with budget(max_tokens=40):
        first, other = await sent(runtime, estimate()), await sent(runtime, estimate(5, 5))
        async with anyio.create_task_group() as tasks:

            async def call(tokens: int) -> None:
                try:
                    results.append(await reserve(runtime, estimate(tokens, 0)))
                except BudgetExceeded as error:
                    results.append(error)

            tasks.start_soon(call, 30)
            await turns()
            tasks.start_soon(call, 12)
            await turns()
            first.settle(Charge.USED, Usage(10, 10))
            await turns()
            assert isinstance(results[0], BudgetExceeded)
            assert len(results) == 1
            other.settle(Charge.NOTHING)
            await turns()
            assert isinstance(results[1], Reservation)
            results[1].release()


async def test_cancelled_waiter_leaves_the_line(runtime: Any) -> None:
    """Those behind a cancelled waiter go on, and nothing is held for it."""
    with budget(max_tokens=30) as spending:
        running = await sent(runtime, estimate(10, 10))
        async with anyio.create_task_group() as tasks:
            scope = anyio.CancelScope()
            seen: list[Reservation] = []

            async def large() -> None:
                with scope:
                    await reserve(runtime, estimate(20, 10))

            async def small() -> None:
                seen.append(await reserve(runtime, estimate(5, 5)))

            tasks.start_soon(large)
            await turns()
            tasks.start_soon(small)
            await turns()
            assert seen == []
            scope.cancel()
            await turns()
            assert len(seen) == 1
        running.settle(Charge.NOTHING)
        seen[0].release()
    assert open_of(spending) == (0, 0)


async def test_waiter_cancelled_as_it_is_admitted(runtime: Any) -> None:
    """A place that was given to a waiter in the same turn as its cancellation is given back."""
    with budget(max_tokens=20) as spending:
        running = await sent(runtime, estimate())
        waiting = asyncio.ensure_future(held(runtime, estimate()))
        await turns()
        running.settle(Charge.NOTHING)
        assert open_of(spending) == (1, 20)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert open_of(spending) == (0, 0)


async def test_each_attempt_is_a_call(runtime: Any) -> None:
    """Refused attempts give their tokens back, not their calls; the call that fails for good is known."""
    with budget(max_calls=2, max_tokens=20) as spending:
        reservation = await sent(runtime, estimate())
        reservation.settle(AttemptOutcome.of(RateLimitedError("slow down", status=429)).money)
        await reservation.hold()
        reservation.attempt()
        reservation.settle(AttemptOutcome.of(FinalModelError("no", status=400)).money)
        with pytest.raises(BudgetExceeded, match="max_calls=2"):
            await reservation.hold()
    assert Spent(attempts=2) == spending.ledger.total


@pytest.mark.parametrize(
    "error",
    [
        TransientModelError("reset"),
        TransientModelError("gateway", status=504),
        FinalModelError("cut", status=200),
    ],
)
async def test_unknown_attempts_count_at_their_reserve(runtime: Any, error: Exception) -> None:
    """Where nobody knows whether an attempt was billed, it counts as if it had used all."""
    with budget(max_tokens=39) as spending:
        reservation = await sent(runtime, estimate())
        reservation.settle(AttemptOutcome.of(error).money)
        with pytest.raises(BudgetExceeded, match="20 tokens spent"):
            await reservation.hold()
    total = spending.ledger.total
    assert (0, 1, 1, Usage(10, 10), Decimal("0.00003")) == (
        total.calls, total.attempts, total.unknown, total.reserved, total.cost,
    )  # fmt: skip


async def test_cut_off_on_the_wire(runtime: Any) -> None:
    """A call that is cancelled on the wire is unknown; one that was not sent yet costs nothing."""
    with budget() as spending:
        with anyio.CancelScope() as scope:
            with await reserve(runtime, estimate()) as reservation:
                reservation.attempt()
                scope.cancel()
                await anyio.sleep_forever()
        with await reserve(runtime, estimate()):
            pass
    assert (spending.ledger.total.attempts, spending.ledger.total.unknown) == (1, 1)
    assert open_of(spending) == (0, 0)


async def test_reply_without_counts(runtime: Any) -> None:
    """A reply whose usage the provider leaves out counts at its reserve, never as 0."""
    with budget(max_tokens=30) as spending:
        (await sent(runtime, estimate())).settle(Charge.USED, Usage())
        with pytest.raises(BudgetExceeded):
            await reserve(runtime, estimate())
    assert (1, 1, Usage(10, 10)) == (
        spending.ledger.total.calls, spending.ledger.total.unknown, spending.ledger.total.reserved,
    )  # fmt: skip


async def test_output_without_a_maximum(runtime: Any) -> None:
    """The reserve is a default before the first reply, then the 95th percentile of that phase and model."""
    with budget(max_tokens=10_000) as spending:
        reservation = await sent(runtime, estimate(10, None))
        assert open_of(spending) == (1, 10 + DEFAULT_OUTPUT)
        reservation.learn(Usage(10, 30))
        reservation.settle(Charge.USED, Usage(10, 30))
        for purpose, expected in (("forward", 40), ("backward", 10 + DEFAULT_OUTPUT)):
            reservation = await reserve(runtime, estimate(10, None, purpose=purpose))
            assert open_of(spending) == (1, expected)
            reservation.release()


async def test_guess_is_corrected_while_waiting(runtime: Any) -> None:
    """A guess that is too large delays a call until others show what replies are like, no longer."""
    with budget(max_tokens=DEFAULT_OUTPUT + 20), anyio.fail_after(1):
        first = await sent(runtime, estimate(10, None))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(held, runtime, estimate(10, None))
            await turns()
            first.learn(Usage(10, 30))
            first.settle(Charge.USED, Usage(10, 30))


async def test_guess_that_does_not_fit(runtime: Any) -> None:
    """With nothing under way, a guess that doesn't fit is refused, and the error says how to bound it."""
    with budget(max_tokens=DEFAULT_OUTPUT), pytest.raises(BudgetExceeded, match="max_completion_tokens"):
        await reserve(runtime, estimate(1, None))


async def test_last_call_goes_on_the_wire(runtime: Any) -> None:
    """Who waits for a call that was only held is refused as soon as that call is sent for good."""
    with budget(max_calls=1):
        first = await held(runtime, estimate())
        second = asyncio.ensure_future(held(runtime, estimate()))
        await turns()
        assert not second.done()
        first.attempt()
        with pytest.raises(BudgetExceeded, match="max_calls=1 .* 1 calls spent, 0 calls reserved"):
            await second
        first.settle(Charge.NOTHING)


async def test_call_that_was_only_held_is_room_again(runtime: Any) -> None:
    """A call that was never sent is free for the next."""
    with budget(max_calls=1), anyio.fail_after(1):
        first = await held(runtime, estimate())
        second = asyncio.ensure_future(held(runtime, estimate()))
        await turns()
        first.release()
        (await second).release()


def test_child_process_counts_for_itself(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parent had under way at a fork holds up nobody in the child; what was spent stays."""
    with budget(max_calls=3, max_tokens=60) as spending:

        async def parent() -> None:
            (await sent(runtime, estimate())).settle(Charge.USED, Usage(5, 5))
            await sent(runtime, estimate())

        async def child() -> None:
            (await sent(runtime, estimate(10, 30))).settle(Charge.USED, Usage(5, 5))
            with pytest.raises(BudgetExceeded, match="max_calls=3"):
                await reserve(runtime, estimate())

        anyio.run(parent)
        monkeypatch.setattr("os.getpid", lambda: -1)
        anyio.run(child)
    assert (spending.ledger.total.calls, spending.ledger.total.attempts) == (2, 3)


async def test_nested_budgets_must_agree(runtime: Any) -> None:
    """An inner budget can't spend what the outer one doesn't have, and both count."""
    with budget(max_tokens=100) as outer:
        with budget(max_tokens=1000) as inner:
            (await sent(runtime, estimate(10, 80))).settle(Charge.USED, Usage(10, 80))
            with pytest.raises(BudgetExceeded, match="max_tokens=100 "):
                await reserve(runtime, estimate())
        with budget(max_calls=0), pytest.raises(BudgetExceeded, match="max_calls=0"):
            await reserve(runtime, estimate(1, 1))
    assert outer.ledger == inner.ledger
    assert open_of(inner) == open_of(outer) == (0, 0)


async def test_waiting_for_an_inner_budget_holds_up_nobody_else(runtime: Any) -> None:
    """A call that waits for its own inner budget doesn't stand in the outer one's way."""
    with budget(max_tokens=100), anyio.fail_after(1):
        async with anyio.create_task_group() as tasks:
            with budget(max_tokens=20):
                running = await sent(runtime, estimate())
                tasks.start_soon(held, runtime, estimate())
                await turns()
            with budget(max_tokens=20):
                (await sent(runtime, estimate())).settle(Charge.NOTHING)
            running.settle(Charge.NOTHING)


async def test_waiter_moves_between_lines(runtime: Any) -> None:
    """A waiter that fits one of its budgets at last goes on waiting for the other."""
    seen: list[Reservation] = []
    with budget(max_tokens=40) as outer:
        others = [await sent(runtime, estimate()) for _ in range(2)]
        with budget(max_tokens=20) as inner:

            async def call() -> None:
                seen.append(await reserve(runtime, estimate()))

            async with anyio.create_task_group() as tasks:
                others[0].settle(Charge.NOTHING)
                mine = await sent(runtime, estimate())
                tasks.start_soon(call)
                await turns()
                mine.settle(Charge.NOTHING)
                await turns()
                assert len(seen) == 1
                seen.pop().release()
                # First the outer one is full, then the inner one.
                filler = await sent(runtime, estimate(10, 10))
                tasks.start_soon(call)
                await turns()
                others[1].settle(Charge.NOTHING)
                await turns()
                assert seen == []
                filler.settle(Charge.NOTHING)
                await turns()
                assert len(seen) == 1
                seen[0].release()
    assert open_of(inner) == open_of(outer) == (0, 0)


async def test_block_inside_itself(runtime: Any) -> None:
    """A budget that is entered again inside itself counts once, and may be entered again later."""
    spending = budget(max_calls=2)
    with spending, spending:
        (await sent(runtime, estimate())).settle(Charge.USED, Usage(1, 1))
    async with spending:
        (await sent(runtime, estimate())).settle(Charge.USED, Usage(1, 1))
        with pytest.raises(BudgetExceeded):
            await reserve(runtime, estimate())
    assert current_budgets() == ()
    assert spending.ledger.total.calls == 2


async def test_tasks_share_a_budget(runtime: Any) -> None:
    """Tasks may be in one budget's block at the same time and leave it in any order."""
    spending = budget(max_calls=10)

    async def call(wait_turns: int) -> None:
        async with spending:
            await turns(wait_turns)
            (await sent(runtime, estimate())).settle(Charge.USED, Usage(1, 1))
        assert current_budgets() == ()

    async with anyio.create_task_group() as tasks:
        for count in (9, 1, 5):
            tasks.start_soon(call, count)
    assert spending.ledger.total.calls == 3


def test_what_was_launched_in_a_block_is_governed_later() -> None:
    """The budget of the launch holds although its block was left long ago; leaving it waits for nothing."""
    gate = threading.Event()
    runtime = current_runtime()

    async def body(job: Any, values: list[Any]) -> list[Any]:
        await anyio.to_thread.run_sync(gate.wait)
        with await reserve(job.launch.runtime, estimate()) as reservation:
            reservation.attempt()
            reservation.settle(Charge.USED, Usage(3, 2))
        return [1]

    with budget(max_calls=1) as spending:
        launch = Launch("call")
        slot = Slot(launch)
        launch.add(body, [], [slot])
        launch.start()
    assert spending.ledger.total.calls == 0
    gate.set()
    wait([slot])
    assert (1, Usage(3, 2)) == (spending.ledger.total.calls, spending.ledger.total.usage)
    assert runtime is current_runtime()


async def test_unknown_price(runtime: Any) -> None:
    """Where dollars are limited, a model without a price is refused; elsewhere its cost is None, not 0."""
    with (
        budget(max_cost=1),
        pytest.raises(UnknownPriceError, match=r"price of 'm' at https://host.*AFNIO_PRICES"),
    ):
        await reserve(runtime, estimate(price=None))
    with budget() as spending:
        (await sent(runtime, estimate(price=None))).settle(Charge.USED, Usage(1, 1))
        assert spending.ledger.total.cost is None
        (await sent(runtime, estimate(model="n"))).settle(Charge.USED, Usage(1_000_000, 0))
    assert list(spending.ledger.rows())[-1][-1] == "$1.00 + 1 unpriced"


async def test_spent_before(runtime: Any) -> None:
    """What an earlier run paid counts, from the start or charged later."""
    paid = Ledger({ITEM: Spent.of(PRICE, Usage(50, 20), calls=3, attempts=4)})
    with budget(max_calls=5, max_tokens=200, max_cost=1, spent_before=paid) as spending:
        (await sent(runtime, estimate())).settle(Charge.USED, Usage(10, 10))
        with pytest.raises(BudgetExceeded, match="max_calls=5 .* 5 calls spent"):
            await reserve(runtime, estimate())
    spending.charge(paid)
    assert (spending.ledger.total.calls, spending.ledger.total.attempts) == (7, 9)
    with pytest.raises(UnknownPriceError, match="price of 'm'"):
        spending.charge(Ledger({ITEM: Spent.of(None, Usage(1, 1), calls=1, attempts=1)}))


@pytest.mark.looptime
async def test_time(runtime: Any) -> None:
    """When the time is over no attempt is sent, whether it waits, is held or is new."""
    results: list[Any] = []
    with budget(max_seconds=60, max_tokens=60) as spending:
        running, queued = await sent(runtime, estimate()), await held(runtime, estimate())
        assert 59 < running.deadline - anyio.current_time() <= 60

        async def call() -> None:
            try:
                await reserve(runtime, estimate(20, 10))
            except BudgetExceeded as error:
                results.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(59)
            assert results == []
            await anyio.sleep(2)
        assert results[0].limit == "max_seconds"
        assert "max_seconds=60 are over (60.0 s" in str(results[0])
        assert "what was on the wire is cut off" in str(results[0])
        with queued, pytest.raises(BudgetExceeded, match="max_seconds=60"):
            queued.attempt()
        running.settle(Charge.USED, Usage(5, 5))
        with pytest.raises(BudgetExceeded, match="max_seconds=60"):
            await reserve(runtime, estimate())
    assert (spending.ledger.total.calls, spending.ledger.total.attempts) == (1, 1)
    assert open_of(spending) == (0, 0)


@pytest.mark.parametrize("name", ["max_calls", "max_tokens", "max_cost", "max_seconds"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "many"])
def test_limits_are_numbers(name: str, value: Any) -> None:
    """A limit that is none is refused at the line that gives it."""
    with pytest.raises(ValueError, match=f"{name} must be a number of 0 or more .*omit it"):
        budget(**{name: value})


@pytest.mark.parametrize("name", ["max_calls", "max_tokens"])
def test_counts_are_whole(name: str) -> None:
    """Calls and tokens are counted in ones."""
    with pytest.raises(ValueError, match=f"{name} must be a whole number .got 1.5."):
        budget(**{name: 1.5})
    assert repr(budget(**{name: 3.0})) == f"budget({name}=3)"


def test_a_users_decimal_context_changes_no_cost() -> None:
    """Launches inherit the caller's decimal context; three digits of precision round nothing here."""
    import decimal

    with decimal.localcontext(prec=3):
        spent = Spent.of(PRICE, Usage(123_456, 789), calls=1) + Spent.of(PRICE, Usage(1, 0), calls=1)
    assert Decimal("0.125035") == spent.cost


def test_ledger_is_read_from_any_thread() -> None:
    """A reader on another thread sees whole snapshots while the loop's thread goes on counting."""
    spending = budget()
    seen: list[Spent] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(spending.ledger.total)

    async def main() -> None:
        with spending:
            for number in range(500):
                (await sent(FakeRuntime(), estimate(model=f"m{number}"))).settle(Charge.USED, Usage(1, 1))

    reader = threading.Thread(target=read)
    reader.start()
    anyio.run(main)
    stop.set()
    reader.join()
    assert all(total.calls == total.usage.prompt_tokens for total in seen)
    assert spending.ledger.total.calls == 500


@pytest.mark.parametrize("room", [10, 1_000_000])
async def test_many_at_once_take_linear_time(runtime: Any, room: int) -> None:
    """Eight times the calls take about eight times as long, not 64 times, whether they fit at once or wait in line."""

    async def seconds(calls: int) -> float:
        started = time.process_time()
        with budget(max_tokens=room * 20 + calls * 2):

            async def call() -> None:
                with await reserve(runtime, estimate()) as reservation:
                    reservation.attempt()
                    await anyio.lowlevel.checkpoint()
                    reservation.settle(Charge.USED, Usage(1, 1))

            async with anyio.create_task_group() as tasks:
                for _ in range(calls):
                    tasks.start_soon(call)
        return time.process_time() - started

    await seconds(100)
    small = min([await seconds(250) for _ in range(3)])
    large = min([await seconds(2000) for _ in range(2)])
    assert large < 4 * 8 * small
