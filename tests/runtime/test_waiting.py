"""Where a blocking wait is allowed, and what a cancelled waiter cancels."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import anyio
import pytest

import afnio
from afnio.errors import BlockingReadError
from afnio.testing import ScriptedClient

MESSAGES = [{"role": "user", "content": [afnio.Variable("{x}", role="template")]}]


def ask(client: ScriptedClient, x: str = "hi") -> afnio.Variable:
    return afnio.cognitive.functional.chat_completion(client, MESSAGES, {"x": x}, model="m")


def gate() -> tuple[ScriptedClient, threading.Event]:
    """Return a client that never answers, and what tells that it was asked."""
    asked = threading.Event()

    async def never(request: Any) -> str:
        asked.set()
        await anyio.sleep_forever()
        return ""

    return ScriptedClient(never), asked


async def cancel_once(asked: threading.Event, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the call that it waits for is under way."""
    while not asked.is_set():
        await anyio.sleep(0.001)
    scope.cancel()


async def test_pending_read_on_a_loop_raises() -> None:
    """A read that would block the loop raises, and names `await`, `map` and `async def forward`."""
    client, _ = gate()
    reply = ask(client)
    for read in (lambda: reply.data, lambda: str(reply), lambda: reply.to(str)):
        with pytest.raises(BlockingReadError, match=r"await value.*value.map.*async def forward"):
            read()
    assert "<pending>" in repr(reply)
    with anyio.move_on_after(0):
        await reply


async def test_done_read_on_a_loop_is_fine() -> None:
    """What is there can be read anywhere."""
    reply = await ask(ScriptedClient("yes"))
    assert reply.data == "yes"


async def test_sync_modes() -> None:
    """set_sync_mode allows, warns or refuses, for the block's context alone."""
    with afnio.set_sync_mode("allow"):
        assert ask(ScriptedClient("yes")).data == "yes"
    with afnio.set_sync_mode("warn"), pytest.warns(UserWarning, match="blocks the running event loop"):
        ask(ScriptedClient("yes", latency=0.02)).data
    with pytest.raises(ValueError, match="sometimes"):
        afnio.set_sync_mode("sometimes")  # type: ignore[arg-type]


def test_node_callables_may_not_read() -> None:
    """A node's `def` callable that reads a pending value gets an error, as it could deadlock."""
    client, _ = gate()
    pending = ask(client)

    def reads(value: str) -> str:
        return value + pending.data

    with pytest.raises(BlockingReadError, match="a callable of a node"):
        afnio.Variable("x").map(reads).data
    afnio.runtime.current_runtime().post(afnio.runtime.current_runtime().cancel, pending._slots[0].launch)


def test_node_coroutines_may_await_what_they_launch() -> None:
    """An `async def` callable may launch and await; its launches stand under its lane's address."""
    client = ScriptedClient(lambda request: request.messages[0]["content"].upper())

    async def asks(value: str) -> str:
        return (await ask(client, value)).data

    assert afnio.Variable(["a", "b"]).map(asks).data == ["A", "B"]


def test_step_bodies_may_read() -> None:
    """Code in `to_thread` is no node code: it may read what is pending."""

    async def main() -> str:
        return await afnio.to_thread(lambda: ask(ScriptedClient("yes", latency=0.01)).data)

    assert afnio.run(main()) == "yes"


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_cancelled_waiter_cancels_its_calls(library: str) -> None:
    """Cancelling the only waiter of a chain of calls cancels the call at its start."""
    client, asked = gate()

    async def main() -> None:
        with anyio.move_on_after(0.2):
            await ask(client).map(str.upper).map(str.lower)

    anyio.run(main, backend=library)
    assert asked.is_set()
    wait_until_idle(client)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_other_waiters_keep_the_call(library: str) -> None:
    """A value that someone else waits for goes on."""
    asked, release = threading.Event(), threading.Event()

    async def slow(request: Any) -> str:
        asked.set()
        while not release.is_set():
            await anyio.sleep(0.001)
        return "there"

    async def main() -> str:
        reply = ask(ScriptedClient(slow))
        results: list[str] = []

        async def wait() -> None:
            results.append((await reply).data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            with anyio.CancelScope() as scope:
                tasks.start_soon(cancel_once, asked, scope)
                await reply
            release.set()
        return results[0]

    assert anyio.run(main, backend=library) == "there"


def test_a_value_held_by_the_program_survives_a_cancelled_consumer() -> None:
    """Cancelling the wait for a consumer doesn't cancel what the program still holds."""
    asked, release = threading.Event(), threading.Event()

    async def slow(request: Any) -> str:
        asked.set()
        while not release.is_set():
            await anyio.sleep(0.001)
        return "there"

    async def main() -> str:
        reply = ask(ScriptedClient(slow))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_once, asked, tasks.cancel_scope)
            await reply.map(str.upper)
        release.set()
        return (await reply).data

    assert anyio.run(main) == "there"


