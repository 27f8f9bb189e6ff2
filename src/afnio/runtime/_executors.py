"""Executors: where functions of lanes run in other processes.

A function that computes holds Python's global lock, in whatever thread it runs, and slows down every call of its
process. With `executor=` it runs in a worker of a process pool, of Dask or of Ray instead. `Workers` is what a user
passes, `WorkerPool` the executor while it is used: lanes wait for a place, are submitted, and come back. What is
submitted is in `_remote.py`, what runs it in `_worker.py`.

**A lost worker is no answer.** It says nothing about the lane that it ran, so that lane runs again. A pool knows only
that it is broken, and with it the futures of all lanes in it, of which one at most is to blame. So they run again one
at a time, each alone in it (`Turns`), and only a lane that breaks a pool alone has used up an attempt. Ray knows which
task a dead worker had. That lane runs again with the others, and alone after a third loss: where workers are killed
often, the same lane may be hit three times.

**Who makes the pool can replace it.** A broken one is of no use any more, so `executor=` takes a callable that makes
another one. It is made in a thread, and its first task shows that its workers start: a pool whose workers die before
that is no lane's fault. If the system killed them (too little memory, a host that is taken back), another pool is made
after a pause, as often as it takes; if they ended by themselves, three times are enough. What we didn't make we don't
shut down.

**A lane that is cancelled ends at once**, and gives its place to the next one. Its task runs on in a plain pool, which
can't end one task alone. Ray ends it.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import ProcessPoolExecutor
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, Final, final

import anyio
import anyio.to_thread

from afnio.errors import ExecutorError, RuntimeClosedError, WorkerLostError, reason
from afnio.runtime._kernel import Runtime, existing_runtime
from afnio.runtime._loop import Task
from afnio.runtime._worker import (
    DaskExecutor,
    Ended,
    forget,
    is_dask,
    new_mark,
    pickled,
    run_task,
    start_worker,
)

# How often a lane may lose its worker for which nothing else is to blame.
ATTEMPTS: Final = 3
# How often a pool is made whose workers end by themselves before their first task.
STARTS: Final = 3
# Seconds before a pool is made again whose workers were killed while they started. Each further time they
# double.
PAUSE: Final = 0.5
# The most of these seconds.
LONGEST_PAUSE: Final = 30.0
# Seconds that a pool's first worker has for its start.
START: Final = 120.0
# Seconds between looks at whether a cluster is there, while its first worker starts.
LOOK: Final = 1.0
# Seconds that a worker of a broken pool has for its end.
ENDING: Final = 5.0
# Lanes in flight for each worker, unless `Workers` says more: workers must not wait for the driver.
AHEAD: Final = 4

_RECIPE: Final = "functools.partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context('spawn'))"


@final
class Workers:
    """Where functions with `executor=` run, and how many lanes at a time.

    Args:
        executor: a `concurrent.futures.Executor` whose tasks run in other processes, or a callable that makes one.
            Only what a callable made can be replaced after it broke.
        max_in_flight: the lanes that are submitted at a time, of those with equal Workers. Default: 4 for each worker.
        host: for workers on other hosts, an address of this one (a name or an IP address, with or without `:port`) by
            which they reach it. Their calls of language models then arrive there; see "Several hosts" in the guide.
            Default: this machine's workers only.

    Raises:
        TypeError: for anything else.
        ValueError: for a number below 1, or a host that isn't one.

    >>> import functools, multiprocessing
    >>> from concurrent.futures import ProcessPoolExecutor
    >>> spawn = multiprocessing.get_context("spawn")
    >>> workers = Workers(functools.partial(ProcessPoolExecutor, 2, mp_context=spawn), max_in_flight=16)
    """

    def __init__(
        self,
        executor: Executor | Callable[[], Executor],
        *,
        max_in_flight: int | None = None,
        host: str | None = None,
    ) -> None:
        if not isinstance(executor, Executor) and not callable(executor):
            raise TypeError(
                f"executor must be a concurrent.futures.Executor or a callable that makes one (got {executor!r}); "
                f"pass one such as {_RECIPE}"
            )
        if isinstance(executor, Executor):
            _check_kind(executor)
        if max_in_flight is not None and (not isinstance(max_in_flight, int) or max_in_flight < 1):
            raise ValueError(
                f"max_in_flight must be at least 1 (got {max_in_flight!r}); None means {AHEAD} for each worker"
            )
        self.executor = executor
        self.max_in_flight = max_in_flight
        self.host = host
        self.listens_on = None if host is None else _host_and_port(host)

    def __deepcopy__(self, memo: object) -> Workers:
        """Return the same object: a copied agent runs where the original does."""
        return self

    @classmethod
    def of(cls, executor: Any) -> Workers:
        """Return the argument of an `executor=` as Workers."""
        return executor if isinstance(executor, cls) else cls(executor)

    def pool(self, runtime: Runtime) -> WorkerPool:
        """Return the pool; equal executors share one."""
        return runtime.resource((WorkerPool, _identity(self.executor)), partial(WorkerPool, runtime, self))


@dataclass(frozen=True, slots=True)
class ExecutorState:
    """The state of an executor.

    Attributes:
        name: of the callable or the class that was passed, such as "ProcessPoolExecutor".
        engine: "processes", "loky", "Dask", "Ray", or the executor's class. "" until it has started.
        workers: how many it has; 0 until it has started.
        running: lanes that were submitted. Each is in a worker, or next in line there.
        waiting: lanes that wait for the start, for a place, or for their turn after a lost worker.
        lost: how often lanes have lost their worker, and ran again or failed.
    """

    name: str
    engine: str
    workers: int
    running: int
    waiting: int
    lost: int


def executors(runtime: Runtime | None = None) -> list[ExecutorState]:
    """Return the state of each executor that has been used, in the order of first use. Safe on any thread.

    Args:
        runtime: default: the process's, if it has one.
    """
    runtime = runtime or existing_runtime()
    return (
        [] if runtime is None else [each.state() for each in runtime.resources() if type(each) is WorkerPool]
    )


def _host_and_port(address: str) -> tuple[str, int]:
    """Read a host with or without a port; port 0 is any free one.

    >>> _host_and_port("10.0.0.1"), _host_and_port("driver:8401"), _host_and_port("[fd00::1]:8401")
    (('10.0.0.1', 0), ('driver', 8401), ('fd00::1', 8401))
    """
    match = _HOST.fullmatch(address) if isinstance(address, str) else None
    host = "" if match is None else match["v6"] or match["bare"] or match["name"]
    port = 0 if match is None else int(match["port6"] or match["port"] or 0)
    if not host or host in ("0.0.0.0", "::") or port > 65_535:  # noqa: S104 - refused here
        raise ValueError(
            f"host must be one address of this machine, with or without :port (got {address!r}); pass the one by which "
            "workers reach it, such as '10.0.0.1'"
        )
    return host, port


_HOST: Final = re.compile(
    r"\[(?P<v6>[0-9a-fA-F:.]+)](:(?P<port6>\d{1,5}))?|(?P<bare>[0-9a-fA-F.]*:[0-9a-fA-F.]*:[0-9a-fA-F:.]*)"
    r"|(?P<name>[\w.-]+)(:(?P<port>\d{1,5}))?"
)


def _identity(source: Any) -> Any:
    """Return what is equal for callables that make the same: a lambda is a new object each time its line runs."""
    if isinstance(source, partial):
        words = sorted(source.keywords.items())
        return (_identity(source.func), *map(_compared, source.args), *((k, _compared(v)) for k, v in words))
    if isinstance(source, FunctionType):
        cells = [cell if _is_empty(cell) else cell.cell_contents for cell in source.__closure__ or ()]
        words = sorted((source.__kwdefaults__ or {}).items())
        held = [*cells, *(source.__defaults__ or ()), *(value for _, value in words)]
        # Equal lines of two modules have equal code.
        return source.__code__, id(source.__globals__), *map(_compared, held)
    return _compared(source)


def _compared(value: Any) -> Any:
    """Return what is compared for a value: itself, its content, or that it is the same object."""
    if isinstance(value, partial | FunctionType):
        return _identity(value)
    try:
        hash(value)
    except TypeError:
        try:
            return pickled(value)
        except Exception:
            return _Same(value)
    return value


@final
class _Same:
    """Equal for the same object, which it keeps, so that its id isn't given to another one."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self) -> int:
        return id(self._value)


