"""An agent over a stream of rows: order, memory, failures, kills, and every way to iterate."""

from __future__ import annotations

import gc
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import afnio
import afnio.cognitive as cog
from afnio.errors import BlockingReadError, BudgetExceeded, FinalModelError
from afnio.models import ChatClient, ChatRequest, ChatResponse
from afnio.runtime import Account, current_runtime
from afnio.testing import Provider, ScriptedClient


class Echo(cog.Module):
    """Asks the model with one message."""

    def __init__(self) -> None:
        super().__init__()
        self.message = afnio.Variable("{message}", role="input")
        self.chat = cog.ChatCompletion()

    def forward(self, client: ScriptedClient, message: str) -> Any:
        messages = [{"role": "user", "content": [self.message]}]
        return self.chat(client, messages, inputs={"message": message}, model="m")


class AsyncEcho(Echo):
    """The same with a forward that reads."""

    async def forward(self, client: ScriptedClient, message: str) -> Any:  # type: ignore[override]
        reply = super().forward(client, message)
        return {"text": (await reply).data.upper(), "reply": reply}


def said(request: Any) -> str:
    return str(request.messages[-1]["content"])


async def fails_on_odd(request: Any) -> str:
    if int(said(request)) % 2:
        raise FinalModelError("odd")
    return said(request)


@given(
    rows=st.lists(st.text(max_size=3), max_size=30),
    max_pending=st.integers(1, 7),
    ordered=st.booleans(),
    start=st.integers(0, 5),
)
def test_each_row_once(rows: list[str], max_pending: int, ordered: bool, start: int) -> None:
    """Every row from `start` on has one result, with its number, in order if asked for."""
    client = ScriptedClient(said)
    stream = Echo().stream(rows, client, max_pending=max_pending, ordered=ordered, start=start)
    results = [(result.index, result.row, result.value, result.error) for result in stream]
    expected = [(index, row, row, None) for index, row in enumerate(rows)][start:]
    assert (results if ordered else sorted(results)) == expected
    assert client.peak <= max_pending


def test_reads_no_further_than_it_must() -> None:
    """Rows are read as results are taken: never more than `max_pending` ahead."""
    read: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield str(number)

    stream = Echo().stream(rows(), ScriptedClient(said), max_pending=4)
    for result in stream:
        assert len(read) <= result.index + 4


def test_as_they_come() -> None:
    """Without an order a slow row holds nothing up."""
    release = anyio.Event()

    async def reply(request: Any) -> str:
        if said(request) == "0":
            await release.wait()
        return said(request)

    stream = Echo().stream(["0", "1", "2"], ScriptedClient(reply), ordered=False)
    assert sorted([next(stream).index, next(stream).index]) == [1, 2]
    current_runtime().post(release.set)
    assert [result.index for result in stream] == [0]


def test_failures_are_values() -> None:
    """A failed row has its error; the others are answered."""
    results = list(Echo().stream(map(str, range(4)), ScriptedClient(fails_on_odd)))
    assert [result.value for result in results] == ["0", None, "2", None]
    assert [type(result.error) for result in results] == [type(None), FinalModelError] * 2


