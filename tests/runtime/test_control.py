"""A run's gate on the path of its calls, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import anyio
import pytest
from kit import errands
from kit.endpoint import Endpoint
from runtime.test_call import FakeRuntime, Reply, made

import afnio.tellurio as te
from afnio.cognitive import Agent
from afnio.errors import BatchError, BudgetExceeded, RunStoppedError
from afnio.runtime import budget
from afnio.runtime._budget import Ceiling, run_ceiling
from afnio.runtime._call import perform
from afnio.runtime._control import RunGate, run_gate
from afnio.runtime._kernel import calls_under_way
from afnio.runtime._limits import Limits
from afnio.runtime._spending import Amount, Caps, Ledger, Price
from afnio.testing import ScriptedClient

pytestmark = pytest.mark.looptime


class Wire:
    """Calls that take a second each; `sent` has their names and the times at which they went."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.runtime: Any = FakeRuntime()
        self.seconds = seconds
        self.sent: list[tuple[str, float]] = []
        self.ends: list[Any] = []
        self.start = anyio.current_time()

    @property
    def now(self) -> float:
        return round(anyio.current_time() - self.start, 3)

    async def call(self, name: str = "", gate: RunGate | None = None, **changes: Any) -> None:
        async def attempt() -> Reply:
            self.sent.append((name, self.now))
            await anyio.sleep(self.seconds)
            return Reply()

        with run_gate.override(gate):
            try:
                await perform(self.runtime, replace(made(attempt, 600.0), **changes))
            except Exception as error:
                self.ends.append(error)
            else:
                self.ends.append(self.now)

    async def at(self, seconds: float, order: Callable[[], object]) -> None:
        await anyio.sleep(seconds)
        order()


async def test_a_pause_holds_what_is_not_sent() -> None:
    """What is on the wire ends, what waits in the queue stays there, and what comes later waits, too."""
    wire, gate = Wire(), RunGate()
    async with anyio.create_task_group() as tasks:
        gate.limit(Limits(max_in_flight=1))
        for name in ("sent", "queued"):
            tasks.start_soon(wire.call, name, gate)
        tasks.start_soon(wire.at, 0.5, gate.pause)
        await anyio.sleep(0.7)
        tasks.start_soon(wire.call, "later", gate)
        tasks.start_soon(wire.at, 99.3, gate.resume)
    assert wire.sent == [("sent", 0.0), ("queued", 100.0), ("later", 101.0)]
    assert wire.ends == [1.0, 101.0, 102.0]


async def test_calls_of_others_go_ahead() -> None:
    """In the same account: those that are served, and those of another run."""
    wire, gate = Wire(), RunGate()
    gate.pause()
    async with anyio.create_task_group() as tasks:
        gate.limit(Limits(max_in_flight=1))
        gate.resume()
        for name in ("one", "two"):
            tasks.start_soon(wire.call, name, gate)
        await anyio.sleep(0.5)
        gate.pause()
        tasks.start_soon(wire.call, "served")
        tasks.start_soon(wire.call, "other run", RunGate())
        tasks.start_soon(wire.at, 10, gate.resume)
    assert wire.sent == [("one", 0.0), ("served", 0.5), ("other run", 0.5), ("two", 10.5)]


async def test_a_pause_runs_no_time_out() -> None:
    """Neither for a call on the wire nor for one that waits; what is left of the time is left afterwards."""
    wire, gate = Wire(40.0), RunGate()
    async with anyio.create_task_group() as tasks:
        with budget(max_seconds=100):
            gate.limit(Limits(max_in_flight=1))
            for name in ("wire", "queue", "too late"):
                tasks.start_soon(wire.call, name, gate)
            tasks.start_soon(wire.at, 30, gate.pause)
            tasks.start_soon(wire.at, 1030, gate.resume)
    assert wire.sent == [("wire", 0.0), ("queue", 1030.0), ("too late", 1070.0)]
    *ended, error = wire.ends
    assert ended == [40.0, 1070.0]
    assert isinstance(error, BudgetExceeded)
    assert error.limit == "max_seconds"
    # A budget's block is entered by the system's clock, which goes on meanwhile.
    assert 1080 <= wire.now <= 1100


async def test_limits_hold_for_the_run_over_all_accounts() -> None:
    """And are lifted again."""
    wire, gate = Wire(0.1), RunGate()
    async with anyio.create_task_group() as tasks:
        gate.limit(Limits(requests_per_minute=60))
        for number in range(120):
            tasks.start_soon(partial_call(wire, gate, number))
        await anyio.sleep(60)
        assert 50 <= len(wire.sent) <= 60
        gate.limit(Limits())
    assert len(wire.sent) == 120
    assert max(time for _, time in wire.sent) == 60.0


