"""Checkpoints: the folder of a run's checkpoints, `last`, `best` and `epoch-N`, written off the hot path."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from afnio.archive import TEMPORARY, replace
from afnio.errors import CheckpointError
from afnio.runtime._files import LockFile, LockHeldError
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.ranking import Ranking

LAST: Final = "last"
BEST: Final = "best"
EPOCH: Final = "epoch-"


class _Entry(NamedTuple):
    """What waits to be written: a checkpoint, and the epoch that ended with it (None within one)."""

    checkpoint: Checkpoint
    epoch: int | None
    written: anyio.Event


@final
class Checkpoints:
    """Keeps a folder of checkpoints for one run, as `async with`.

    `save` returns at once: a worker thread encodes and writes, in order. While it is busy at most one
    checkpoint of an unfinished epoch waits, the newest; those of finished epochs are never dropped. Leaving
    the block waits until all is written. A write that fails is told once to `warn`, leaves the files as
    they were, and is tried again with the next checkpoint. While the block lasts, no other trainer can use
    the folder.

    Args:
        folder: it is made where it is missing.
        monitor: the metric that `best` is chosen by; without one there is no `best`, and the newest
            epochs are kept.
        mode: "max" where a larger value is better, else "min".
        save_top_k: how many `epoch-N` are kept, the best ones; -1 for all.
        warn: told in a sentence what went wrong; by default it is logged.

    Raises:
        CheckpointError: at the start of the block, if another trainer uses the folder or it can't be written.

    >>> import tempfile
    >>> async def train(folder):
    ...     async with Checkpoints(folder, monitor="val_accuracy") as checkpoints:
    ...         await checkpoints.save(Checkpoint(agent={}, metrics={"val_accuracy": 0.8}), epoch=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     anyio.run(train, folder)
    ...     sorted(os.listdir(folder))
    ['best', 'epoch-1', 'last']
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        monitor: str | None = None,
        mode: str = "max",
        save_top_k: int = -1,
        warn: Callable[[str], object] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self._ranking = Ranking(monitor, mode, save_top_k)
        self._warn = warn or logging.getLogger("afnio").warning
        self._failure = ""
        self._unranked = False
        self._queue: deque[_Entry] = deque()
        self._lock: LockFile | None = None
        self._tasks: TaskGroup | None = None
        self._newest: anyio.Event | None = None

    @property
    def best_score(self) -> float | None:
        """The monitored metric of `best`, None before there is one."""
        return self._ranking.best

    def path_of(self, name: str | os.PathLike[str]) -> Path:
        """Return the file of "last", "best", "epoch-N" or of a path.

        Raises:
            CheckpointError: if there is none.
        """
        for path in (self.folder / name, Path(name)):
            if path.is_file():
                return path
        found = ", ".join(_names(self.folder)) or "none"
        raise CheckpointError(
            f"there is no checkpoint [{os.fspath(name)}] in [{self.folder}] (there: {found}); name one of these, or "
            "a path"
        )

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`: the folder's epochs up to its own compete with those that come.

        Files of later epochs belong to a course that is given up; they are left until they are replaced. `best`
        becomes the best of the epochs that count: it may be of a later one, or missing where a kill came between.
        """
        reached = checkpoint.counters.get("epoch") or 0
        ranking, winner = self._ranking, None
        for name in sorted(_names(self.folder), key=lambda name: (name != BEST, len(name), name)):
            with suppress(CheckpointError):  # a damaged file competes with nothing
                found = Checkpoint.read(self.folder / name)
                found.check(name)
                epoch = found.counters.get("epoch") or 0
                if name == LAST or epoch > reached:
                    continue
                score = ranking.score(found.metrics)
                if ranking.is_better(score):
                    ranking.best, winner = score, name
                if name != BEST:
                    ranking.add(epoch, score)
        if winner not in (None, BEST):
            replace(self.folder / BEST, (self.folder / winner).read_bytes())

    async def save(self, checkpoint: Checkpoint, *, epoch: int | None = None) -> None:
        """Have `checkpoint` written as `last`, as it is now.

        Args:
            epoch: the number of the epoch that has ended with it; it becomes `epoch-N` then, and `best` if
                its monitored metric is better than all before.
        """
        if self._tasks is None:
            raise RuntimeError("checkpoints are saved inside of their `async with` block")
        replaced = self._queue and self._queue[-1].epoch is None
        # Who waits for the one that is replaced waits for the newer one.
        written = self._queue.pop().written if replaced else anyio.Event()
        self._queue.append(_Entry(checkpoint.snapshot(), epoch, written))
        self._newest = written
        self._wake.set()

    async def flush(self) -> None:
        """Wait until all that was saved is on disk, or its failure was told."""
        if self._newest is not None:
            await self._newest.wait()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._open)
        self._closed, self._newest = False, None
        self._wake, self._ended = anyio.Event(), anyio.Event()
        self._tasks = await anyio.create_task_group().__aenter__()
        # A cancellation that came while the folder was opened is for the block, whose end closes it again.
        with anyio.CancelScope(shield=True):
            await self._tasks.start(self._write_all)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        tasks, self._tasks = self._tasks, None
        self._closed = True
        self._wake.set()
        # What was saved is kept when the run is interrupted, too.
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        # Without the block's own error, which a task group would wrap in another one.
        await tasks.__aexit__(None, None, None)

    # The writer

    async def _write_all(self, *, task_status: TaskStatus[None]) -> None:
        limiter = anyio.CapacityLimiter(1)
        with anyio.CancelScope(shield=True):
            task_status.started()
            while self._queue or not self._closed:
                if not self._queue:
                    await self._wake.wait()
                    self._wake = anyio.Event()
                    continue
                entry = self._queue.popleft()
                await anyio.to_thread.run_sync(self._write, entry, limiter=limiter)
                entry.written.set()
            await anyio.to_thread.run_sync(self._close, limiter=limiter)
            self._ended.set()

    def _open(self) -> None:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = LockFile(self.folder / "trainer.lock")
        except LockHeldError as error:
            who = (
                "this process"
                if error.holder == os.getpid()
                else f"the process [{error.holder or 'unknown'}]"
            )
            raise CheckpointError(
                f"the folder [{self.folder}] is in use by another trainer, of {who}; wait for its end, or give "
                "this one a folder of its own (default_root_dir)"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"the folder [{self.folder}] takes no checkpoints ({error}); name another (default_root_dir), "
                "or turn them off (enable_checkpointing=False)"
            ) from error
        for left in self.folder.glob(f".*{TEMPORARY}"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _write(self, entry: _Entry) -> None:
        """Write one checkpoint under all of its names; `last` comes last, so it is never ahead of them."""
        try:
            content = entry.checkpoint.to_bytes()
            if entry.epoch is not None:
                self._write_epoch(entry.epoch, entry.checkpoint, content)
            replace(self.folder / LAST, content)
        except Exception as error:  # whatever it is, training goes on
            self._tell(error)
        else:
            self._failure = ""

    def _write_epoch(self, epoch: int, checkpoint: Checkpoint, content: bytes) -> None:
        score = self._ranking.score(checkpoint.metrics)
        if score is None and self._ranking.monitor is not None and not self._unranked:
            self._unranked = True
            names = ", ".join(checkpoint.metrics) or "none"
            self._warn(
                f"epoch {epoch} can't become the best checkpoint: it has no number for the metric "
                f"[{self._ranking.monitor}] (its metrics: {names}); name another as monitor"
            )
        before, best = self._ranking.best, self._ranking.is_better(score)
        gone = self._ranking.add(epoch, score)
        try:
            if epoch not in gone:
                replace(self.folder / f"{EPOCH}{epoch}", content)
            if best:
                replace(self.folder / BEST, content)
        except BaseException:
            self._ranking.best = before  # which it is still
            raise
        for number in gone:
            (self.folder / f"{EPOCH}{number}").unlink(missing_ok=True)

    def _tell(self, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            if not self.folder.is_dir():
                reason = "the folder is gone"
        if reason != self._failure:
            self._failure = reason
            self._warn(
                f"no checkpoint was written to [{self.folder}] ({reason}); training goes on, what was written "
                "before is whole, and the next checkpoint tries again"
            )


def _names(folder: Path) -> list[str]:
    """Return the checkpoints in a folder."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name in (LAST, BEST) or _is_epoch(name)]


def _is_epoch(name: str) -> bool:
    return name.startswith(EPOCH) and name.removeprefix(EPOCH).isdecimal()
