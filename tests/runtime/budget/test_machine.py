"""Nested budgets under any order of reserving, sending, settling, failing, timing out, cancelling, time passing."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from contextvars import copy_context
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from runtime.budgets import PRICE, FakeRuntime, estimate, turns

from afnio.errors import BudgetExceeded
from afnio.runtime import Budget
from afnio.runtime._budget import Charge, Reservation, reservation_of
from afnio.runtime._spending import Spent, cost
from afnio.runtime.events import Usage

WHICH = st.integers(0, 1000)
PART = st.floats(0, 1)


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock stands until it is told to go on."""

    now = 1000.0

    def time(self) -> float:
        return self.now


class Call:
    """One call of the model: its reservation, the task that waits for it, what is on the wire."""

    def __init__(self, budgets: list[Budget], reservation: Reservation, prompt: int, output: int) -> None:
        self.budgets = budgets
        self.reservation = reservation
        self.reserve = Usage(prompt, output)
        self.waiting: asyncio.Future[None] | None = None
        self.held = self.sent = False


def pick(which: int, calls: list[Call]) -> Call | None:
    return calls[which % len(calls)] if calls else None


class Spending(RuleBasedStateMachine):
    """Every output maximum is given, so that no limit may ever be passed."""

    @initialize(
        calls=st.integers(0, 12),
        tokens=st.integers(0, 200),
        cost=st.integers(0, 300),
        seconds=st.integers(0, 300),
    )
    def start(self, calls: int, tokens: int, cost: int, seconds: int) -> None:
        self.loop = VirtualLoop()
        self.runtime: Any = FakeRuntime()
        self.outer = Budget(max_tokens=tokens, max_cost=Decimal(cost).scaleb(-6))
        inner = [Budget(max_calls=calls), Budget(max_tokens=tokens // 2, max_seconds=seconds)]
        self.chains = [[self.outer], *([self.outer, one] for one in inner)]
        self.budgets = [self.outer, *inner]
        self.spent = {id(one): Spent() for one in self.budgets}
        self.calls: list[Call] = []
        self.run(self.enter(inner))

    async def enter(self, budgets: list[Budget]) -> None:
        for one in budgets:  # time counts from the first entry
            with one:
                assert one.deadline > self.loop.now - 1

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def hold(self, call: Call) -> None:
        call.waiting = asyncio.ensure_future(call.reservation.hold(), loop=self.loop)
        self.go_on()

    def go_on(self) -> None:
        """Let the tasks run until all of them wait, and see who has got what it waited for."""
        self.run(turns())
        for call in list(self.calls):
            if call.waiting is None or not call.waiting.done():
                continue
            waiting, call.waiting = call.waiting, None
            if waiting.cancelled() or isinstance(waiting.exception(), BudgetExceeded):
                self.calls.remove(call)
            else:
                waiting.result()
                call.held = True

    def count(self, call: Call, spent: Spent) -> None:
        for one in call.budgets:
            self.spent[id(one)] += spent

    def end(self, call: Call) -> None:
        call.sent = False
        self.go_on()

    @rule(chain=st.integers(0, 2), prompt=st.integers(0, 40), output=st.integers(0, 40))
    def reserve(self, chain: int, prompt: int, output: int) -> None:
        budgets = self.chains[chain]

        def make() -> Reservation:
            with ExitStack() as blocks:
                for one in budgets:
                    blocks.enter_context(one)
                return reservation_of(self.runtime, estimate(prompt, output))

        call = Call(budgets, copy_context().run(make), prompt, output)
        self.calls.append(call)
        self.hold(call)

    @rule(which=WHICH)
    def send(self, which: int) -> None:
        call = pick(which, [call for call in self.calls if call.held])
        if call is None:
            return
        late = any(self.loop.now >= one.deadline for one in call.budgets)

        async def attempt() -> None:
            call.reservation.attempt()

        call.held = False
        if late:
            with call.reservation, pytest.raises(BudgetExceeded):
                self.run(attempt())
            self.calls.remove(call)
        else:
            self.run(attempt())
            call.sent = True
            self.count(call, Spent(attempts=1))
        self.go_on()

    @rule(
        which=WHICH,
        kind=st.sampled_from(["settle", "refund", "unknown"]),
        used=st.tuples(PART, PART),
        again=st.booleans(),
    )
    def finish(self, which: int, kind: str, used: tuple[float, float], again: bool) -> None:
        call = pick(which, [call for call in self.calls if call.sent])
        if call is None:
            return
        reserve = call.reserve
        lost = Spent(unknown=1, reserved=reserve, known_cost=cost(PRICE, reserve), prices=(PRICE,))

        async def end() -> None:
            if kind == "refund":
                call.reservation.settle(Charge.NOTHING)
            elif kind == "unknown":
                call.reservation.settle(Charge.RESERVE)
                self.count(call, lost)
            else:
                usage = Usage(int(used[0] * reserve.prompt_tokens), int(used[1] * reserve.completion_tokens))
                call.reservation.settle(Charge.USED, usage)
                dollars = cost(PRICE, usage)
                known = Spent(1, usage=usage, known_cost=dollars, prices=(PRICE,))
                self.count(call, known if usage.total_tokens else Spent(calls=1) + lost)

        self.run(end())
        if again and kind != "settle":
            self.end(call)
            self.hold(call)
        else:
            self.calls.remove(call)
            self.end(call)

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        call = pick(which, self.calls)
        if call is not None:
            self.drop(call)

    def drop(self, call: Call) -> None:
        if call.waiting is not None:
            call.waiting.cancel()
        else:
            if call.sent:
                lost = Spent(unknown=1, reserved=call.reserve, known_cost=cost(PRICE, call.reserve))
                self.count(call, lost + Spent(prices=(PRICE,)))
            self.run(self.leave(call))
            self.calls.remove(call)
        self.go_on()

    async def leave(self, call: Call) -> None:
        with call.reservation:
            pass

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        self.loop.now += seconds
        self.go_on()

    @invariant()
    def within_the_limits(self) -> None:
        for one in getattr(self, "budgets", []):
            balance = one.balance
            assert balance.lacks(balance.promised - balance.promised) is None
            calls = [call for call in self.calls if one in call.budgets]
            assert balance.open == sum(call.held or call.sent for call in calls)
            assert balance.promised.tokens == sum(
                call.reserve.total_tokens for call in calls if call.held or call.sent
            )
            assert balance.promised.calls == sum(call.held for call in calls)

    @invariant()
    def ledgers_are_the_sum_of_what_happened(self) -> None:
        for one in getattr(self, "budgets", []):
            assert self.spent[id(one)] == one.ledger.total
            assert one.balance.spent == one.ledger.total.amount

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        for call in getattr(self, "calls", []):
            if call.waiting is not None:
                assert any(one.balance.open for one in call.budgets)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        for call in list(self.calls):
            if call in self.calls and call.waiting is None:
                self.drop(call)
        # With nothing under way every waiter has been answered, and some of them hold something now.
        while self.calls:
            assert any(call.held for call in self.calls)
            self.drop(next(call for call in self.calls if call.held))
        assert all(one.balance.promised[:2] == (0, 0) and one.balance.open == 0 for one in self.budgets)
        self.loop.close()


TestSpending = Spending.TestCase
TestSpending.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