CTRL_C = """
import os, signal, sys, threading
import anyio, afnio
from afnio.testing import ScriptedClient
asked = threading.Event()
async def never(request):
    asked.set()
    await anyio.sleep_forever()
messages = [{"role": "user", "content": [afnio.Variable("hi")]}]
reply = afnio.cognitive.functional.chat_completion(ScriptedClient(never), messages, model="m")
def interrupt():
    asked.wait()
    os.kill(os.getpid(), signal.SIGINT)
try:
    threading.Thread(target=interrupt).start()
    reply.data
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_a_blocking_wait() -> None:
    """Ctrl-C in a blocking read raises KeyboardInterrupt at once, and the process ends cleanly."""
    run = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.returncode) == ("interrupted\n", 0), run.stderr


def wait_until_idle(client: ScriptedClient) -> None:
    idle = threading.Event()
    runtime = afnio.runtime.current_runtime()

    def look() -> None:
        if client._open == 0:
            idle.set()
        else:
            runtime._loop._loop.call_soon(look)

    runtime.post(look)
    assert idle.wait(60), "the call was not cancelled"


def test_cancelling_a_long_chain() -> None:
    """Cancelling the last of thousands of ops reaches the call at their start without recursion."""
    client, asked = gate()

    async def main() -> None:
        with anyio.CancelScope() as scope:
            value = ask(client)
            for _ in range(3_000):
                value = value + afnio.Variable("")
            while not asked.is_set():
                await anyio.sleep(0.001)
            scope.cancel()
            await value

    anyio.run(main)
    wait_until_idle(client)


def test_cancelling_a_reduced_evaluation() -> None:
    """Cancelling the only waiter of a score cancels the calls that it needed, those of lanes still open."""
    client, asked = gate()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_once, asked, tasks.cancel_scope)
            reply = afnio.cognitive.functional.chat_completion(client, MESSAGES, {"x": ["a", "b"]}, model="m")
            score, _ = afnio.cognitive.functional.exact_match_evaluator(reply, ["a", "b"])
            del reply
            await score

    anyio.run(main)
    assert asked.is_set()
    wait_until_idle(client)


def test_cancelling_a_backward_pass() -> None:
    """Cancelling who awaits `backward()` cancels the critic's calls, and the leaf gathers nothing."""
    client, asked = gate()
    prompt = afnio.Parameter("p", role="prompt")
    messages = [{"role": "system", "content": [prompt]}]

    async def main() -> None:
        reply = await afnio.cognitive.functional.chat_completion(ScriptedClient("no"), messages, model="m")
        _, explanation = afnio.cognitive.functional.exact_match_evaluator(reply, "yes")
        with afnio.set_backward_model_client(client, completion_args={"model": "m"}):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_once, asked, tasks.cancel_scope)
                await explanation.backward()

    anyio.run(main)
    assert asked.is_set()
    wait_until_idle(client)
    assert prompt.grad == []


def test_cancelling_a_step_keeps_the_value() -> None:
    """A step that is cancelled, even before it began, makes no further call and keeps the parameter."""

    async def main(wait: bool) -> str:
        client, asked = gate()
        prompt = afnio.Parameter("old", role="prompt")
        prompt.append_grad(afnio.Variable("better"))
        optimizer = afnio.optim.TGD([prompt], client, model="m")
        with pytest.raises(afnio.errors.LaunchCancelledError):
            async with afnio.scope() as owner:
                work = optimizer.step()
                while wait and not asked.is_set():
                    await anyio.sleep(0.001)
                owner.cancel()
                await work
        assert client.requests or not wait  # without waiting the runtime may be quicker than the cancel
        wait_until_idle(client)
        return (await prompt).data

    assert [anyio.run(main, wait) for wait in (False, True)] == ["old", "old"]


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_gradients_are_there_when_backward_is(library: str) -> None:
    """Who awaited `backward()` can read the gradients at once: all outputs of a job appear together."""

    async def main() -> None:
        for _ in range(100):
            x = afnio.Variable("a", requires_grad=True)
            out = x + afnio.Variable("b")
            await out.backward(afnio.Variable("f"))
            assert len(x.grad) == 1

    anyio.run(main, backend=library)


def test_a_builtin_that_blocks_does_not_stall_the_runtime() -> None:
    """A callable in C runs in a thread like any other, unless it is known to be quick."""
    import time

    slow = afnio.Variable([0.2, 0.2]).map(time.sleep)
    assert (afnio.Variable("a") + afnio.Variable("b")).data == "ab"
    assert slow.pending
    slow.errors


def test_settings_of_threads_do_not_leak() -> None:
    """A `with` block in one thread leaves no process default behind, whatever others do meanwhile."""
    from afnio.runtime._settings import Assignment, Setting

    setting = Setting("test", "default")
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(500):
            with Assignment(setting, f"t{number}"):
                assert setting.get() == f"t{number}"

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert setting.default == "default"
    Assignment(setting, "plain")
    Assignment(setting, "later")
    assert setting.default == "later"
    assert len(setting._assigned) <= 2
