"""Single flight: equal calls are sent once, and nobody gets what is another's but the reply."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from kit.together import Together
from kit.virtual import virtual_runtime

import afnio
from afnio.errors import BudgetExceeded, FinalModelError, TransientModelError
from afnio.models import ChatClient, ChatResponse, Usage
from afnio.models._prices import price_of
from afnio.runtime import Account, LimitReading, RateLimits, current_runtime
from afnio.runtime._admission import admitter
from afnio.runtime._callables import _lookups, look_up
from afnio.runtime._flight import Flights
from afnio.runtime._journal import Journal
from afnio.runtime.events import CallEnded, CallRetried, LimitsLearnt, subscribe, subscribed
from afnio.testing import ScriptedClient

T = TypeVar("T")

REPLY = ChatResponse(content="yes", finish_reason="stop", usage=Usage(10, 10))
MESSAGES = [{"role": "user", "content": "same"}]


@pytest.fixture(scope="module", autouse=True)
def prices() -> None:
    """Have price files read before, which takes longer than a thread is waited for on the virtual clock."""
    price_of("m", "scripted://model")


def played(program: Callable[[], Awaitable[T]]) -> T:
    """Run `program` on the runtime's own loop, whose clock is virtual, and see that no flight is left."""
    results: list[T] = []

    async def body(value: str) -> str:
        # Prices are looked up in the loop's own threads: time stands still meanwhile.
        await look_up(int)  # makes the limiter
        limiters = (_lookups.get(), anyio.to_thread.current_default_thread_limiter())
        busy = clock.busy
        clock.busy = lambda: busy() or any(limiter.borrowed_tokens for limiter in limiters)
        results.append(await program())
        return value

    with virtual_runtime() as clock:
        assert "x" == afnio.Variable("x").map(body).data
        assert {} == current_runtime().resource(Flights, Flights).by_key
    return results[0]


async def ask(client: ScriptedClient, **args: Any) -> str:
    return str(await client.achat(messages=MESSAGES, model="m", temperature=0, **args))