def test_a_row_that_the_agent_does_not_take() -> None:
    """It is that row's failure, whatever else is wrong with it."""
    results = list(Echo().stream(["a", ("b", "c"), {"text": "d"}, {"message": "e"}], ScriptedClient(said)))
    assert [result.value for result in results] == ["a", None, None, "e"]
    assert "takes" in str(results[1].error)
    assert "text" in str(results[2].error)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("abc",), TypeError, r"rows must be an iterable of rows \(got str\)"),
        ((7,), TypeError, "got int"),
        (({"message": "a"},), TypeError, "got dict"),
    ],
)
def test_rows_that_are_none(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """What can't be a stream is refused on the line of the call."""
    with pytest.raises(error, match=text):
        Echo().stream(*arguments)


@pytest.mark.parametrize("given", [{"max_pending": 0}, {"start": -1}])
def test_numbers_out_of_range(given: dict[str, Any]) -> None:
    """The error names the argument and its value."""
    with pytest.raises(ValueError, match="must be at least"):
        Echo().stream([], **given)


@pytest.mark.parametrize("max_pending", [2, 20])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_spent_budget_ends_it(ordered: bool, max_pending: int) -> None:
    """What was paid comes first. Then the error names the row to start from, below which nothing is missing."""

    async def reply(request: Any) -> str:
        for _ in range(50):  # the refusals come first
            await anyio.lowlevel.checkpoint()
        return said(request)

    client, answered = ScriptedClient(reply), []
    rows = list(map(str, range(50)))
    with afnio.budget(max_calls=10), pytest.raises(BudgetExceeded) as caught:
        for result in Echo().stream(rows, client, max_pending=max_pending, ordered=ordered):
            answered.append(result.value)
    assert sorted(answered) == rows[:10]
    assert "pass start=10" in caught.value.__notes__[-1]
    rest = [result.value for result in Echo().stream(rows, client, start=10)]
    assert sorted(answered, key=int) + rest == rows


def test_a_row_new_at_the_front(tmp_path: Path) -> None:
    """A journal finds the replies of the others, though each has another number now."""
    client, rows = ScriptedClient(said), list(map(str, range(20)))
    for agent in (Echo(), AsyncEcho()):
        asked = []
        for source in (rows, ["new", *rows]):
            with afnio.journal(tmp_path / type(agent).__name__):
                assert len([result.value for result in agent.stream(source, client)]) == len(source)
            asked.append(len(client.requests))
            client.requests.clear()
        assert asked == [20, 1]


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("ordered", [True, False])
def test_left_early(ordered: bool, block: bool) -> None:
    """The end of a block cancels what is pending; so does a `break`, if nothing else holds the stream."""
    waiting: list[str] = []
    cancelled: list[str] = []
    started = anyio.Event()

    async def reply(request: Any) -> str:
        if said(request) == "0":
            await started.wait()
            return "first"
        waiting.append(said(request))
        if len(waiting) == 2:
            started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(said(request))

    def take_one() -> None:
        rows = map(str, range(50))
        for result in Echo().stream(rows, ScriptedClient(reply), max_pending=3, ordered=ordered):
            assert result.value == "first"
            break

    results = None
    if block:
        with Echo().stream(
            map(str, range(50)), ScriptedClient(reply), max_pending=3, ordered=ordered
        ) as results:
            assert next(results).value == "first"
    else:
        take_one()
    no_launch_is_left()
    assert sorted(cancelled) == ["1", "2"]


async def numbers(count: int) -> AsyncIterator[str]:
    for number in range(count):
        await anyio.lowlevel.checkpoint()
        yield str(number)


async def collect(agent: cog.Module, *, ordered: bool) -> list[Any]:
    client = ScriptedClient(said)
    found = [result.value async for result in agent.stream(map(str, range(20)), client, max_pending=3)]
    async with agent.stream(numbers(20), client, max_pending=3, ordered=ordered) as results:
        found += sorted([(r.index, r.value) async for r in results], key=lambda pair: pair[0])
    return found


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("run", [anyio.run, trio.run])
def test_event_loops(run: Any, ordered: bool) -> None:
    """`async for` over rows and over asynchronous rows, on asyncio and trio."""

    async def main() -> list[Any]:
        return await collect(Echo(), ordered=ordered)

    texts = list(map(str, range(20)))
    assert run(main) == texts + list(enumerate(texts))


def test_async_forward() -> None:
    """A forward that awaits runs for each row, from `for` too; Variables in its output become values."""
    results = list(AsyncEcho().stream(["a", "b"], ScriptedClient(said), max_pending=2))
    assert [result.value for result in results] == [{"text": "A", "reply": "a"}, {"text": "B", "reply": "b"}]


async def test_slow_asynchronous_rows() -> None:
    """A result is there while the source still waits for its next row."""
    more = anyio.Event()

    async def rows() -> AsyncIterator[str]:
        yield "a"
        await more.wait()
        yield "b"

    async with Echo().stream(rows(), ScriptedClient(said)) as results:
        assert (await anext(results)).value == "a"
        more.set()
        assert (await anext(results)).value == "b"
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_asynchronous_rows_that_raise() -> None:
    """The source's error comes after the results of the rows before it."""

    async def rows() -> AsyncIterator[str]:
        yield "a"
        raise OSError("the file has ended early")

    async with Echo().stream(rows(), ScriptedClient(said)) as results:
        assert (await anext(results)).value == "a"
        with pytest.raises(OSError, match="ended early"):
            await anext(results)


@pytest.mark.parametrize("max_pending", [1, 10])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("run", [None, anyio.run, trio.run])
def test_rows_that_raise(run: Any, ordered: bool, max_pending: int) -> None:
    """The error of a source comes after the results of the rows before it, and names the row to start from."""

    def rows() -> Iterator[str]:
        yield "a"
        yield "b"
        raise OSError("the file has ended early")

    taken = []
    stream = Echo().stream(rows(), ScriptedClient(said), max_pending=max_pending, ordered=ordered)

    async def main() -> None:
        async for result in stream:
            taken.append(result.value)

    def loop() -> None:
        for result in stream:
            taken.append(result.value)

    with pytest.raises(OSError, match="ended early") as caught:
        loop() if run is None else run(main)
    assert sorted(taken) == ["a", "b"]
    assert "pass start=2" in caught.value.__notes__[-1]
    no_launch_is_left()


def test_a_slow_source_holds_no_result_up() -> None:
    """A result that is ready goes before a row that the source still has to read."""
    read: list[int] = []
    answered = threading.Event()

    async def reply(request: Any) -> str:
        current_runtime().post(answered.set)
        return said(request)

    def rows() -> Iterator[str]:
        for number in range(8):
            read.append(number)
            if number == 2:
                answered.wait()
            time.sleep(0.011)  # a source counts as slow from 10 ms
            yield str(number)

    stream = Echo().stream(rows(), ScriptedClient(reply))
    assert next(stream).value == "0"
    assert len(read) < 8
    assert [result.index for result in stream] == list(range(1, 8))


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("run", [anyio.run, trio.run])
def test_a_live_source_on_an_event_loop(run: Any, ordered: bool) -> None:
    """A source that waits blocks neither the loop nor the results of the rows before."""
    more: queue.Queue[str | None] = queue.Queue()

    async def main() -> list[str | None]:
        seen: list[str | None] = []
        stream = Echo().stream(iter(more.get, None), ScriptedClient(said), ordered=ordered)
        async with stream as results:
            for text in ("a", "b", "c"):  # each row is sent once the result of the one before is there
                more.put(text)
                seen.append((await anext(results)).value)
            more.put(None)
            seen += [result.value async for result in results]
        return seen

    assert run(main) == ["a", "b", "c"]


@pytest.mark.parametrize("run", [anyio.run, trio.run])
def test_a_source_that_never_goes_on(run: Any) -> None:
    """Who takes the results can be cancelled, and the program isn't kept from ending."""
    never, reading = threading.Event(), threading.Event()

    def rows() -> Iterator[str]:
        yield "a"
        reading.set()
        never.wait()

    async def main() -> None:
        async with Echo().stream(rows(), ScriptedClient(said)) as results:
            assert (await anext(results)).value == "a"
            await anyio.to_thread.run_sync(reading.wait)
            with anyio.move_on_after(0.01) as waiting:
                await anext(results)
            assert waiting.cancelled_caught

    run(main)
    never.set()


async def test_reads_no_further_than_there_is_room() -> None:
    """In a thread, too."""
    read: list[int] = []

    def rows() -> Iterator[str]:
        for number in range(100):
            read.append(number)
            yield str(number)

    async for result in Echo().stream(rows(), ScriptedClient(said), max_pending=4):
        assert len(read) <= result.index + 6  # one more is taken, and another is on its way


@pytest.mark.parametrize("held", [True, False])
def test_what_a_stream_leaves_is_not_reported(held: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The rows that a spent budget refused, and those that a block's end cancelled."""
    rows = map(str, range(200))
    with afnio.budget(max_calls=4), Echo().stream(rows, ScriptedClient(said), max_pending=50) as results:
        if held:
            next(results)
        else:
            with pytest.raises(BudgetExceeded):
                list(results)
    no_launch_is_left()
    del results
    gc.collect()
    assert caplog.text == ""


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("run", [anyio.run, trio.run])
def test_cancelled(run: Any, asynchronous: bool, ordered: bool) -> None:
    """Cancelling who takes the results cancels the rows, also those of an asynchronous iterable."""
    started: list[str] = []
    cancelled: list[str] = []
    all_started = threading.Event()

    async def reply(request: Any) -> str:
        started.append(said(request))
        if len(started) == 3:
            all_started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(said(request))
        return ""

    async def main() -> None:
        rows = numbers(20) if asynchronous else map(str, range(20))
        stream = Echo().stream(rows, ScriptedClient(reply), max_pending=3, ordered=ordered)

        async def take() -> None:
            async with stream as results:
                await anext(results)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take)
            await anyio.to_thread.run_sync(all_started.wait)
            tasks.cancel_scope.cancel()

    run(main)
    no_launch_is_left()
    assert sorted(cancelled) == sorted(started) == ["0", "1", "2"]


def no_launch_is_left() -> None:
    gc.collect()
    while current_runtime().launches:  # until the cancelled tasks have ended
        afnio.to_thread(lambda: None).wait()


def test_snapshot() -> None:
    """How far it is, with what failed; quiet about places if there is only one."""
    stream = Echo().stream(map(str, range(10)), ScriptedClient(fails_on_odd), max_pending=4)
    assert str(stream.snapshot()) == "0 rows taken, 0 pending"
    for _ in range(5):
        next(stream)
    seen = stream.snapshot()
    # A result that is ready comes before more rows are read, so how many are pending depends on the calls' speed.
    assert (seen.taken, seen.failed) == (5, 2)
    assert seen.pending <= 4
    assert str(seen).startswith(f"5 rows taken, 2 failed, {seen.pending} pending, ")
    assert str(seen).endswith(" rows/s")
    list(stream)
    assert (stream.snapshot().taken, stream.snapshot().pending) == (10, 0)


async def test_wrong_way_to_iterate() -> None:
    """Each mistake is one sentence that says what to write."""
    with pytest.raises(RuntimeError, match="async with agent.stream"):
        await anext(Echo().stream(numbers(1), ScriptedClient(said)))
    with pytest.raises(TypeError, match="async for"):
        next(Echo().stream(numbers(1), ScriptedClient(said)))
    never = anyio.Event()

    async def reply(request: Any) -> str:
        await never.wait()
        return ""

    with pytest.raises(BlockingReadError), Echo().stream(["a"], ScriptedClient(reply)) as blocking:
        next(blocking)


PROGRAM = """
import os
import afnio
from cognitive.test_stream import Echo
from afnio.testing import Provider, ScriptedClient
from afnio.models.openai import AsyncOpenAI

client = AsyncOpenAI(base_url={url!r}, api_key="any")
with afnio.journal({journal!r}):
    for result in Echo().stream(map(str, range(60)), client, max_pending=8):
        print(result.index, result.value, flush=True)
        if result.index == {last}:
            os.kill(os.getpid(), 9)
"""


def test_killed_and_started_again(tmp_path: Path) -> None:
    """Rows that were answered are paid for once, by their numbers, and the rest follows."""
    with Provider.process() as provider:
        for last in (20, 45, -1):
            code = PROGRAM.format(
                url=provider.base_url,
                journal=str(tmp_path / "calls.journal"),
                last=last,
            )
            run = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
            )
            lines = run.stdout.splitlines()
            assert len(lines) == (last + 1 or 60), run.stderr
            assert [int(line.split()[0]) for line in lines] == list(range(len(lines)))
        assert 60 <= provider.stats()["requests"] <= 60 + 2 * 8


