"""The part of the engine that runs in a worker process: one function of ours, around each function of a user's.

`run_task` is what an executor gets to run. It takes bytes and returns bytes, so a pool never unpickles anything of a
user's by itself. That matters: a pool treats an exception that it can't unpickle as a dead worker, and breaks. Errors
come back as data, with their traceback as text.

A worker's first task prepares the process:

* Ctrl-C reaches the whole process group. Workers ignore it: their driver decides what ends.
* When the driver has gone, the worker ends too. A pool sees to that in an orderly exit only, and not after `kill -9` or
  the second Ctrl-C. A thread waits for the driver's end.

The last part is about Dask, which nothing here imports:

* It runs a task again by itself, on another worker, if the first one died, up to three times. A task that kills its
  worker would kill four workers, and each time fail the other lanes on them. So each task has a mark: a file that
  exists while it runs. A second run that finds it ends at once, as lost, and Afnio decides what runs again.
* It may lose its workers for good: a nanny gives up a worker that ends while it starts. So a lane that is suspected of
  ending workers waits until all of them are there.
* It waits for ever for a cluster without workers. A thread checks, and fails the open tasks.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
import multiprocessing
import os
import pickle
import secrets
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import copy_context
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, final

from afnio.errors import ExecutorError

# How a task ended: its value, its exception, a sentence on what can't be pickled, or its worker ended in an
# earlier run.
Ending = Literal["value", "error", "unread", "lost"]
# Seconds between checks of the driver if there is nothing to wait on.
_LOOK: Final = 0.5
# The most functions that a worker keeps unpickled.
_KEPT: Final = 32


class Ended(NamedTuple):
    """The result of a task in a worker.

    Attributes:
        ending: see `Ending`.
        data: the pickled value or exception; empty if it can't be pickled.
        name: the exception's class.
        text: its text, or the sentence.
        trace: the traceback, for errors.
    """

    ending: Ending
    data: bytes = b""
    name: str = ""
    text: str = ""
    trace: str = ""


def check_importing() -> None:
    """Raise in a worker process that imports the program's script: its calls would be made, and paid for, again."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "a script with executor= must not launch anything when a worker imports it (got a launch during the "
            'import); put its code under `if __name__ == "__main__":`'
        )


def start_worker(driver: int, then: tuple[Callable[..., Any], tuple[Any, ...]] | None = None) -> int:
    """Prepare this process, and return its id.

    It is the first task of a pool, so that its start can be waited for, and the initializer of pools that take one.

    Args:
        driver: the process id of the driver.
        then: the pool's own initializer and its arguments.
    """
    _prepare(driver)
    if then is not None:
        initializer, arguments = then
        initializer(*arguments)
    return os.getpid()