def _is_empty(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises
    except ValueError:
        return True
    return False


def _check_kind(executor: Any) -> None:
    """Raise for an executor that can't be used."""
    if not callable(getattr(executor, "submit", None)):
        raise TypeError(
            f"executor must be or make a concurrent.futures.Executor (got {executor!r}); pass one such as {_RECIPE}"
        )
    if isinstance(executor, ThreadPoolExecutor):
        raise TypeError(
            "executor must run its tasks in other processes (got a ThreadPoolExecutor); leave it out: a `def` runs in "
            "a thread anyway, and afnio.set_threads sets how many there are"
        )
    method = getattr(getattr(executor, "_mp_context", None), "get_start_method", None)
    if isinstance(executor, ProcessPoolExecutor) and method is not None and method() == "fork":
        raise ValueError(
            "executor must not fork, because Afnio has threads whose locks a forked worker keeps (got a "
            f"ProcessPoolExecutor that does); pass {_RECIPE}"
        )


# The pool


class _RefusedError(Exception):
    """A task did not run, because its executor is broken or shut down."""


class _LostError(Exception):
    """A task ended without an outcome.

    Attributes:
        alone: True if the executor knows that this task's worker ended.
        ends: of how many workers it tells.
    """

    def __init__(self, why: str, *, alone: bool = False, ends: int = 1) -> None:
        super().__init__(why)
        self.alone = alone
        self.ends = ends


@final
class WorkerPool:
    """An executor in use. It lives on the runtime's loop."""

    def __init__(self, runtime: Runtime, workers: Workers) -> None:
        self._runtime = runtime
        self._source = workers.executor
        self._ours = not isinstance(workers.executor, Executor)
        self._executor: Any = None
        self._broken = ""
        self._places: dict[int | None, anyio.Semaphore] = {}
        self._turns = Turns()
        self._open = 0
        self._submitted = 0
        self._futures: set[Future[Any]] = set()  # those of cancelled lanes, too
        self._ends_at_exit = False
        self._lost = 0
        self._engine, self._workers = "", 0
        self._starting: Task | None = None
        self._started = anyio.Event()
        # A start that failed does so for the lanes that have come by then. Later ones try again.
        self._numbers = itertools.count(1)
        self._failed = 0
        self._why: Exception | None = None

    async def run(self, name: str, task: Callable[[], Any], *, most: int | None = None) -> Ended:
        """Run one lane's task until it has ended.

        Args:
            name: the function's.
            task: returns the arguments of `run_task`, for each attempt.
            most: lanes in flight, of those that are given the same number.

        Raises:
            WorkerLostError: if it has lost its worker `ATTEMPTS` times.
            ExecutorError: if the executor is broken and can't be replaced.
        """
        number = next(self._numbers)
        self._open += 1
        try:
            await self._ready(number)
            places = self._places.get(most)
            if places is None:
                places = anyio.Semaphore(most or AHEAD * self._workers, fast_acquire=True)
                self._places[most] = places
            async with places:
                return await self._until_ended(number, name, task)
        finally:
            self._open -= 1

    def state(self) -> ExecutorState:
        """Return what it does now; from any thread."""
        submitted = self._submitted
        return ExecutorState(
            name=_callable_name(self._source),
            engine=self._engine,
            workers=self._workers,
            running=submitted,
            waiting=max(0, self._open - submitted),
            lost=self._lost,
        )

    async def _until_ended(self, number: int, name: str, task: Callable[[], Any]) -> Ended:
        turns, lost, refused, suspected = self._turns, 0, 0, False
        try:
            while True:
                await (turns.enter_alone() if suspected else turns.enter_together())
                try:
                    return await self._once(number, task, alone=suspected)
                except _RefusedError as error:
                    refused += 1
                    if refused >= ATTEMPTS:
                        raise ExecutorError(
                            f"an executor must run tasks (got {error}, {refused} times); see that it is open, and its "
                            "cluster there"
                        ) from None
                except _LostError as error:
                    self._lost += 1
                    lost += error.ends if suspected or error.alone else 0
                    if lost >= ATTEMPTS and suspected:
                        raise WorkerLostError(
                            f"{name} must not end its worker process (got {lost} ends in a row, at last {error}); look "
                            "for a crash, os._exit or too little memory in it"
                        ) from None
                    if not suspected and (not error.alone or lost >= ATTEMPTS):
                        suspected, lost = True, 0
                        turns.suspects += 1  # before anybody else begins
                finally:
                    turns.leave()
        finally:
            if suspected:
                turns.end_suspicion()

    async def _once(self, number: int, task: Callable[[], Any], *, alone: bool) -> Ended:
        """Submit the task once.

        Raises:
            _RefusedError: if the executor didn't run it.
            _LostError: if nothing came back.
        """
        executor = await self._ready(number)
        if alone and isinstance(executor, DaskExecutor):
            await anyio.to_thread.run_sync(executor.settle, abandon_on_cancel=True)
        arguments = await task()
        if isinstance(executor, DaskExecutor):
            arguments = (*arguments, new_mark())
        done = anyio.Event()
        try:
            future: Future[Any] = executor.submit(run_task, *arguments)
        except Exception as error:  # broken, shut down, or its cluster is gone
            self._drop(executor, error)
            raise _RefusedError(reason(error)) from None
        self._submitted += 1
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        future.add_done_callback(partial(self._wake, done))
        try:
            await done.wait()
        except BaseException:
            future.cancel()
            raise
        finally:
            self._submitted -= 1
        try:
            ended = Ended(*future.result())
        except WorkerLostError as error:
            raise _LostError(str(error), alone=True) from None
        except (BrokenExecutor, CancelledError) as error:
            self._drop(executor, error)
            raise _LostError(reason(error)) from None
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                # Dask's, of a task that was next in line at so many workers that ended.
                ends = getattr(error, "allowed_failures", ATTEMPTS) + 1
                raise _LostError(f"Dask's {type(error).__name__}", ends=ends) from None
            self._drop(executor, error)
            raise _RefusedError(reason(error)) from None
        if ended.ending == "lost":
            forget(arguments[-1])
            raise _LostError("its worker ended")
        return ended

    def _wake(self, event: anyio.Event, future: object) -> None:
        with suppress(RuntimeClosedError):
            self._runtime.post(event.set)

    def _drop(self, executor: Any, error: BaseException) -> None:
        """Use an executor no longer."""
        if self._executor is not executor:
            return  # another lane has dropped it
        self._executor = None
        if self._ours:
            _shut_down(executor)
        else:
            self._broken = (
                f"an executor must work while lanes need it (got {reason(error)}); pass a callable that makes it, such "
                f"as {_RECIPE}, so that it can be replaced"
            )

    # Its start

    async def _ready(self, number: int) -> Any:
        """Return the executor, started.

        Raises:
            ExecutorError: if it can't be.
        """
        while self._executor is None:
            if self._broken:
                raise ExecutorError(self._broken)
            if self._why is not None and number <= self._failed:
                raise type(self._why)(*self._why.args)
            if self._starting is None:
                self._started = anyio.Event()
                self._starting = self._runtime.spawn(self._start(), Context())
            await self._started.wait()
        return self._executor

    async def _start(self) -> None:
        """Make the executor and wait for its first worker. In a task, because no lane's cancellation may end it."""
        try:
            self._executor = await self._made()
        except Exception as error:
            self._why = error
            self._failed = next(self._numbers)
        finally:
            self._starting = None
            self._started.set()

    async def _made(self) -> Any:
        last, ended, killed = "its workers ended", 0, 0
        while ended < (STARTS if self._ours else 1):
            greeted = anyio.Event()
            limiter = anyio.CapacityLimiter(1)
            make = partial(self._make, partial(self._wake, greeted))
            executor, greetings, processes = await anyio.to_thread.run_sync(make, limiter=limiter)
            gone = await _first_task(executor, greeted)
            if greeted.is_set():
                first = next(each for each in greetings if each.done())
                error = None if first.cancelled() else first.exception()
                if error is None and not first.cancelled():
                    return executor
                last = "its tasks were cancelled" if error is None else reason(error)
            else:
                error = ExecutorError(gone)
                last = gone
            if self._ours:
                _shut_down(executor)
            if error is not None and not isinstance(error, BrokenExecutor | WorkerLostError):
                break
            wait = partial(_were_killed, processes)
            if not self._ours or not await anyio.to_thread.run_sync(wait, abandon_on_cancel=True):
                ended += 1
                continue
            pause = min(LONGEST_PAUSE, PAUSE * 2**killed)
            killed += 1
            logging.getLogger("afnio").warning(
                "The workers of %s were killed while they started (%d times in a row); look for too little memory. The "
                "next start is in %g s.", _callable_name(self._source), killed, pause,
            )  # fmt: skip
            await anyio.sleep(pause)
        raise ExecutorError(
            f"an executor's workers must live until their first task (got {last}); {_advice()}"
        )

    def _make(self, greeted: Callable[[object], object]) -> tuple[Any, list[Future[Any]], list[Any]]:
        """Make the executor and submit its first tasks; in a thread, because starting processes takes its time.

        Returns:
            the executor, the futures of its first tasks, and its processes if it has some on this machine.
        """
        source = self._source
        try:
            executor = source if isinstance(source, Executor) else source()
        except Exception as error:
            raise ExecutorError(
                f"the callable given as executor must make one (got {reason(error)}); call it by itself to see why"
            ) from error
        _check_kind(executor)
        if isinstance(executor, ProcessPoolExecutor) and _is_from_stdin():
            raise ExecutorError(
                f"an executor's workers must be able to import the program (got one from standard input); {_advice()}"
            )
        if is_dask(executor):
            executor = DaskExecutor(executor)
        if self._ours and isinstance(executor, ProcessPoolExecutor) and not executor._processes:
            # Also a worker that never gets a task must end with this process.
            pool: Any = executor
            then = (pool._initializer, pool._initargs) if pool._initializer else None
            pool._initializer, pool._initargs = start_worker, (os.getpid(), then)
        self._engine, self._workers = _engine(executor), _size(executor)
        try:
            count = max(1, min(self._workers, self._open))
            futures = [executor.submit(start_worker, os.getpid()) for _ in range(count)]
        except BrokenExecutor as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            futures = [broken]
        except Exception as error:
            raise ExecutorError(
                f"an executor must take tasks (got {reason(error)}); keep it open while lanes need it, or pass a "
                f"callable that makes it, such as {_RECIPE}"
            ) from error
        if self._ours and not self._ends_at_exit:
            # An interpreter waits for all tasks of its pools before it runs `atexit`. What was registered last runs
            # first, and loky registers itself with the first task.
            register: Any = threading._register_atexit  # type: ignore[attr-defined]
            with suppress(RuntimeError):  # it is ending now
                register(partial(_end_at_exit, weakref.ref(self)))
                self._ends_at_exit = True
        processes = list((getattr(executor, "_processes", None) or {}).values())
        for future in futures:
            future.add_done_callback(greeted)
        return executor, futures, processes

    def end_at_exit(self) -> None:
        """End the workers that are in a task, because nobody can read its result any more."""
        executor, self._broken = self._executor, "an executor must not be used while its program ends"
        if executor is not None and any(not future.done() for future in list(self._futures)):
            self._executor = None
            _kill(executor)

    async def aclose(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
        if self._executor is not None and self._ours:
            _shut_down(self._executor)


async def _first_task(executor: Any, greeted: anyio.Event) -> str:
    """Wait for a first task, and return why none came."""
    with anyio.move_on_after(START):
        while not greeted.is_set():
            if isinstance(executor, DaskExecutor) and executor.gone:
                return executor.gone
            with anyio.move_on_after(LOOK):
                await greeted.wait()
    return f"no worker within {START:g} s"


def _size(executor: Any) -> int:
    """Return the number of workers of an executor, as far as it says."""
    size = getattr(executor, "_max_workers", None)
    return size if isinstance(size, int) and size > 0 else os.cpu_count() or 1


_ENGINES: Final = {"concurrent": "processes", "loky": "loky", "afnio": "Ray"}


def _engine(executor: Any) -> str:
    """Return what runs an executor's tasks, by the package of its class."""
    kind = type(executor)
    if kind is DaskExecutor:
        return "Dask"
    return _ENGINES.get(kind.__module__.partition(".")[0], kind.__name__)


def _callable_name(source: Any) -> str:
    while isinstance(source, partial):
        source = source.func
    if isinstance(source, Executor):
        return type(source).__name__
    return str(getattr(source, "__qualname__", type(source).__name__))


def _shut_down(executor: Any) -> None:
    """End an executor that we made, without waiting: a cluster may take long."""

    def end() -> None:
        with suppress(Exception):
            if "cancel_futures" in inspect.signature(executor.shutdown).parameters:
                executor.shutdown(wait=False, cancel_futures=True)
            else:
                executor.shutdown(wait=False)

    threading.Thread(target=end, name="afnio-executor-end", daemon=True).start()


def _end_at_exit(pool: weakref.ref[WorkerPool]) -> None:
    workers = pool()
    if workers is not None:
        workers.end_at_exit()


def _kill(executor: Any) -> None:
    """End the workers of a pool of this machine."""
    with suppress(Exception):
        if "kill_workers" in inspect.signature(executor.shutdown).parameters:  # loky's
            executor.shutdown(wait=False, kill_workers=True)
        else:
            for process in list((getattr(executor, "_processes", None) or {}).values()):
                process.kill()


def _were_killed(processes: list[Any]) -> bool:
    """Return whether workers ended because somebody else killed them, and none by itself. Blocks until they have ended.

    A broken pool ends the rest of its workers with the same signals, so those say nothing about who was first.
    """
    until = time.monotonic() + ENDING
    codes = []
    for process in processes:
        process.join(ENDING)
        # The pool's own thread may have been first to ask the system for the code, and not have noted it yet.
        while process.exitcode is None and time.monotonic() < until:
            time.sleep(0.01)
        codes.append(process.exitcode)
    return bool(codes) and all(code in (-signal.SIGKILL, -signal.SIGTERM) for code in codes)


def _is_from_stdin() -> bool:
    return getattr(sys.modules.get("__main__"), "__file__", None) == "<stdin>"


def _advice() -> str:
    """Return what to do about workers that don't start."""
    if _is_from_stdin():
        return "save the program in a file and run that, because each worker imports it"
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    with suppress(OSError, UnicodeDecodeError):
        if file is not None and "__main__" not in Path(file).read_text("utf-8"):
            guard = 'if __name__ == "__main__":'
            return f"put the code of {Path(file).name} under `{guard}`, because each worker imports it"
    return "look at what the workers wrote to stderr"


# Turns: which lanes may run together


@final
class Turns:
    """Lanes run together, until a pool breaks. Then the suspects run alone, one after the other, in their order.

    Attributes:
        suspects: lanes that were in a pool when it broke, and have not ended since.
    """

    def __init__(self) -> None:
        self.suspects = 0
        self._inside = 0
        self._line: deque[anyio.Event] = deque()
        self._calm = anyio.Event()

    async def enter_together(self) -> None:
        """Wait until there are no suspects."""
        while self.suspects:
            await self._calm.wait()
        self._inside += 1

    async def enter_alone(self) -> None:
        """Wait until no other lane is in the pool. The caller is one of the suspects."""
        if not self._inside:
            self._inside = 1
            return
        turn = anyio.Event()
        self._line.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.leave()
            else:
                self._line.remove(turn)
            raise

    def leave(self) -> None:
        """Leave the pool. The last one gives the place to the first suspect in line."""
        self._inside -= 1
        if not self._inside and self._line:
            self._inside = 1
            self._line.popleft().set()

    def end_suspicion(self) -> None:
        """A suspect has ended. After the last one, lanes run together again."""
        self.suspects -= 1
        if not self.suspects:
            calm, self._calm = self._calm, anyio.Event()
            calm.set()
