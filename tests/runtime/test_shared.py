"""Equal lanes of one launch at temperature 0 share a reply: it is sent, paid for and counted once."""

from __future__ import annotations

import gc
import sqlite3
import weakref
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest
from runtime.budgets import FakeRuntime

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, BudgetExceeded, FinalModelError
from afnio.models import Usage
from afnio.runtime import Account
from afnio.runtime._call import Call, Codec, perform
from afnio.runtime._journal import Journal
from afnio.runtime.events import CallEnded, CallReplayed
from afnio.testing import ScriptedClient

DEAD = FinalModelError("gone")
WORDS = ["same", "same", "other", "same"]
MESSAGES = [{"role": "user", "content": [afnio.Variable("{word}")]}]


def echo(request: Any) -> str:
    return request.messages[0]["content"].upper()


def ask(client: ScriptedClient, words: list[str] = WORDS, **args: Any) -> afnio.Variable:
    return cog.functional.chat_completion(client, MESSAGES, {"word": words}, model="m", **args)


def test_equal_lanes_are_one_call() -> None:
    """At temperature 0 only; each lane has its reply, and what counts calls counts what was sent."""
    client = ScriptedClient(echo, latency=0.01)
    with afnio.budget(max_calls=2) as spending, kit.events() as events:
        assert ask(client, temperature=0).data == ["SAME", "SAME", "OTHER", "SAME"]
    assert len(client.requests) == 2
    assert client.get_usage()["calls"] == 2
    assert spending.ledger.total.calls == 2
    assert len([event for event in events if isinstance(event, CallEnded)]) == 2

    drawn = ScriptedClient(echo, latency=0.01)
    assert ask(drawn, temperature=0.7).data == ["SAME", "SAME", "OTHER", "SAME"]
    assert len(drawn.requests) == 4


def test_launches_share_nothing() -> None:
    """Two launches, and two calls of a client, may be in different contexts: each pays for itself."""
    client = ScriptedClient(echo, latency=0.01)
    first, second = ask(client, ["same"] * 2, temperature=0), ask(client, ["same"] * 2, temperature=0)
    assert first.data == second.data == ["SAME", "SAME"]
    assert len(client.requests) == 2


def test_an_error_is_that_of_all_equal_lanes() -> None:
    """The request is refused once, and fails the three lanes."""
    client = ScriptedClient(DEAD, latency=0.01)
    reply = ask(client, ["same"] * 3, temperature=0)
    with pytest.raises(BatchError, match="3 of 3 samples") as caught:
        _ = reply.data
    assert {str(error) for error in caught.value.exceptions} == {"gone"}
    assert len(client.requests) == 1


def test_a_budget_without_room_ends_all_equal_lanes() -> None:
    """They have the same budgets, so none of them sends it after all."""
    client = ScriptedClient(echo)
    with pytest.raises(BatchError) as caught, afnio.budget(max_calls=0):
        _ = ask(client, ["same"] * 3, temperature=0).data
    assert {type(error) for error in caught.value.exceptions} == {BudgetExceeded}
    assert len(client.requests) == 0


def test_each_lane_has_a_row(tmp_path: Path) -> None:
    """One of them is paid for. When the program is resumed, each address is answered; also after rows have moved."""
    for client, words, calls in [
        (ScriptedClient(echo, latency=0.01), ["same"] * 3, 1),
        (ScriptedClient(DEAD), ["same"] * 3, 0),
        (ScriptedClient(echo), ["new", *["same"] * 3], 1),
    ]:
        with afnio.journal(tmp_path / "j"):
            assert ask(client, words, temperature=0).data == [word.upper() for word in words]
        assert len(client.requests) == calls
    stat = Journal.stat(tmp_path / "j")
    assert stat.total.calls == 2


def test_lanes_with_a_record_answer_those_without(tmp_path: Path) -> None:
    """A lane whose row was lost in a crash gets the reply that is on record for the others."""
    with afnio.journal(tmp_path / "j"):
        assert ask(ScriptedClient(echo), ["same"], temperature=0).data == ["SAME"]
    resumed = ScriptedClient(DEAD)
    with afnio.journal(tmp_path / "j"), kit.events() as events:
        assert ask(resumed, ["same", "same"], temperature=0).data == ["SAME", "SAME"]
    assert len(resumed.requests) == 0
    assert [type(event) for event in events if isinstance(event, CallEnded | CallReplayed)] == [CallReplayed]