def run_task(
    driver: int, function: bytes, arguments: bytes, around: bytes, mark: str = ""
) -> tuple[Any, ...]:
    """Run a function and return an `Ended` as a plain tuple. It raises nothing.

    Args:
        driver: the process id of the driver.
        function: pickled; equal bytes are unpickled once.
        arguments: the pickled positional and keyword arguments.
        around: a pickled callable that returns a context manager.
        mark: for an executor that may run the task twice; see the end of this file.
    """
    if mark:
        try:
            with marked(mark):
                return run_task(driver, function, arguments, around)
        except BegunError:
            return tuple(Ended("lost"))
    try:
        _prepare(driver)
        made = _unpickled(function)
        args, kwargs = pickle.loads(arguments)
        block: AbstractContextManager[object] = pickle.loads(around)()
    except BaseException as error:
        text = f"can't be unpickled in the worker ({_said(error)})"
        return tuple(Ended("unread", text=text, trace=_trace(error)))
    try:
        with block:
            value = made(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = _loop().run(value, context=copy_context())  # it would keep the first lane's
    except BaseException as error:
        return tuple(_failed(error))
    try:
        return tuple(Ended("value", pickled(value)))
    except Exception as error:
        text = f"returned a {type(value).__name__} that can't be pickled ({_said(error)})"
        return tuple(Ended("unread", text=text))


def pickled(value: Any) -> bytes:
    """Pickle a value: by reference what can be imported, by value what can't, if cloudpickle is installed."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:
        cloudpickle = found_cloudpickle()
        if cloudpickle is None:
            raise
        data: bytes = cloudpickle.dumps(value)
        return data


def found_cloudpickle() -> Any:
    """Return the module, or None if it isn't installed."""
    try:
        return import_module("cloudpickle")
    except ImportError:
        return None


def _failed(error: BaseException) -> Ended:
    trace = _trace(error)
    name, text = type(error).__qualname__, _text(error)
    try:
        data = pickled(error)
        pickle.loads(data)  # one with a required keyword is pickled, and can't be unpickled
    except Exception:
        data = b""
    return Ended("error", data, name, text, trace)


def _trace(error: BaseException) -> str:
    """Return the traceback without the lines of this file."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    with suppress(Exception):  # the user's `__str__` or `__repr__` may raise
        return "".join(traceback.format_exception(type(error), error, tb))
    return type(error).__qualname__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _said(error: BaseException) -> str:
    text = _text(error).partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


_functions: Final[dict[bytes, Callable[..., Any]]] = {}


def _unpickled(function: bytes) -> Callable[..., Any]:
    made = _functions.get(function)
    if made is None:
        made = pickle.loads(function)
        while len(_functions) >= _KEPT:
            with suppress(KeyError, StopIteration, RuntimeError):  # threads of a Dask worker
                del _functions[next(iter(_functions))]
        _functions[function] = made
    return made


# The process


_of_thread = threading.local()


def _loop() -> asyncio.Runner:
    """Return the thread's loop. It is the same for all lanes, because a client in a module belongs to its first one."""
    runner: asyncio.Runner | None = getattr(_of_thread, "runner", None)
    if runner is None:
        runner = _of_thread.runner = asyncio.Runner()
    return runner


_prepared: int | None = None


def _prepare(driver: int) -> None:
    global _prepared
    if _prepared == os.getpid() or driver == os.getpid():
        return
    _prepared = os.getpid()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid == driver:
        _end_after(parent.join)
    elif os.getppid() == driver:
        _end_after(_outlive)
    else:
        return  # a worker of a cluster, whose own supervisor ends it
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outlive() -> None:
    driver = os.getppid()
    while os.getppid() == driver:
        time.sleep(_LOOK)


def _end_after(wait: Callable[[], object]) -> None:
    def end() -> None:
        try:
            wait()
        except Exception:  # a start method without a pipe to its parent
            _outlive()
        os._exit(1)

    threading.Thread(target=end, name="afnio-driver-watch", daemon=True).start()


# Dask


# Seconds between checks of the cluster.
INTERVAL: Final = 2.0
# Seconds that a cluster may be without workers while tasks are open.
PATIENCE: Final = 60.0
# The most seconds to wait for workers that have died and start again.
BACK: Final = 30.0
# Seconds after which the nanny of a new worker has noticed that it is there.
SETTLED: Final = 1.0


def is_dask(executor: Any) -> bool:
    return type(executor).__module__.partition(".")[0] == "distributed"


@final
class DaskExecutor(Executor):
    """Dask's executor, whose tasks also end if its cluster is gone.

    Args:
        executor: of `client.get_executor()`.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.client = executor._client
        self._open: dict[Future[Any], None] = {}
        self._ended = threading.Event()
        self._max_workers = self._threads() or 1
        _sweep()
        threading.Thread(target=self._watch, name="afnio-dask-watch", daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(fn, *args, **kwargs)
        self._open[future] = None
        future.add_done_callback(lambda done: self._open.pop(done, None))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._ended.set()
        self._executor.shutdown(wait=wait and not cancel_futures)

    def settle(self) -> None:
        """Wait until all workers are there, for a while. Blocks."""
        until = time.monotonic() + BACK
        while self._threads() < self._max_workers and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(SETTLED)

    @property
    def gone(self) -> str:
        """Why nothing can run, or ""."""
        closed = self.client.status in ("closed", "closing", "failed")
        return "a Dask client that has lost its scheduler" if closed else ""

    def _threads(self) -> int:
        """Return how many tasks the cluster runs at a time."""
        if self.client.asynchronous:
            return 0
        with suppress(Exception):
            return sum(self.client.nthreads().values())
        return 0

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._ended.wait(INTERVAL):
            why = self.gone
            if (
                not self._open
                or self.client.asynchronous
                or self.client.status == "connecting"
                or self._threads()
            ):
                seen = time.monotonic()
            if not why and time.monotonic() - seen > PATIENCE:
                why = f"a Dask cluster without workers for {PATIENCE:g} s"
            if why:
                for future in list(self._open):
                    with suppress(InvalidStateError):
                        future.set_exception(ExecutorError(why))


# Marks


def new_mark() -> str:
    """Return the mark of one submission: the driver's host and process, and a random part."""
    return f"{_host()}-{os.getpid()}-{secrets.token_hex(16)}"


def forget(mark: str) -> None:
    """Remove the mark of a lost task. On another host it stays in the folder for temporary files."""
    _path_of(mark).unlink(missing_ok=True)


def _sweep() -> None:
    """Remove the marks that drivers on this host have left in its folder, because they were killed."""
    from afnio.runtime._files import is_alive  # a worker imports this module, and needs no SQLite

    for path in Path(tempfile.gettempdir()).glob(f"{_BEGUN}{_host()}-*"):
        driver = path.name.removeprefix(f"{_BEGUN}{_host()}-").partition("-")[0]
        if driver.isdecimal() and not is_alive(int(driver)):
            with suppress(OSError):  # another user's, or another sweep was quicker
                path.unlink()


@functools.cache
def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:12]


_BEGUN: Final = "afnio-begun-"


def _path_of(mark: str) -> Path:
    return Path(tempfile.gettempdir(), f"{_BEGUN}{mark}")


class BegunError(Exception):
    """The task has begun before, and its worker has ended."""


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Mark a task as begun while the block runs; in its worker.

    Raises:
        BegunError: if it was.
    """
    path = _path_of(mark)
    try:
        path.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        raise BegunError from None  # the mark stays: Dask may recompute this answer, too
    except OSError:  # a folder that can't be written to: Dask's own count must do
        yield
        return
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
