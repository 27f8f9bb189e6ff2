"""Scopes: ownership, addresses, what leaving one does."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import anyio
import kit
import pytest
import trio

import afnio
from afnio.errors import BlockingReadError, LaunchCancelledError, TooManyPendingError
from afnio.runtime import Pending
from afnio.runtime._kernel import Launch, Slot, current_scope
from afnio.runtime._tracebacks import Failure
from afnio.testing import ScriptedClient


def launch(body: Any, name: str = "op") -> Pending[Any]:
    started = Launch(name)
    slot = Slot(started)
    started.add(body, [], [slot])
    started.start()
    return Pending(slot, lambda value: value)


async def forever(job: Any, values: Any) -> Any:
    await anyio.sleep_forever()


async def one(job: Any, values: Any) -> Any:
    return [1]


async def boom(job: Any, values: Any) -> Any:
    raise ValueError("boom")


def test_leaving_waits() -> None:
    """What a scope owns has ended when the block has."""
    with afnio.scope():
        work = launch(one)
    assert work.done


def test_unread_failure_is_raised_bare() -> None:
    """One failure that nobody read leaves the scope as it is, with the launch line."""
    with pytest.raises(ValueError, match="boom") as caught, afnio.scope():
        launch(boom)
    assert "test_scope.py" in caught.value.__notes__[0]


def test_unread_failures_are_grouped() -> None:
    """Several failures leave as one group, which counts them and has equal ones once."""
    with pytest.raises(ExceptionGroup, match="2 launches of scope") as caught, afnio.scope():
        launch(boom)
        launch(boom)
    assert [str(error) for error in caught.value.exceptions] == ["boom"]


def test_read_failure_is_not_raised_again() -> None:
    """Who read a failure has been told."""
    with afnio.scope():
        with pytest.raises(ValueError, match="boom"):
            launch(boom).wait()


def test_error_in_the_block_cancels() -> None:
    """An exception in the block cancels what is pending and leaves as it is."""
    with pytest.raises(KeyError), afnio.scope():
        work = launch(forever)
        raise KeyError
    with pytest.raises(LaunchCancelledError, match="op"):
        work.wait()


def test_cancel() -> None:
    """A scope cancels its launches, and nothing else."""
    outside = launch(one)
    with afnio.scope() as owner:
        work = launch(forever)
        owner.cancel()
    with pytest.raises(LaunchCancelledError):
        work.wait()
    assert outside.wait() == 1


def test_addresses_follow_program_order() -> None:
    """An address is the scope's path and the launch's number there; equal names are told apart."""
    addresses = []
    for _ in range(2):
        with afnio.scope(name="epoch"):
            addresses += [Launch("op").address, Launch("op").address]
            with afnio.scope(name="val"):
                addresses.append(Launch("op").address)
    prefix = addresses[0].rpartition("epoch")[0]
    assert [a.removeprefix(prefix) for a in addresses[:3]] == ["epoch/1", "epoch/2", "epoch/val/1"]
    assert addresses[3].endswith("/1")
    assert addresses[3] not in addresses[:3]


def test_max_pending_raises_at_the_launch() -> None:
    """Back-pressure of a scope shows at the line that would launch too much."""
    with afnio.scope(max_pending=2) as owner:
        launch(forever)
        launch(forever)
        with pytest.raises(TooManyPendingError, match="max_pending=2"):
            launch(forever)
        owner.cancel()


def test_bad_max_pending() -> None:
    """A limit below one is refused."""
    with pytest.raises(ValueError, match="got 0"):
        afnio.scope(max_pending=0)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_async_with_waits(library: str) -> None:
    """`async with` waits without blocking the loop."""

    async def main() -> bool:
        async with afnio.scope():
            work = launch(one)
        return work.done

    assert anyio.run(main, backend=library)


async def test_plain_with_on_a_loop_names_the_fix() -> None:
    """Leaving a plain `with` that would block a loop cancels, raises, and says what to write."""
    with pytest.raises(BlockingReadError, match="async with afnio.scope"):
        with afnio.scope():
            work = launch(forever)
    with pytest.raises(LaunchCancelledError):
        await work


async def test_nothing_is_launched_for_a_block_that_was_left() -> None:
    """Neither in a context that outlives it, nor by a launch that had found room when the block was left."""
    with pytest.raises(BlockingReadError), afnio.scope():
        context, late = copy_context(), Launch("late")
        launch(forever)
    with pytest.raises(LaunchCancelledError, match="nothing more is launched"):
        context.run(launch, forever)
    slot = Slot(late)
    late.add(forever, [], [slot])
    late.start()
    with anyio.fail_after(60), pytest.raises(LaunchCancelledError):
        await Pending(slot, lambda value: value)


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_cancelled_task_cancels_its_scope(library: str) -> None:
    """Cancelling the task that waits at a scope's end cancels what the scope owns."""

    async def main() -> Any:
        with anyio.move_on_after(0.05) as deadline:
            async with afnio.scope():
                slot = launch(forever)._slot
        assert deadline.cancelled_caught
        while not slot.done:
            await anyio.lowlevel.checkpoint()
        return slot.outcome

    outcome = anyio.run(main, backend=library)
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.error, LaunchCancelledError)