def test_draws_of_a_cache_stay_independent(tmp_path: Path) -> None:
    """A `reuse` journal gives the n-th use of a request the n-th reply; at a temperature each use is a draw."""
    numbers = iter(range(100))
    client = ScriptedClient(lambda request: str(next(numbers)), latency=0.01)
    with afnio.journal(tmp_path / "j", mode="reuse"):
        assert len(set(ask(client, ["same"] * 12, temperature=1.0).data)) == 12
    with afnio.journal(tmp_path / "j", mode="reuse"):
        assert len(set(ask(ScriptedClient(DEAD), ["same"] * 12, temperature=1.0).data)) == 12


# What no program can time from outside: who asks first is cancelled.


class Runtime(FakeRuntime):
    def count_open(self, change: int) -> None:
        return


class Reply:
    service_tier = ""
    usage = Usage(3, 2)
    limits = None


def shared(attempt: Callable[[], Awaitable[Reply]], calls: dict[Any, Any]) -> Call[Reply]:
    codec: Codec[Reply] = Codec(
        encode=lambda reply: b"",
        decode=lambda payload: Reply(),
        reusable=lambda reply: True,
        recount=lambda reply, usage: reply,
    )
    return Call(
        address="scope/1/forward",
        scope="scope",
        key="c0ffee",
        codec=codec,
        account=Account("shared://host", "s"),
        model="m",
        purpose="forward",
        attempt=attempt,
        shared=calls,
    )


@pytest.mark.looptime
async def test_the_next_lane_sends_what_a_cancelled_one_began() -> None:
    """A lane that is cancelled takes nobody along; those that wait still share one reply."""
    runtime, sent, replies = Runtime(), [], []
    calls: dict[Any, Any] = {}

    async def attempt() -> Reply:
        sent.append(anyio.current_time())
        await anyio.sleep(10)
        return Reply()

    async def lane(patience: float) -> None:
        with anyio.move_on_after(patience):
            replies.append(await perform(runtime, shared(attempt, calls)))  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        for patience in (5, 100, 100):
            tasks.start_soon(lane, patience)
    assert len(sent) == 2
    assert len(replies) == 2
    assert replies[0] is replies[1]


@pytest.mark.looptime
async def test_a_lane_that_asks_after_a_failure_tries_again() -> None:
    """Only those that waited share the error. A reply answers later lanes, too."""
    runtime, errors = Runtime(), [FinalModelError("no")]
    calls: dict[Any, Any] = {}
    sent = []

    async def attempt() -> Reply:
        sent.append(1)
        if errors:
            raise errors.pop()
        return Reply()

    with pytest.raises(FinalModelError):
        await perform(runtime, shared(attempt, calls))  # type: ignore[arg-type]
    first = await perform(runtime, shared(attempt, calls))  # type: ignore[arg-type]
    assert await perform(runtime, shared(attempt, calls)) is first  # type: ignore[arg-type]
    assert len(sent) == 2


class OddError(Exception):
    """An error that can't be copied."""

    def __init__(self, *, text: str) -> None:
        super().__init__(text)


@pytest.mark.parametrize("kind", [lambda: OddError(text="no"), lambda: FinalModelError("no")])
async def test_a_shared_error_leaves_no_cycle(kind: Callable[[], Exception]) -> None:
    """Once its lanes have caught it, it is gone without the collector's help."""
    runtime, errors = Runtime(), []
    calls: dict[Any, Any] = {}

    async def attempt() -> Reply:
        await anyio.sleep(0.001)
        raise kind()

    async def lane() -> None:
        try:
            await perform(runtime, shared(attempt, calls))  # type: ignore[arg-type]
        except Exception as error:
            errors.append(weakref.ref(error))

    gc.disable()
    try:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lane)
        assert [error() for error in errors] == [None] * 3
    finally:
        gc.enable()


def test_lanes_share_a_reply_that_an_earlier_run_recorded_for_one_of_them(tmp_path: Path) -> None:
    """A kill may come between the first lane's record and the others'. Whichever lane asks first, nothing is sent."""
    path = tmp_path / "calls.journal"
    with afnio.journal(path):
        assert ask(ScriptedClient(echo), ["same", "same", "same"], temperature=0).data == ["SAME"] * 3
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET address = replace(address, '/0/', '/2/') WHERE kind = 'reply'")
        connection.execute("DELETE FROM records WHERE kind = 'shared'")
    client = ScriptedClient(echo)
    with afnio.journal(path):
        assert ask(client, ["same", "same", "same"], temperature=0).data == ["SAME"] * 3
    assert client.requests == []
