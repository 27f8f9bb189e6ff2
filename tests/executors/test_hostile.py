"""`executor=` attacked: callables that look alike, engines that run a task twice, programs that end too early."""

from __future__ import annotations

import functools
import multiprocessing
import subprocess
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import kit
import psutil
import pytest
from aiohttp import web
from kit import errands
from kit.endpoint import Endpoint

import afnio
from afnio.runtime import current_runtime
from afnio.runtime.events import CallReplayed

SPAWN = multiprocessing.get_context("spawn")
WORKERS = functools.partial(ProcessPoolExecutor, 2, mp_context=SPAWN)


class Inline(Executor):
    """Runs its tasks here, at once. What matters is who was asked."""

    def __init__(self, name: Any = None) -> None:
        self.name = name
        made.append(name)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


made: list[Any] = []


def used(executor: Any) -> list[Any]:
    """Return the names of the executors that running one lane made."""
    made.clear()
    assert afnio.Variable([1]).map(errands.double, executor=executor).data == [2]
    return list(made)


def test_callables_are_compared_by_what_they_make() -> None:
    held = [1, 2]
    for expected in (["a"], []):  # the second one finds the first one's
        assert used(lambda: Inline("a")) == expected
    for expected in ([[1, 2]], []):
        assert used(lambda: Inline(held)) == expected
    for expected in ([[3]], []):
        assert used(functools.partial(Inline, [3])) == expected
    for number in (1, 2):
        assert used(lambda *, number=number: Inline(number)) == [number]
    line = "def make():\n    return Inline(NAME)\n"
    for name in ("x", "y"):
        namespace: dict[str, Any] = {"Inline": Inline, "NAME": name}
        exec(line, namespace)
        assert used(namespace["make"]) == [name]

    def early() -> Any:
        return [Inline("early"), lambda: later][0]

    assert used(early) == ["early"]
    later = None


async def test_equal_executors_with_other_limits_keep_their_own(tmp_path: Path) -> None:
    def running() -> list[int]:
        pools = [each.state() for each in current_runtime().resources() if hasattr(each, "state")]
        return [pool.running for pool in pools if pool.engine == "processes"]

    for most in (1, 3):
        path = tmp_path / f"end{most}"
        workers = afnio.Workers(WORKERS, max_in_flight=most)
        waiting = afnio.Variable([str(path)] * 5).map(errands.wait_for, executor=workers)
        with anyio.fail_after(60):
            while sum(running()) < most:
                await anyio.sleep(0.01)
        assert most == sum(running())
        path.touch()
        assert (await waiting).data == [str(path)] * 5


# An engine that runs tasks again


class Twice(Executor):
    """Runs each task twice, as Dask does if the worker dies that has the result."""

    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=SPAWN)

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        found: Future[Any] = Future()

        def again(first: Future[Any]) -> None:
            assert first.result()
            self.pool.submit(fn, *args, **kwargs).add_done_callback(
                lambda second: found.set_result(second.result())
            )

        self.pool.submit(fn, *args, **kwargs).add_done_callback(again)
        return found

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.pool.shutdown(wait=wait, cancel_futures=cancel_futures)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as found:
        yield found


async def test_a_task_that_its_engine_repeats_pays_once(endpoint: Endpoint) -> None:
    call = functools.partial(errands.ask_slowly, f"{endpoint.url}/v1")
    found = await afnio.Variable(["1", "2"]).map(call, executor=Twice)
    assert found.data == ["1", "2"]
    assert len(endpoint.asked) == 4


@pytest.mark.nightly
async def test_a_call_that_failed_before_its_worker_was_lost_is_asked_where_a_resumed_run_looks(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.fail = lambda number, asked: web.json_response({"error": {}}, status=400) if not number else None
    call = functools.partial(errands.fail_and_die, f"{endpoint.url}/v1", str(tmp_path))
    with kit.events(CallReplayed) as replayed:
        for _ in range(2):
            async with afnio.journal(tmp_path / "calls.journal"):
                assert (await afnio.Variable(["x"]).map(call, executor=WORKERS)).data == ["X"]
    assert (len(endpoint.asked), len(replayed)) == (2, 1)


# Programs


PROGRAM = """
import functools, multiprocessing, os, sys
from concurrent.futures import ProcessPoolExecutor
import afnio
from kit import errands

if __name__ == "__main__":
    workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
    running = afnio.Variable([sys.argv[1]]).map(errands.wait_for, executor=workers)
    while not os.path.exists(sys.argv[1] + ".started"):
        pass
    print("busy", flush=True)
    sys.stdin.readline()
"""


def test_a_program_that_ends_does_not_wait_for_lanes_that_nobody_reads(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(tmp_path / "never")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "busy"
        workers = psutil.Process(process.pid).children(recursive=True)
        process.communicate("\n", timeout=60)
    _, left = psutil.wait_procs(workers, timeout=60)
    assert left == []


def test_nothing_listens_beyond_loopback() -> None:
    assert afnio.Variable([1]).map(errands.double, executor=WORKERS).data == [2]
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::1"}, listening
    assert "127.0.0.1" in listening, "the gateway's, for the calls of workers"
