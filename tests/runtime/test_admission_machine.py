"""Admission as a state machine: whatever comes in whatever order, nothing is leaked and every sum is exact."""

from __future__ import annotations

import asyncio
from typing import Any

import looptime
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from runtime.demand import Attempt, Demand

from afnio.errors import FinalModelError, RateLimitedError, TransientModelError
from afnio.runtime import Limits
from afnio.runtime._admission import Admitter
from afnio.runtime._settings import Priority
from afnio.runtime.events import Usage

LIMITS = Limits(max_in_flight=3, requests_per_minute=120, tokens_per_minute=6_000)


class Lane:
    """One attempt: queued, then on the wire until its `end` is set."""

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.sent = 0
        self.end: asyncio.Future[Usage] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    async def run(self, admit: Admitter) -> None:
        async with Attempt(admit, self.demand) as attempt:
            self.sent += 1
            attempt.reply(await self.end)


class Admission(RuleBasedStateMachine):
    """Compares the admitter with a list of what should be queued, on the wire and spent."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = looptime.new_event_loop()
        self.loop.run_until_complete(self._start())
        self.waiting: list[Lane] = []
        self.done: list[Lane] = []
        self.requests = 0
        self.tokens = 0.0

    async def _start(self) -> None:
        self.admit = Admitter()
        self.admit.apply(LIMITS)

    def _settle(self, seconds: float = 0.0) -> None:
        async def turns() -> None:
            await asyncio.sleep(seconds)
            for _ in range(10):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    @property
    def on_wire(self) -> list[Lane]:
        return [lane for lane in self.waiting if lane.sent]

    @rule(
        rank=st.sampled_from(Priority),
        model=st.sampled_from("ab"),
        prompt=st.integers(1, 300),
        output=st.integers(1, 300),
    )
    def submit(self, rank: Priority, model: str, prompt: int, output: int) -> None:
        async def make() -> Lane:
            lane = Lane(Demand(rank, model=model, prompt_tokens=prompt, max_output=output))
            lane.task = asyncio.create_task(lane.run(self.admit))
            return lane

        self.waiting.append(self.loop.run_until_complete(make()))
        self._settle()

    @precondition(lambda self: self.on_wire)
    @rule(data=st.data(), prompt=st.integers(1, 400))
    def succeed(self, data: Any, prompt: int) -> None:
        lane = self._pick(data)
        lane.end.set_result(Usage(prompt, 1))
        self._end(lane, prompt + (lane.demand.max_output or 0))

    @precondition(lambda self: self.on_wire)
    @rule(data=st.data(), wait=st.none() | st.floats(0.1, 5))
    def refuse(self, data: Any, wait: float | None) -> None:
        lane = self._pick(data)
        lane.end.set_exception(RateLimitedError("slow", status=429, retry_after=wait))
        self._end(lane, None)

    @precondition(lambda self: self.on_wire)
    @rule(data=st.data(), kind=st.sampled_from(["answered", "final", "silent", "broken"]))
    def fail(self, data: Any, kind: str) -> None:
        lane = self._pick(data)
        lane.end.set_exception(
            {
                "answered": TransientModelError("busy", status=503),
                "final": FinalModelError("no", status=400),
                "silent": TransientModelError("reset"),
                "broken": RuntimeError("a bug in a client"),
            }[kind]
        )
        kept = lane.demand.prompt_tokens + (lane.demand.max_output or 0)
        self._end(lane, kept if kind != "final" else 0)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        lane = data.draw(st.sampled_from(self.waiting))
        assert lane.task is not None
        lane.task.cancel()
        # What was on the wire may have been counted; what was in the queue was not.
        kept = lane.demand.prompt_tokens + (lane.demand.max_output or 0)
        self._end(lane, kept if lane.sent else None)

    @rule(seconds=st.floats(0.01, 20))
    def advance(self, seconds: float) -> None:
        self._settle(seconds)

    def _pick(self, data: Any) -> Lane:
        lane: Lane = data.draw(st.sampled_from(self.on_wire))
        return lane

    def _end(self, lane: Lane, tokens: float | None) -> None:
        """Count what `lane` used; None where it was never counted."""
        self.waiting.remove(lane)
        self.done.append(lane)
        if tokens is not None:
            self.requests += 1
            self.tokens += tokens
        self._settle()

    @invariant()
    def exact(self) -> None:
        on_wire, given = self.on_wire, self.admit._given
        assert len(on_wire) == self.admit.in_flight <= LIMITS.max_in_flight
        assert len(self.waiting) - len(on_wire) == len(self.admit._queue)
        assert all(lane.sent <= 1 for lane in self.waiting + self.done)
        reserved = sum(lane.demand.prompt_tokens + (lane.demand.max_output or 0) for lane in on_wire)
        assert self.requests + len(on_wire) == given.requests_sent
        assert abs(self.tokens + reserved - given.tokens_sent) < 1e-6

    def teardown(self) -> None:
        for lane in self.waiting:
            assert lane.task is not None
            lane.task.cancel()
        lanes = [lane.task for lane in self.waiting + self.done if lane.task is not None]

        async def end() -> None:
            await asyncio.gather(*lanes, return_exceptions=True)
            assert (self.admit.in_flight, len(self.admit._queue)) == (0, 0)
            lane = Lane(Demand(prompt_tokens=1))
            lane.end.set_result(Usage(1, 1))
            await asyncio.wait_for(lane.run(self.admit), 600)

        self.loop.run_until_complete(end())
        self.loop.close()


Admission.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAdmission = Admission.TestCase