def partial_call(wire: Wire, gate: RunGate, number: int) -> Callable[[], Any]:
    account = made(None, 1.0).account._replace(key_digest=str(number % 3))
    return lambda: wire.call(str(number), gate, account=account)


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_stop_refuses_what_is_not_sent(at_once: bool) -> None:
    """What is on the wire ends, or is cut off. A pause doesn't keep it."""
    wire, gate = Wire(), RunGate()
    async with anyio.create_task_group() as tasks:
        gate.limit(Limits(max_in_flight=1))
        for name in ("sent", "queued"):
            tasks.start_soon(wire.call, name, gate)
        await anyio.sleep(0.5)
        gate.pause()
        tasks.start_soon(wire.call, "paused", gate)
        await anyio.sleep(0.1)
        gate.stop("the run was stopped", at_once=at_once)
        await wire.call("late", gate)
    assert [name for name, _ in wire.sent] == ["sent"]
    stopped = [end for end in wire.ends if isinstance(end, RunStoppedError)]
    assert [str(error) for error in stopped] == ["the run was stopped"] * (4 if at_once else 3)
    assert wire.now == (0.6 if at_once else 1.0)


async def test_a_gentle_stop_waits_for_the_step() -> None:
    """If the run trains; a job that ends by itself is asked to instead."""
    wire, gate, asked = Wire(), RunGate(), list[str]()
    gate.steps = True
    gate.stop_gently("stopped")
    await wire.call("in the step", gate)
    gate.step_ended()
    await wire.call("after it", gate)
    assert [name for name, _ in wire.sent] == ["in the step"]
    job = RunGate()
    with job.gently(asked.append):
        job.pause()
        job.stop_gently("stopped")
        await wire.call("goes on", job)
    assert asked == ["stopped"]


async def test_a_ceiling_counts_what_is_under_way() -> None:
    """Calls that were sent before there was a ceiling count in it; what is kept for later doesn't fit; none is free."""
    wire, gate, ceiling = Wire(), RunGate(), Ceiling()
    price = Price(Decimal(1), Decimal(1), Decimal(1))
    with run_ceiling.override(ceiling), ceiling.keeping(Amount(calls=1)):
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lambda: wire.call("first", gate, price=price))
            await anyio.sleep(0.5)
            ceiling.limit(Caps(calls=5), Ledger(), gate.calls)
            await wire.call("fourth", gate)
            await wire.call("fifth", gate)
        assert [name for name, _ in wire.sent] == ["first"] * 3 + ["fourth"]
    with run_ceiling.override(ceiling):
        await wire.call("kept", gate)
        ceiling.limit(Caps(), Ledger(), gate.calls)
        await wire.call("lifted", gate)
    assert [name for name, _ in wire.sent][4:] == ["kept", "lifted"]
    refused = [end for end in wire.ends if isinstance(end, BudgetExceeded)]
    assert [error.limit for error in refused] == ["max_calls"]


async def test_an_error_under_a_stop_is_the_stop() -> None:
    """A cancelled group of calls ends as the run's stop, not as a time that ran out."""
    wire, gate = Wire(), RunGate()
    async with anyio.create_task_group() as tasks:
        with budget(max_seconds=100):
            tasks.start_soon(wire.call, "cut", gate)
            await anyio.sleep(0.5)
            gate.stop("stopped", at_once=True)
    assert [type(end) for end in wire.ends] == [RunStoppedError]


def test_calls_under_a_time_limit_go_on_after_a_pause(tmp_path: Path) -> None:
    """Those in the queue of their account, when an order comes to the real runtime."""

    async def paused(request: Any) -> str:
        while len(client.requests) == 1 and calls_under_way() < 3:
            await anyio.sleep(0.001)
        if len(client.requests) == 1:
            te.get_active_run().pause()
        return "hi"

    client = ScriptedClient(paused)

    async def main() -> None:
        async with te.init("me", "p", dir=tmp_path) as run:
            run.limit(max_in_flight=1)
            ask = partial(client.achat, messages=[{"role": "user", "content": "Hi"}], model="m")
            with budget(max_seconds=1000):
                calls = [asyncio.create_task(ask()) for _ in range(3)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            run.resume()
            await asyncio.wait_for(asyncio.gather(*calls), 60)

    asyncio.run(main())
    assert len(client.requests) == 3


@pytest.mark.parametrize("stopped", [False, True])
def test_orders_reach_calls_of_workers(stopped: bool, tmp_path: Path) -> None:
    """A paused run sends none of them; then it goes on, or is stopped and sends none at all."""
    workers = partial(ProcessPoolExecutor, 2, mp_context=get_context("spawn"))

    async def main() -> None:
        async with Endpoint() as endpoint:
            async with te.init("me", "p", dir=tmp_path) as run:
                run.pause()
                agent = Agent(errands.agent, prompts={"system": "Be brief:"}, executor=workers)
                found = agent(["a", "b"], url=f"{endpoint.url}/v1")
                while calls_under_way() < 2:
                    await asyncio.sleep(0.01)
                assert endpoint.asked == []
                if stopped:
                    run.stop(now=True)
                run.resume()
                try:
                    assert (await found).data == ["BE BRIEF: A", "BE BRIEF: B"]
                finally:
                    assert len(endpoint.asked) == (0 if stopped else 2)

    with (
        pytest.raises(BatchError, match="was stopped by its program") if stopped else nullcontext() as caught
    ):
        asyncio.run(main())
    if caught is not None:
        assert caught.value.split(RunStoppedError)[1] is None
