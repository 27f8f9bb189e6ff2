"""`executor=` with process pools: values, errors, lost workers, bad input. The pools spawn, as users' should."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from kit import errands

import afnio
import afnio.cognitive.functional as F
from afnio.errors import BatchError, ExecutorError, RemoteError, WorkerLostError
from afnio.runtime import current_runtime

SPAWN = multiprocessing.get_context("spawn")
# Equal callables share one pool, so that it starts only once for all the tests here.
WORKERS = functools.partial(ProcessPoolExecutor, 2, mp_context=SPAWN)


def test_functions_of_all_kinds_in_order() -> None:
    numbers = afnio.Variable(list(range(20)))
    third = 3
    assert numbers.map(errands.double, executor=WORKERS).data == [2 * n for n in range(20)]
    assert numbers.map(errands.later, executor=WORKERS).data == [n + 1 for n in range(20)]
    assert numbers.map(lambda n: n * third, executor=WORKERS).data == [n * third for n in range(20)]
    bound = functools.partial(errands.raised, exponent=2)
    again = functools.partial(ProcessPoolExecutor, 2, mp_context=SPAWN)
    assert numbers.map(bound, executor=again).data == [n * n for n in range(20)]
    assert afnio.Variable(7).map(errands.double, executor=WORKERS).data == 14


def test_an_evaluator_gets_scores_and_feedback_from_a_worker() -> None:
    prediction = afnio.Variable(["a", "b", "c"], requires_grad=True)
    score, explanation = F.deterministic_evaluator(
        prediction, ["a", "x", "c"], errands.match, "match", executor=WORKERS
    )
    explanation.backward()
    assert score.data == 2
    assert prediction.grad[0].data == [None, "worker: b/x", None]


def test_a_function_keeps_what_its_forward_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errands.Measured, "executor", WORKERS)
    text = afnio.Variable(["one two", "three"], requires_grad=True)
    size, shout = errands.Measured.apply(text)
    assert (size.data, shout.data) == ([7, 5], ["ONE TWO 0 True", "THREE 1 True"])
    shout.backward(afnio.Variable(["longer", "shorter"]))
    assert text.grad[0].data == [
        "longer of 2 words, measured elsewhere: True",
        "shorter of 1 words, measured elsewhere: True",
    ]


def test_errors_keep_type_and_traceback_and_lose_no_other_lane() -> None:
    with afnio.tolerate(quorum=0.1):
        found = afnio.Variable([0, 1, 2, 3]).map(errands.fail, executor=WORKERS)
        assert found.data == [0, None, None, 3]
        odd = afnio.Variable([0, 1]).map(errands.unpicklable, executor=WORKERS)
        assert odd.data == [0, None]
    plain, remote = found.errors[1], found.errors[2]
    assert isinstance(plain, errands.PlainError)
    assert 'raise PlainError("one is wrong")' in str(plain.__cause__)
    assert isinstance(remote, RemoteError)
    assert "fail raised OddError in a worker, which can't be unpickled here (two is odd)" in str(remote)
    assert "number=2" in str(remote.__cause__)
    assert isinstance(odd.errors[1], TypeError)
    assert "unpicklable returned a lock that can't be pickled" in str(odd.errors[1])


def test_what_cannot_be_pickled_is_named_on_the_launch_line(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = threading.Lock()
    with pytest.raises(TypeError, match=r"the lambda at test_pools.py:\d+, which refers to guard, a lock"):
        afnio.Variable([1]).map(lambda n: (guard, n)[1], executor=WORKERS)
    with pytest.raises(TypeError, match=r"refers to Holder\.lock, a lock"):
        afnio.Variable([1]).map(Holder(guard).call, executor=WORKERS)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(TypeError, match="move it to a module, or install cloudpickle"):
        afnio.Variable([1]).map(lambda n: n, executor=WORKERS)


class Holder:
    def __init__(self, lock: Any) -> None:
        self.lock = lock

    def call(self, value: Any) -> Any:
        return value


def test_a_lane_that_always_kills_its_worker_fails_alone() -> None:
    rows = [*range(8), -1, *range(8)]
    with afnio.tolerate(quorum=0.5):
        found = afnio.Variable(rows).map(errands.poison, executor=WORKERS)
        assert [None if n < 0 else 2 * n for n in rows] == found.data
    assert list(found.errors) == [8]
    assert isinstance(found.errors[8], WorkerLostError)
    assert "poison must not end its worker process (got 3 ends in a row, at last BrokenProcessPool" in str(
        found.errors[8]
    )


def test_lanes_of_lost_workers_run_again(tmp_path: Path) -> None:
    for number in range(40):
        if number != 7:
            (tmp_path / str(number)).touch()  # this one loses its worker, once
    rows = afnio.Variable([str(number) for number in range(40)])
    found = rows.map(functools.partial(errands.once, str(tmp_path)), executor=WORKERS)
    assert found.data == [str(number) for number in range(40)]


async def test_a_cancelled_lane_ends_at_once(tmp_path: Path) -> None:
    path = tmp_path / "end"
    async with anyio.create_task_group() as group:

        async def wait() -> None:
            await afnio.Variable(str(path)).map(errands.wait_for, executor=WORKERS)

        group.start_soon(wait)
        while not (tmp_path / "end.started").exists():
            await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    # It runs on in one worker. The pool and its other worker are there for others.
    assert (await afnio.Variable([2]).map(errands.double, executor=WORKERS)).data == [4]
    path.touch()


async def test_workers_ignore_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "end"
    waiting = afnio.Variable(str(path)).map(errands.wait_for, executor=WORKERS)
    while not (tmp_path / "end.started").exists():
        await anyio.sleep(0.01)
    workers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert workers
    for child in workers:
        child.send_signal(signal.SIGINT)
    path.touch()
    assert str(path) == (await waiting).data


def test_the_executor_is_made_off_the_loop() -> None:
    made: list[bool] = []

    class Direct(Executor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            made.append(current_runtime().current)
            raise OSError("no such cluster")

    with pytest.raises(BatchError, match=r"must take tasks \(got OSError: no such cluster\)"):
        _ = afnio.Variable([1]).map(errands.double, executor=lambda: Direct()).data
    assert made == [False]


def test_an_executor_object_that_breaks_is_a_final_error() -> None:
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        with pytest.raises(BatchError, match="pass a callable that makes it") as broken:
            _ = afnio.Variable([-1, 1, 2]).map(errands.poison, executor=pool).data
        assert {type(error) for error in broken.value.exceptions} == {ExecutorError}
        with pytest.raises(BatchError, match="pass a callable that makes it"):
            _ = afnio.Variable([1]).map(errands.double, executor=pool).data


def starting(folder: Path, ends: int, code: int) -> Any:
    end = functools.partial(errands.end_while_starting, str(folder), ends, code)
    return functools.partial(ProcessPoolExecutor, 1, mp_context=SPAWN, initializer=end)


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGTERM])
def test_workers_that_are_killed_while_they_start_cost_no_lane(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """However often: it isn't their fault."""
    monkeypatch.setattr("afnio.runtime._executors.PAUSE", 0.001)
    rows = afnio.Variable([1, 2, 3])
    assert rows.map(errands.double, executor=starting(tmp_path, 5, code)).data == [2, 4, 6]
    said = [record.message for record in caplog.records if "were killed while they started" in record.message]
    assert len(said) == 5
    assert "(5 times in a row)" in said[-1]