async def outcomes(*asking: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Start them in this order, each when the one before waits; return results and errors."""
    found: dict[int, Any] = {}

    async def one(number: int, asked: Callable[[], Awaitable[Any]]) -> None:
        try:
            found[number] = await asked()
        except Exception as error:
            found[number] = error

    async with anyio.create_task_group() as tasks:
        for number, asked in enumerate(asking):
            tasks.start_soon(one, number, asked)
            await anyio.sleep(0.001)
    return [found[number] for number in range(len(asking))]


async def leave_after(seconds: float, asking: Awaitable[T]) -> T | None:
    with anyio.move_on_after(seconds):
        return await asking
    return None


def test_each_has_its_own_budget() -> None:
    """One caller's time is over; who joined it and has no budget gets the reply."""
    script = iter([TransientModelError("busy", status=503, retry_after=1.0), REPLY])
    client = ScriptedClient(lambda request: next(script))

    async def limited() -> str:
        with afnio.budget(max_seconds=0.3):
            return await ask(client)

    error, reply = played(lambda: outcomes(limited, lambda: ask(client)))
    assert isinstance(error, BudgetExceeded)
    assert ("yes", 2) == (reply, len(client.requests))


def test_who_joins_pays_too() -> None:
    """A joiner whose own budget has no room is refused, also where the call is on the wire already."""
    client = ScriptedClient(REPLY, latency=1.0)

    async def broke() -> str:
        with afnio.budget(max_calls=0):
            return await ask(client)

    reply, error = played(lambda: outcomes(lambda: ask(client), broke))
    assert isinstance(error, BudgetExceeded)
    assert ("yes", 1) == (reply, len(client.requests))


def test_each_has_its_own_deadline() -> None:
    """Who is impatient gives the shared attempt up and goes on alone; who is patient gets its reply."""

    async def reply(request: Any) -> str:
        if len(client.requests) > 1:
            return "quick"
        await anyio.sleep(5.0)
        return "slow"

    client = ScriptedClient(reply)

    async def patient() -> str:
        client.timeout = 600.0
        return await ask(client)

    client.timeout = 0.3
    assert ["quick", "slow"] == played(lambda: outcomes(lambda: ask(client), patient))


def test_equal_deadlines_are_one() -> None:
    """When the attempt's deadline passes, it is tried again once for all, whenever they joined."""

    async def reply(request: Any) -> str:
        await anyio.sleep(1000.0 if len(client.requests) == 1 else 0.0)
        return "yes"

    async def late() -> str:
        await anyio.sleep(40.0)
        return await ask(client)

    client = ScriptedClient(reply)
    client.timeout = 60.0
    with afnio.budget(max_tokens=10_000) as spending:
        replies = played(lambda: outcomes(lambda: ask(client), late, lambda: ask(client)))
    assert (["yes"] * 3, 2) == (replies, len(client.requests))
    assert (1, 2, 1) == (
        spending.ledger.total.calls, spending.ledger.total.attempts, spending.ledger.total.unknown,
    )  # fmt: skip


def test_the_call_outlives_who_began_it(tmp_path: Path) -> None:
    """Its journal is closed by then; the attempt times out, and is tried again for who is left."""

    async def reply(request: Any) -> str:
        await anyio.sleep(1000.0 if len(client.requests) == 1 else 0.0)
        return "yes"

    client = ScriptedClient(reply)

    async def main() -> Any:
        opened = anyio.Event()

        async def began() -> str | None:
            async with afnio.journal(tmp_path / "j"):
                opened.set()
                return await leave_after(1.0, ask(client))

        async def joined() -> str:
            await opened.wait()
            await anyio.sleep(0.1)
            return await ask(client)

        return await outcomes(began, joined)

    assert [None, "yes"] == played(main)
    assert (0, 1) == (Journal.stat(tmp_path / "j").total.calls, Journal.stat(tmp_path / "j").total.unknown)


def test_a_reply_is_counted_once(tmp_path: Path) -> None:
    """By the budget, the journal, the client and each subscriber of all callers, whoever of them leaves."""
    client = ScriptedClient(REPLY, latency=1.0)
    events: list[Any] = []

    async def main() -> Any:
        async with afnio.journal(tmp_path / "j"):
            with afnio.budget(max_calls=1, max_tokens=600) as spending, subscribed(events.append):
                replies = await outcomes(
                    lambda: leave_after(0.5, ask(client)), *[lambda: ask(client) for _ in range(16)]
                )
        return replies, spending.ledger.total

    replies, total = played(main)
    assert [None] + ["yes"] * 16 == replies
    assert (1, 1, 0, 20) == (total.calls, total.attempts, total.unknown, total.usage.total_tokens)
    stat = Journal.stat(tmp_path / "j")
    assert (16, 1, 0, 20) == (
        stat.records,
        stat.total.calls,
        stat.total.unknown,
        stat.total.usage.total_tokens,
    )
    assert (1, 20) == (client.get_usage()["calls"], client.get_usage()["total_tokens"])
    assert [None] == [event.error for event in events if isinstance(event, CallEnded)]
    assert 1 == len(client.requests)


def test_every_ledger_counts_it(tmp_path: Path) -> None:
    """Budgets and journals of different callers count the same reply once each; who has left, its reserve."""
    client = ScriptedClient(REPLY, latency=1.0)
    ledgers: dict[str, Any] = {}
    heard: dict[str, list[Any]] = {}
    all_open = Together(3)

    async def run(name: str, patience: float = math.inf) -> str | None:
        events = heard.setdefault(name, [])
        async with afnio.journal(tmp_path / name):
            await all_open()
            with afnio.budget(max_tokens=1000) as spending, subscribed(events.append):
                reply = await leave_after(patience, ask(client, max_completion_tokens=50))
        ledgers[name] = spending.ledger.total
        return reply

    async def main() -> Any:
        with afnio.budget() as outer:
            replies = await outcomes(lambda: run("a", 0.5), lambda: run("b"), lambda: run("c"))
        return replies, outer.ledger.total

    replies, outer = played(main)
    assert ([None, "yes", "yes"], 1) == (replies, len(client.requests))
    assert (1, 1, 0) == (outer.calls, outer.attempts, outer.unknown)
    for name in "bc":
        assert (1, 1, 0, 20) == (
            ledgers[name].calls, ledgers[name].attempts, ledgers[name].unknown, ledgers[name].amount.tokens,
        )  # fmt: skip
        assert (1, 0) == (
            Journal.stat(tmp_path / name).total.calls,
            Journal.stat(tmp_path / name).total.unknown,
        )
        assert [None] == [event.error for event in heard[name] if isinstance(event, CallEnded)]
    assert (0, 1, 1, 50) == (
        ledgers["a"].calls, ledgers["a"].attempts, ledgers["a"].unknown, ledgers["a"].reserved.completion_tokens,
    )  # fmt: skip
    assert (0, 1) == (Journal.stat(tmp_path / "a").total.calls, Journal.stat(tmp_path / "a").total.unknown)
    assert [True] == ["Cancelled" in event.error for event in heard["a"] if isinstance(event, CallEnded)]


def test_room_is_waited_for_alone() -> None:
    """Who waits for room in a full budget holds nobody up, and shares the next call as soon as there is room."""

    async def reply(request: Any) -> ChatResponse:
        await anyio.sleep(1.0 if request.messages == tuple(MESSAGES) else 10.0)
        return REPLY

    client = ScriptedClient(reply)
    with afnio.budget(max_tokens=120) as spending:
        pass

    async def governed(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        with spending:
            return str(
                await client.achat(messages=messages, model="m", temperature=0, max_completion_tokens=80)
            )

    async def free() -> float:
        began = anyio.current_time()
        messages = [{"role": "user", "content": "same"}]
        await client.achat(messages=messages, model="m", temperature=0, max_completion_tokens=80)
        return anyio.current_time() - began

    *replies, seconds = played(
        lambda: outcomes(lambda: governed("other"), *[lambda: governed("same") for _ in range(4)], free)
    )
    assert ["yes"] * 5 == replies
    assert 0.9 < seconds < 2.0
    total = spending.ledger.total
    assert (2, 2, 40) == (total.calls, total.attempts, total.usage.total_tokens)
    assert 3 == len(client.requests)


def test_each_error_says_where_its_own_call_was_launched() -> None:
    """The failure is shared, its notes are not."""
    client = ScriptedClient(FinalModelError("no"), latency=1.0)

    async def main() -> Any:
        with afnio.scope(name="one"):
            one = client._launch(MESSAGES, "m", {"temperature": 0})
            two = client._launch(MESSAGES, "m", {"temperature": 0})
            return await outcomes(lambda: _awaited(one), lambda: _awaited(two))

    first, second = played(main)
    assert first is not second
    assert (1, 1) == (len(first.__notes__), len(second.__notes__))
    assert first.__notes__ != second.__notes__
    assert 1 == len(client.requests)


async def _awaited(work: Any) -> Any:
    return await work


def test_a_retry_is_one_for_all() -> None:
    """Callers that join between two attempts share the next one; each budget counts what it shared."""
    script = iter([TransientModelError("busy", status=503, retry_after=5.0), REPLY])
    client = ScriptedClient(lambda request: next(script))

    async def counted(wait: float) -> tuple[str, int]:
        await anyio.sleep(wait)
        with afnio.budget(max_calls=2) as spending:
            return await ask(client), spending.ledger.total.attempts

    assert [("yes", 2), ("yes", 1)] == played(lambda: outcomes(lambda: counted(0), lambda: counted(2)))
    assert 2 == len(client.requests)


def test_each_subscriber_hears_a_shared_call_once() -> None:
    """Retries and learnt limits too, of whichever caller it listens to; the process's subscribers as well."""
    limits = RateLimits(requests=LimitReading(100, 99, 60.0))
    busy = TransientModelError("busy", retry_after=5.0, limits=limits)
    client = ScriptedClient([busy, replace(REPLY, limits=limits)], latency=1.0)
    heard: dict[str, list[Any]] = {"a": [], "b": [], "all": []}

    async def listening(name: str) -> str:
        with subscribed(heard[name].append):
            return await ask(client)

    async def main() -> list[Any]:
        unsubscribe = subscribe(heard["all"].append)
        try:
            return await outcomes(*[lambda name=name: listening(name) for name in "aabb"])
        finally:
            unsubscribe()

    assert ["yes"] * 4 == played(main)
    kinds = [LimitsLearnt, CallRetried, CallEnded]
    for events in heard.values():
        assert kinds == [type(event) for event in events if type(event) in kinds]
    assert heard["a"][-1].address != heard["b"][-1].address


def test_nobody_is_left_on_the_wire() -> None:
    """When all have left, the call is cancelled, and the account has its place back."""

    async def never(request: Any) -> str:
        await anyio.sleep_forever()
        return ""

    client = ScriptedClient(never)

    async def main() -> int:
        await outcomes(*[lambda s=s: leave_after(s, ask(client)) for s in (1.0, 3.0, 2.0)])
        await anyio.sleep(0.1)
        return admitter(current_runtime(), client.account).in_flight

    assert (0, 0) == (played(main), client._open)


@pytest.mark.parametrize("rank", ["serving", "speculative"])
def test_urgency_is_that_of_the_most_urgent(rank: Any) -> None:
    """A queued call goes first as soon as somebody serving joins it, and doesn't fall back for others."""
    one_at_once = afnio.Limits(max_in_flight=1)
    client = ScriptedClient(lambda request: request.messages[0]["content"], latency=1.0, limits=one_at_once)

    async def one(text: str, rank: Any) -> str:
        with afnio.priority(rank):
            messages = [{"role": "user", "content": text}]
            return str(await client.achat(messages=messages, model="m", temperature=0))

    async def main() -> Any:
        names = [("wire", "training"), ("a", "training"), ("b", "training"), ("b", rank)]
        await outcomes(*[lambda name=name, rank=rank: one(name, rank) for name, rank in names])
        return [request.messages[0]["content"] for request in client.requests]

    assert (["wire", "b", "a"] if rank == "serving" else ["wire", "a", "b"]) == played(main)


class Twin(ChatClient):
    """One of several clients of an account, with a deadline of its own and a script that they share."""

    def __init__(
        self, account: Account, script: Callable[[], Awaitable[ChatResponse]], timeout: float
    ) -> None:
        super().__init__(account, timeout=timeout)
        self.script = script

    async def send(self, request: Any) -> ChatResponse:
        return await self.script()


class Traffic:
    """Callers that come and go at random, under nested budgets, on a provider that fails at random."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.sent = self.open = self.answered = 0
        account = Account("https://twins", str(seed))
        self.clients = [Twin(account, self.reply, timeout) for timeout in (2.0, 5.0, 600.0)]
        self.outer = afnio.budget(max_tokens=self.draw.choice([150, 400, 10_000]))
        self.inner = [
            afnio.budget(max_calls=self.draw.choice([1, 3, 100])),
            afnio.budget(max_seconds=self.draw.uniform(0.1, 20.0)),
        ]
        self.outcomes: list[Any] = []
        self.refused_without_budget = False

    async def reply(self) -> ChatResponse:
        self.sent += 1
        self.open += 1
        try:
            await anyio.sleep(self.draw.choice([0.0, 1.0, 3.0, 10.0]))
        finally:
            self.open -= 1
        kind = self.draw.random()
        if kind < 0.3:
            raise TransientModelError("busy", status=self.draw.choice([500, 504]))
        if kind < 0.35:
            raise FinalModelError("no", status=400)
        self.answered += 1
        return REPLY

    async def caller(self) -> None:
        budgets = [
            *self.draw.choice([[], [self.outer]]),
            *self.draw.choice([[], [self.inner[0]], self.inner]),
        ]
        client = self.draw.choice(self.clients)
        patience = self.draw.choice([math.inf, math.inf, self.draw.uniform(0.0, 10.0)])
        await anyio.sleep(self.draw.uniform(0.0, 10.0))
        try:
            with ExitStack() as blocks:
                for budget in budgets:
                    blocks.enter_context(budget)
                asked = client.achat(messages=MESSAGES, model="m", temperature=0, max_completion_tokens=50)
                reply = await leave_after(patience, asked)
            assert reply is not None or patience < math.inf
            self.outcomes.append(reply)
        except (BudgetExceeded, TransientModelError, FinalModelError) as error:
            self.outcomes.append(error)
            self.refused_without_budget |= isinstance(error, BudgetExceeded) and not budgets

    async def run(self) -> None:
        with anyio.fail_after(20_000):
            async with anyio.create_task_group() as tasks:
                for _ in range(20):
                    tasks.start_soon(self.caller)
        await anyio.sleep(0.1)
        assert 0 == admitter(current_runtime(), self.clients[0].account).in_flight


@pytest.mark.parametrize("seed", range(60))
def test_any_traffic(seed: int) -> None:
    """Everybody gets an outcome, nothing stays reserved, no limit is passed, no ledger counts more than was sent."""
    traffic = Traffic(seed)
    played(traffic.run)
    assert (20, 0, False) == (len(traffic.outcomes), traffic.open, traffic.refused_without_budget)
    replies = sum(isinstance(outcome, ChatResponse) for outcome in traffic.outcomes)
    # Who leaves counts the attempt at its reserve, and who joins it later with the same budget counts it anew.
    most = traffic.sent + 20 - replies
    for budget in (traffic.outer, *traffic.inner):
        assert (0, (0, 0, 0)) == (budget.balance.open, tuple(budget.balance.promised))
        total = budget.ledger.total
        assert [] == list(budget.caps.exceeded(total.amount))
        assert tuple(total.amount)[:2] == tuple(budget.balance.spent)[:2]
        assert total.attempts <= most
        assert total.calls <= traffic.answered
        assert total.usage.total_tokens == 20 * total.calls
    for client in traffic.clients:
        assert client.get_usage()["calls"] <= traffic.answered
    assert (traffic.answered > 0) >= (replies > 0)
