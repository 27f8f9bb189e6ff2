"""Users' callables: the loop they run on, how many threads they get, and the warning if one blocks the loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, BlockingReadError
from afnio.testing import ScriptedClient

ENTRANCES = {"asyncio": asyncio.run, "trio": lambda coroutine: anyio.run(lambda: coroutine, backend="trio")}


class OwnLoop:
    """A client that belongs to the loop on which it is used first, as most SDKs' do."""

    def __init__(self) -> None:
        self.thread = 0

    async def ask(self, text: str) -> str:
        self.thread = self.thread or threading.get_ident()
        await anyio.lowlevel.checkpoint()
        if threading.get_ident() != self.thread:
            raise RuntimeError("<asyncio.locks.Event object at 0x1> is bound to a different event loop")
        return text.upper()


# loop="caller" -----------------------------------------------------------------------------------


class Asked(afnio.autodiff.Function):
    loop = "caller"

    @staticmethod
    async def forward(ctx: Any, client: OwnLoop, text: str) -> str:
        return await client.ask(text)

    @staticmethod
    async def backward(ctx: Any, feedback: str) -> Any:
        return None, await ctx.arguments.args[0].ask(feedback)


def by_function(client: OwnLoop, texts: Any) -> Any:
    return Asked.apply(client, texts)


def by_agent(client: OwnLoop, texts: Any) -> Any:
    return cog.Agent(client.ask, prompts={}, loop="caller")(texts)


def by_map(client: OwnLoop, texts: Any) -> Any:
    return texts.map(client.ask, loop="caller")


def by_evaluator(client: OwnLoop, texts: Any) -> Any:
    async def score(text: str, target: str) -> bool:
        return await client.ask(text) == target

    evaluation = cog.DeterministicEvaluator()(texts, "A", score, "match", loop="caller")
    return evaluation.score


@pytest.mark.parametrize("entrance", list(ENTRANCES))
@pytest.mark.parametrize(
    ("use", "expected"),
    [(by_function, ["A", "B"]), (by_agent, ["A", "B"]), (by_map, ["A", "B"]), (by_evaluator, 1)],
)
def test_a_client_of_the_callers_loop_works(entrance: str, use: Any, expected: Any) -> None:
    async def main() -> Any:
        client = OwnLoop()
        await client.ask("mine")
        found = (await use(client, afnio.Variable(["a", "b"]))).data
        assert await client.ask("after") == "AFTER"
        return found

    assert ENTRANCES[entrance](main()) == expected


def test_backward_runs_there_too() -> None:
    async def main() -> Any:
        texts = afnio.Variable(["a", "b"], requires_grad=True)
        client = OwnLoop()
        await Asked.apply(client, texts).backward(afnio.Variable(["f", "g"]))
        return [gradient.data for gradient in texts.grad]

    assert asyncio.run(main()) == [["F", "G"]]


@pytest.mark.parametrize("entrance", list(ENTRANCES))
def test_errors_and_engine_calls_pass_between_the_loops(entrance: str) -> None:
    """A call of the engine's in a callable on the caller's loop belongs to the lane: budgets and traces hold."""
    client = ScriptedClient("said")

    async def answer(text: str, system: str) -> str:
        reply = await client.achat(messages=[{"role": "system", "content": system}], model="m")
        if text == "b":
            raise LookupError("no b")
        return f"{text}: {reply}"

    agent = cog.Agent(answer, prompts={"system": "s"}, loop="caller")

    async def main() -> Any:
        with afnio.tolerate(quorum=0.5):
            output = await agent(["a", "b"])
            assert LookupError is type(output.errors[1])
            return output.data

    assert ENTRANCES[entrance](main()) == ["a: said", None]


