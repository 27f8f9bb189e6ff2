"""The runtime's life: started by the first launch, closed, forked, ended with the interpreter."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import anyio
import pytest

import afnio
from afnio import runtime
from afnio.errors import LaunchCancelledError
from afnio.testing import ScriptedClient

PRELUDE = """
import os, sys, threading
import anyio, afnio
from afnio import runtime
from afnio.testing import ScriptedClient
asked = threading.Event()
async def never(request):
    asked.set()
    await anyio.sleep_forever()
def ask(client):
    messages = [{"role": "user", "content": [afnio.Variable("hi")]}]
    return afnio.cognitive.functional.chat_completion(client, messages, model="m")
"""


def script(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, in which every warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_import_starts_nothing() -> None:
    """Importing starts no thread; the first launch starts one."""
    run = script(
        """
        assert threading.active_count() == 1
        x = afnio.Variable("a")
        assert threading.active_count() == 1
        assert (x + x).data == "aa"
        assert threading.active_count() == 2
        """
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_exit_with_pending_work() -> None:
    """At exit pending work is cancelled, and one line says how much."""
    run = script(
        """
        replies = [ask(ScriptedClient(never)) for _ in range(3)]
        asked.wait()
        while runtime.current_runtime().calls_open < 3: pass
        print("end")
        """
    )
    assert (run.returncode, run.stdout) == (0, "end\n")
    (line,) = run.stderr.splitlines()
    assert "3 launches pending and 3 calls in flight" in line


def test_exit_with_nothing_pending() -> None:
    """A program that ends as soon as its last value is there is told of nothing."""
    run = script(
        """
        from afnio.runtime._kernel import Job
        from afnio.runtime._loop import LoopThread
        fill, post, closing, reading = Job.fill, LoopThread.post, threading.Event(), threading.Event()
        async def late(request):
            while not reading.is_set():
                await anyio.sleep(0)
            await anyio.sleep(0)  # by now the loop has taken the reader in
            return "hi"
        def filled(job, outcomes):
            fill(job, outcomes)  # which wakes the reader, who ends the program
            assert closing.wait(60)
        def posted(loop, function, *args):
            post(loop, function, *args)
            if function.__name__ == "_begin_close":
                closing.set()
            elif function.__name__ == "start" and threading.current_thread() is threading.main_thread():
                reading.set()
        value = ask(ScriptedClient(late))
        Job.fill, LoopThread.post = filled, posted
        print(value.data)
        """
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "hi\n", "")


def test_exit_with_a_blocked_callable() -> None:
    """A callable that never returns doesn't keep the interpreter from exiting."""
    run = script(
        """
        blocked = threading.Event()
        def stuck(value):
            blocked.set()
            threading.Event().wait()
        mapped = afnio.Variable("a").map(stuck)
        blocked.wait()
        """
    )
    assert run.returncode == 0, run.stderr


def test_unread_failure_is_logged() -> None:
    """A failure that nobody read is logged when its value is collected, with its launch line."""
    run = script(
        """
        reply = ask(ScriptedClient(ValueError("no luck")))
        slot = reply._slots[0]
        while not slot.done: pass
        del reply, slot
        import gc; gc.collect()
        """
    )
    assert run.returncode == 0
    assert "a failure was never read: ValueError: no luck" in run.stderr
    assert "launched at <string>" in run.stderr