def test_workers_that_end_by_themselves_while_they_start_fail_the_lanes(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="workers must live until their first task"):
        _ = afnio.Variable([1, 2]).map(errands.double, executor=starting(tmp_path, 100, 3)).data
    assert len(list(tmp_path.iterdir())) == 3


def test_a_pool_that_was_shut_down() -> None:
    pool = ProcessPoolExecutor(1, mp_context=SPAWN)
    pool.shutdown()
    with pytest.raises(BatchError, match="keep it open while lanes need it"):
        _ = afnio.Variable([1, 2]).map(errands.double, executor=pool).data


def test_a_callable_that_makes_none() -> None:
    def broken() -> Any:
        raise OSError("no address")

    with pytest.raises(BatchError, match=r"must make one \(got OSError: no address\)"):
        _ = afnio.Variable([1, 2]).map(errands.double, executor=broken).data
    with pytest.raises(BatchError, match="must be or make a concurrent.futures.Executor"):
        _ = afnio.Variable([1]).map(errands.double, executor=lambda: 5).data


def test_what_is_no_executor_is_refused_where_it_is_given() -> None:
    row = afnio.Variable([1])
    with pytest.raises(TypeError, match="must be a concurrent.futures.Executor or a callable"):
        row.map(errands.double, executor=4)
    with pytest.raises(TypeError, match="set_threads"):
        row.map(errands.double, executor=ThreadPoolExecutor(1))
    with pytest.raises(ValueError, match="must not fork"):
        row.map(
            errands.double, executor=ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
        )
    with pytest.raises(ValueError, match="exclude each other"):
        row.map(errands.later, loop="caller", executor=WORKERS)
    with pytest.raises(ValueError, match="max_in_flight must be at least 1"):
        afnio.Workers(WORKERS, max_in_flight=0)
    with pytest.raises(ValueError, match="needs an executor"):
        row.map(errands.double, durable=True)


def test_a_closed_runtime_leaves_no_worker(tmp_path: Path) -> None:
    pids = {int(pid) for pid in afnio.Variable(["", ""]).map(errands.pid, executor=WORKERS).data}
    assert os.getpid() not in pids
    afnio.runtime.close()
    for pid in pids:
        if psutil.pid_exists(pid):
            psutil.Process(pid).wait(60)