@pytest.mark.parametrize("entrance", list(ENTRANCES))
def test_a_cancelled_caller_ends_the_callable_first(entrance: str) -> None:
    ended = []

    async def main() -> None:
        started = anyio.Event()

        async def wait(text: str) -> str:
            started.set()
            try:
                await anyio.sleep(60)
            finally:
                ended.append(text)
            return text

        agent = cog.Agent(wait, prompts={}, loop="caller")

        async def ask() -> None:
            await agent("a")

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await started.wait()
            group.cancel_scope.cancel()

    ENTRANCES[entrance](main())
    assert ended == ["a"]


def test_system_exit_on_the_callers_loop_ends_the_lane_only() -> None:
    async def leave(text: str) -> str:
        raise SystemExit(3)

    async def main() -> str:
        with pytest.raises(BatchError, match="1 of 1"):
            await afnio.Variable(["a"]).map(leave, loop="caller")
        return "still here"

    assert asyncio.run(main()) == "still here"


@pytest.mark.parametrize("entrance", list(ENTRANCES))
def test_a_loop_that_ends_first_ends_its_callables(entrance: str) -> None:
    async def wait(text: str) -> str:
        await anyio.sleep(60)
        return text

    async def main() -> afnio.Variable:
        started = afnio.Variable("a").map(wait, loop="caller")
        await anyio.lowlevel.checkpoint()
        return started

    left = ENTRANCES[entrance](main())
    with pytest.raises(RuntimeError, match="the loop that launched this callable has ended before it"):
        left.data


def test_a_callable_that_arrives_as_trios_run_ends_leaves_the_run_alone() -> None:
    """Trio then calls what is queued, but takes no task. It orders its tasks by chance, so this tries often."""

    async def wait(text: str) -> str:
        await anyio.sleep(60)
        return text

    async def main() -> afnio.Variable:
        started = afnio.Variable("a").map(wait, loop="caller")
        later = threading.Thread(target=lambda: (afnio.Variable("a") + afnio.Variable("b")).data)
        later.start()
        later.join()  # then the launch before it has reached trio's queue
        return started

    for _ in range(20):
        with pytest.raises(RuntimeError, match="the loop that launched this callable has ended before it"):
            trio.run(main).data


def test_without_a_loop_the_launch_says_so() -> None:
    async def same(text: str) -> str:
        return text

    with pytest.raises(RuntimeError, match=r"loop='caller' needs a running event loop where Map is launched"):
        afnio.Variable("a").map(same, loop="caller")
    with pytest.raises(ValueError, match="loop must be 'runtime' or 'caller'"):
        afnio.Variable("a").map(same, loop="other")  # type: ignore[arg-type]


def test_a_read_that_blocks_the_loop_that_it_waits_for_is_refused() -> None:
    async def same(text: str) -> str:
        return text

    async def main() -> str:
        afnio.set_sync_mode("allow")
        try:
            pending = afnio.Variable("a").map(same, loop="caller")
            with pytest.raises(BlockingReadError, match="wait for itself"):
                pending.data
            assert (await pending).data == "a"
            return (afnio.Variable("a") + afnio.Variable("b")).data  # nothing runs here any more
        finally:
            afnio.set_sync_mode("auto")

    assert asyncio.run(main()) == "ab"


def test_a_client_of_another_loop_is_explained() -> None:
    """Also if the SDK has wrapped the error."""

    async def main() -> None:
        client = OwnLoop()
        await client.ask("mine")

        async def wrapped(text: str) -> str:
            try:
                return await client.ask(text)
            except RuntimeError as error:
                raise ConnectionError("Connection error.") from error

        for fn in (client.ask, wrapped):
            with pytest.raises(
                RuntimeError, match=r"must not use a client of another loop .*pass loop='caller'"
            ):
                await cog.Agent(fn, prompts={})("a")

    asyncio.run(main())


# Threads -----------------------------------------------------------------------------------------


def together(count: int) -> tuple[Callable[[str], str], list[int]]:
    """Return a blocking callable that ends when `count` of it run, and the list of the most that ran."""
    barrier = threading.Barrier(count)
    most = [0]
    running = [0]
    lock = threading.Lock()

    def meet(text: str) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        barrier.wait(30)
        with lock:
            running[0] -= 1
        return text

    return meet, most