def test_unread_failures_of_one_line_are_counted() -> None:
    """The first one is logged, and the number of the others at the end."""
    run = script(
        """
        import time
        for number in range(100):
            reply = ask(ScriptedClient(ValueError("no luck")))
            slot = reply._slots[0]
            while not slot.done: time.sleep(0)
        del reply, slot
        import gc; gc.collect()
        """
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("a failure was never read: ValueError: no luck") == 1
    assert "99 more failures of these kinds were never read" in run.stderr


def test_equal_errors_of_a_block_are_one() -> None:
    """Six failures of one line are six in the sentence, and one in the traceback."""
    client = ScriptedClient(ValueError("no luck"))
    with pytest.raises(ExceptionGroup) as caught, afnio.scope():
        for _ in range(6):
            afnio.cognitive.functional.chat_completion(
                client, [{"role": "user", "content": [afnio.Variable("hi")]}], model="m"
            )
    assert "6 launches" in str(caught.value)
    assert len(caught.value.exceptions) == 1


def test_close_and_start_again() -> None:
    """Closing cancels what is pending and ends the thread; the next launch starts a new runtime."""
    run = script(
        """
        reply = ask(ScriptedClient(never))
        asked.wait()
        import logging; logging.disable()
        runtime.close()
        assert [t.name for t in threading.enumerate()] == ["MainThread"], threading.enumerate()
        try:
            reply.data
        except afnio.errors.LaunchCancelledError:
            print("cancelled")
        print((afnio.Variable("a") + afnio.Variable("b")).data)
        """
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "cancelled\nab\n", "")


def test_scope_of_a_closed_runtime() -> None:
    """A launch in a scope whose runtime has been closed says so."""
    run = script(
        """
        with afnio.scope():
            (afnio.Variable("a") + afnio.Variable("b")).data
            runtime.close()
            try:
                afnio.Variable("a") + afnio.Variable("b")
            except afnio.errors.RuntimeClosedError as error:
                print(error)
        """
    )
    assert run.returncode == 0, run.stderr
    assert "after the Afnio runtime had been closed" in run.stdout


def test_fork() -> None:
    """A fork's child starts its own runtime; only what was pending at the fork raises there."""
    run = script(
        """
        go = threading.Event()
        async def slow(request):
            asked.set()
            while not go.is_set():
                await anyio.sleep(0.001)
            return "late"
        done, pending = ask(ScriptedClient("early")), ask(ScriptedClient(slow))
        done.data
        asked.wait()
        child = os.fork()
        if child == 0:
            try:
                assert done.data == "early"
                assert (afnio.Variable("a") + done).data == "aearly"
                assert ask(ScriptedClient("mine")).data == "mine"
                try:
                    pending.data
                except afnio.errors.ForkedError as error:
                    assert "forked" in str(error)
                    os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        go.set()
        print(pending.data)
        """
    )
    assert (run.returncode, run.stdout) == (0, "late\n"), run.stderr


def test_cancelled_before_its_first_step() -> None:
    """A lane that is cancelled before its task has begun ends all the same, and warns of nothing."""

    async def main() -> None:
        for _ in range(50):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await afnio.cognitive.functional.chat_completion(
                    ScriptedClient("x"), [{"role": "user", "content": [afnio.Variable("hi")]}], model="m"
                )

    anyio.run(main)


def test_cancelled_value_raises() -> None:
    """What a scope cancelled says so when it is read."""
    started = threading.Event()

    async def never(request: object) -> str:
        started.set()
        await anyio.sleep_forever()
        return ""

    with afnio.scope() as owner:
        reply = afnio.cognitive.functional.chat_completion(
            ScriptedClient(never), [{"role": "user", "content": [afnio.Variable("hi")]}], model="m"
        )
        started.wait(60)
        owner.cancel()
    with pytest.raises(LaunchCancelledError, match=r"ChatCompletion.*test_lifetime"):
        reply.data


def test_one_runtime_for_many_threads() -> None:
    """Threads that launch first at the same time share one runtime."""
    run = script(
        """
        found, barrier = [], threading.Barrier(16)
        def first():
            barrier.wait()
            found.append(runtime.current_runtime())
        threads = [threading.Thread(target=first) for _ in range(16)]
        for t in threads: t.start()
        for t in threads: t.join()
        assert len(set(map(id, found))) == 1
        """
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert runtime.current_runtime() is runtime.current_runtime()


def test_interrupts_lose_no_wake_up() -> None:
    """Ctrl-C in the middle of launches leaves a runtime that still answers."""
    run = script(
        """
        import signal
        x = afnio.Variable("a")
        hits, armed = 0, False
        def interrupt(*args):
            global hits, armed
            if armed:
                hits, armed = hits + 1, False
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
        while hits < 300:
            try:
                armed = True
                while True:
                    x + x
            except KeyboardInterrupt:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        print((x + x).data)
        """
    )
    assert (run.returncode, run.stdout) == (0, "aa\n"), run.stderr


def test_close_with_a_task_that_swallows_its_cancellation() -> None:
    """A reader of a value that outlives its cancellation is told that the runtime was closed."""
    run = script(
        """
        import logging; logging.disable()
        runtime_module = sys.modules["afnio.runtime._kernel"]
        runtime_module.CLOSE_TIMEOUT = 0.4
        started, ended = threading.Event(), []
        async def stubborn(value):
            started.set()
            while True:
                try:
                    await anyio.sleep(60)
                except BaseException:
                    pass
        mapped = afnio.Variable("a").map(stubborn)
        def read():
            try:
                mapped.data
            except afnio.errors.AfnioError as error:
                ended.append(type(error).__name__)
        reader = threading.Thread(target=read)
        reader.start()
        started.wait()
        runtime.close()
        reader.join(60)
        print(ended)
        os._exit(0)
        """
    )
    assert run.stdout == "['RuntimeClosedError']\n", run.stderr


def test_close_under_load() -> None:
    """Threads that launch while the runtime is closed again and again get values or errors, and never hang."""
    run = script(
        """
        import logging, time; logging.disable()
        stop = time.monotonic() + 1.5
        def work():
            x = afnio.Variable("a")
            while time.monotonic() < stop:
                try:
                    assert (x + x).data == "aa"
                except afnio.errors.AfnioError:
                    pass
        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads: t.start()
        while time.monotonic() < stop:
            time.sleep(0.01)
            runtime.close()
        for t in threads: t.join(60)
        print(sum(t.is_alive() for t in threads))
        """
    )
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr


def test_forked_op_on_a_pending_value() -> None:
    """An op in the child on a value that was pending at the fork raises at its own line."""
    run = script(
        """
        pending = ask(ScriptedClient(never))
        asked.wait()
        child = os.fork()
        if child == 0:
            try:
                pending + afnio.Variable("b")
            except afnio.errors.ForkedError:
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    )
    assert run.stdout == "7\n", run.stderr


def test_worker_threads_are_reused() -> None:
    """Hundreds of `def` lanes need no more worker threads than the limiter allows."""
    run = script(
        """
        started = []
        first = threading.Thread.start
        def start(self):
            started.append(self)
            first(self)
        threading.Thread.start = start
        afnio.Variable(["a"] * 500).map(lambda value: value).data
        for _ in range(50):
            afnio.Variable("a").map(lambda value: value).data
        print(len(started) <= 40)
        """
    )
    assert (run.returncode, run.stdout) == (0, "True\n"), run.stderr