def test_scopes_of_tasks_are_apart() -> None:
    """Tasks side by side each have their own current scope."""
    seen = []

    async def task(name: str) -> None:
        async with afnio.scope(name=name) as owner:
            await trio.lowlevel.checkpoint()
            seen.append(current_scope() is owner)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(task, f"t{number}")

    trio.run(main)
    assert seen == [True] * 10


def test_a_full_scope_leaves_nothing_half_done() -> None:
    """A step or pass that a full scope refuses leaves the parameter, its feedback and the graph as they were."""
    prompt = afnio.Parameter("old", role="prompt")
    prompt.append_grad(afnio.Variable("better"))
    out = prompt + afnio.Variable("!")
    optimizer = afnio.optim.TGD([prompt], ScriptedClient('{"value": "new"}'), model="m")
    with afnio.scope(max_pending=1) as owner:
        launch(forever)
        with pytest.raises(TooManyPendingError):
            optimizer.step()
        with pytest.raises(TooManyPendingError):
            out.backward(afnio.Variable("f"))
        owner.cancel()
    assert (prompt.data, len(prompt.grad)) == ("old", 1)
    out.backward(afnio.Variable("f"))
    optimizer.step()
    assert prompt.data == "new"


def test_a_handled_batch_error_is_not_raised_again() -> None:
    """A reduction's failure and its samples' are one: who read either has read both."""

    def fails(value: str) -> str:
        raise ValueError(value)

    with afnio.scope():
        bad = afnio.Variable(["a", "b"], requires_grad=True).map(fails)
        score, explanation = afnio.cognitive.functional.exact_match_evaluator(bad, ["a", "b"])
        with pytest.raises(afnio.errors.BatchError):
            explanation.backward()
        del score


def test_failures_of_a_long_scope_are_let_go() -> None:
    """A scope that lives long doesn't keep failures that were read."""
    with afnio.scope() as owner:
        for _ in range(50):
            with pytest.raises(ValueError, match="boom"):
                launch(boom).wait()
        assert len(owner.failures) <= 1


def test_every_call_has_its_own_address() -> None:
    """Two chat nodes in one pass, two parameters in one step, two callables of one lane: no address twice."""
    from afnio.runtime.events import CallEnded

    addresses: list[str] = []
    replies = {
        "afnio_feedback": '{"feedback": [{"variable": "v1", "text": "f"}, {"variable": "v2", "text": "g"}]}',
        "afnio_value": '{"value": "new"}',
    }

    def reply(request: Any) -> str:
        shape = request.params.get("response_format")
        return "no" if shape is None else replies[shape["json_schema"]["name"]]

    client = ScriptedClient(reply)
    p, q = afnio.Parameter("p", role="p"), afnio.Parameter("q", role="q")
    messages = [{"role": "system", "content": [p]}, {"role": "user", "content": [q]}]

    async def judge(*args: Any) -> int:
        await client.achat(messages=[{"role": "user", "content": "?"}], model="m")
        await client.achat(messages=[{"role": "user", "content": "?"}], model="m")
        return 0

    with (
        afnio.set_backward_model_client(client, completion_args={"model": "m"}),
        kit.events(CallEnded) as ended,
    ):
        first = afnio.cognitive.functional.chat_completion(client, messages, model="m")
        second = afnio.cognitive.functional.chat_completion(
            client, [{"role": "system", "content": [p]}, {"role": "user", "content": [first]}], model="m"
        )
        _, explanation = afnio.cognitive.functional.deterministic_evaluator(
            second, "yes", judge, "check", success_fn=judge
        )
        explanation.backward()
        afnio.optim.TGD([p, q], client, model="m").step()
    addresses = [event.address for event in ended]
    assert len(addresses) == 2 + 4 + 2 + 2
    assert len(addresses) == len(set(addresses)), sorted(addresses)


def test_ctrl_c_while_a_scope_waits_cancels_it() -> None:
    """An interrupt at a scope's end cancels what the scope owns."""
    import subprocess
    import sys

    code = """
import os, signal, threading, anyio, afnio
from afnio.testing import ScriptedClient
asked, cancelled = threading.Event(), threading.Event()
async def never(request):
    asked.set()
    try:
        await anyio.sleep_forever()
    finally:
        cancelled.set()
def interrupt():
    asked.wait()
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
messages = [{"role": "user", "content": [afnio.Variable("hi")]}]
try:
    with afnio.scope():
        afnio.cognitive.functional.chat_completion(ScriptedClient(never), messages, model="m")
except KeyboardInterrupt:
    print(cancelled.wait(60))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.returncode) == ("True\n", 0), run.stderr