def test_rows_leave_nothing_to_the_collector() -> None:
    """A circle in each row would live until a full collection, and a million of them would fill the memory."""

    class Yes(ChatClient):
        async def send(self, request: ChatRequest) -> ChatResponse:
            return ChatResponse(content="yes")

    def rows(count: int) -> list[str | None]:
        stream = Echo().stream(map(str, range(count)), Yes(Account("yes://", "")))
        return [result.value for result in stream]

    rows(10)  # what is made once
    gc.collect()
    gc.disable()
    try:
        assert len(rows(200)) == 200
        assert gc.collect() < 200
    finally:
        gc.enable()


MEMORY = """
from afnio.models import ChatClient, ChatResponse
from afnio.runtime import Account
from cognitive.test_stream import Echo
from kit.memory import peak

class Yes(ChatClient):
    async def send(self, request):
        return ChatResponse(content="yes")

sizes = []
for result in Echo().stream((f"row {{n}}" for n in range({rows})), Yes(Account("yes://", ""))):
    assert result.value == "yes"
    if result.index + 1 in ({early}, {rows}):
        sizes.append(peak())
print(sizes[1] / sizes[0])
"""


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(20_000, id="20,000"),
        pytest.param(
            1_000_000, id="a million", marks=[pytest.mark.nightly, pytest.mark.timeout(1300)]
        ),  # five minutes
    ],
)
def test_flat_memory(rows: int) -> None:
    """What was taken is forgotten."""
    code = MEMORY.format(rows=rows, early=min(rows // 4, 10_000))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= 1.10