def test_as_many_blocking_callables_run_as_were_asked_for() -> None:
    meet, most = together(512)
    with afnio.set_threads(512):
        assert cog.Agent(meet, prompts={})(["a"] * 512).data == ["a"] * 512
    assert most == [512]


def test_by_default_threads_follow_the_calls_in_flight() -> None:
    ScriptedClient("x", limits=afnio.Limits(max_in_flight=48))
    meet, _ = together(48)
    assert afnio.Variable(["a"] * 48).map(meet).data == ["a"] * 48


def test_a_smaller_setting_holds_in_its_block() -> None:
    meet, most = together(2)  # they go in pairs
    with afnio.set_threads(2):
        assert afnio.Variable(["a"] * 40).map(meet).data == ["a"] * 40
    assert most == [2]


@pytest.mark.parametrize("most", [0, -1, True, "many"])
def test_threads_must_be_a_number(most: Any) -> None:
    with pytest.raises(ValueError, match="the number of threads must be at least 1"):
        afnio.set_threads(most)


def test_prices_are_looked_up_beside_an_apps_blocking_work() -> None:
    """A budget asks for the price of a model first. An app that fills anyio's own threads must not hold it up."""
    client = ScriptedClient("said")
    release = threading.Event()

    async def crowded(text: str) -> str:
        async with anyio.create_task_group() as group:
            for _ in range(40):
                group.start_soon(anyio.to_thread.run_sync, release.wait)
            try:
                with anyio.fail_after(30):
                    asked = [{"role": "user", "content": text}]
                    return str(await client.achat(messages=asked, model="not-asked-for-before"))
            finally:
                release.set()

    with afnio.budget(max_calls=1):
        assert afnio.Variable("a").map(crowded).data == "said"


# A callable that blocks the loop -----------------------------------------------------------------


@pytest.mark.parametrize("in_a_task", [False, True], ids=["itself", "a task of it"])
def test_a_callable_that_blocks_the_loop_is_named_while_it_does(
    monkeypatch: pytest.MonkeyPatch, in_a_task: bool
) -> None:
    """Once, with its own line and the line that blocks."""
    warned = threading.Event()
    said: list[str] = []
    log = logging.getLogger("afnio")
    monkeypatch.setattr(log, "warning", lambda text, *args: (said.append(text % args), warned.set()))

    async def busy() -> None:
        helper()

    def helper() -> None:
        assert warned.wait(60)

    async def starts(text: str) -> str:
        if in_a_task:
            async with anyio.create_task_group() as group:
                group.start_soon(busy)
        else:
            helper()
        return text

    assert afnio.Variable(["a", "b"]).map(functools.partial(starts)).data == ["a", "b"]
    (text,) = said
    named = busy if in_a_task else starts
    assert text.startswith(
        f"test_a_callable_that_blocks_the_loop_is_named_while_it_does.<locals>.{named.__name__} ("
    )
    assert f"{__file__}:{named.__code__.co_firstlineno}) has blocked the runtime's loop for " in text
    assert f"now at {__file__}:{helper.__code__.co_firstlineno + 1}, and every call" in text


def test_many_quick_callables_in_one_turn_block_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Each of them holds the loop for 50 ms; together they hold it for a second."""

    async def quick(text: str) -> str:
        time.sleep(0.05)  # noqa: ASYNC251 - the block is what is tested
        return text

    texts = [str(number) for number in range(20)]
    assert afnio.Variable(texts).map(quick).data == texts
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.nightly
def test_a_callable_that_waits_for_a_processor_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """On a busy machine a step of 0.1 s of computing takes a second or more."""
    cores = os.cpu_count() or 1
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(15 * cores)]

    async def computes(text: str) -> str:
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        return text

    try:
        assert afnio.Variable(["a", "b", "c"]).map(computes).data == ["a", "b", "c"]
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert [record.getMessage() for record in caplog.records] == []
