"""Dask: what its executor doesn't do by itself. Nothing here imports it.

**It runs a task again by itself**, on another worker, if the first one died, up to three times. A task that ends its
worker would end four, and the lanes beside it four times. So each task has a mark: a file that is there while it runs.
A second run that finds it ends at once, as lost, and Afnio decides what runs again.

**It may lose its workers for good**: a nanny gives up a worker that ends while it starts. So a lane that is suspected
of ending workers waits until all of them are there.

**It waits for ever** for a cluster without workers. A thread looks, and fails the open tasks.
"""

from __future__ import annotations

import functools
import hashlib
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, final

from afnio.errors import ExecutorError

LOOK: Final = 2.0
"""Seconds between looks at the cluster."""
PATIENCE: Final = 60.0
"""Seconds that a cluster may be without workers while tasks are open."""
BACK: Final = 30.0
"""The most seconds to wait for workers that have died and start again."""
SETTLED: Final = 1.0
"""Seconds after which the nanny of a new worker has noticed that it is there."""


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
        while not self._ended.wait(LOOK):
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
