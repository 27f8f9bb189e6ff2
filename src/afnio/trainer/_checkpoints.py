"""Checkpoints: the folder of a run's checkpoints, `last`, `best` and `epoch-N`, written off the hot path."""

from __future__ import annotations

import itertools
import logging
import math
import os
import platform
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, final

import anyio
from anyio.abc import TaskGroup, TaskStatus

from afnio._archive import TEMPORARY, documents_of, fields_of, foreign, packed, replace, unpacked
from afnio.autodiff._variable import Variable
from afnio.errors import CheckpointError, LockHeldError
from afnio.runtime._files import LockFile
from afnio.trainer._options import Outcome

LAST: Final = "last"
BEST: Final = "best"
EPOCH: Final = "epoch-"


class _SavedFile(NamedTuple):
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
        self._queue: deque[_SavedFile] = deque()
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
        self._queue.append(_SavedFile(checkpoint.snapshot(), epoch, written))
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

    def _write(self, entry: _SavedFile) -> None:
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


# Checkpoint: everything that a training run needs to go on, in a file that people can read.


def current_versions() -> dict[str, str]:
    """Return what writes a checkpoint here.

    >>> sorted(current_versions())
    ['afnio', 'python']
    """
    from afnio import __version__

    return {"afnio": __version__, "python": platform.python_version()}


@dataclass(slots=True)
class Checkpoint:
    """A run as it stood after some step.

    The file is a zip of JSON documents: `parameters.json` with the agent's texts, `optimizer.json`,
    `loop.json`, `rng.json`, `ledger.json`, `callbacks.json`, `versions.json`.

    Attributes:
        agent: the agent's state dict: Variables by name.
        optimizers: the state dict of each optimizer.
        sampler: state of the training loader, or None where it has none.
        rng: states of generators; whatever the loop puts there.
        counters: epoch, step, batch, samples.
        metrics: the newest of each; `Checkpoints` finds the monitored one here.
        history: metrics of each step, epoch and validation pass; what an entry holds is never changed.
        ledger: what was spent, as JSON types.
        callbacks: the state of each callback that has one.
        versions: of Afnio and Python that wrote it.

    >>> Checkpoint(agent={"task": Variable("Be brief.")}, counters={"epoch": 3}).counters["epoch"]
    3
    """

    agent: dict[str, Any]
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    sampler: dict[str, Any] | None = None
    rng: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[Any] = field(default_factory=list)
    ledger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=current_versions)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all, a kill at any point included; waits for values and the disk.

        Raises:
            TypeError: for a value that JSON can't hold.
            OSError: if the disk is full, or the folder gone or read-only.
        """
        replace(Path(path), self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the checkpoint in a file of this format or of an older one; opening it runs no code of it.

        Raises:
            CheckpointError: for a file that is missing, damaged, newer, or something else, such as a pickle.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(
                f"the checkpoint [{path}] can't be read ({reason}); name another"
            ) from error
        try:
            documents = unpacked(content)
        except ValueError as error:
            raise foreign(path, error) from error
        return cls(**fields_of(path, documents))

    def check(self, name: object) -> None:
        """Raise a `CheckpointError` unless a training can go on from it; `name` is the file's.

        What agent, optimizers, loaders and callbacks make of their states shows when they load them.
        """
        try:
            Counters.of(self.counters)
            for metric, value in self.metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"its metric {metric} must be a number (got {value!r})")  # noqa: TRY004
            if not isinstance((self.sampler or {}).get("train"), dict | None):
                raise ValueError("the state of its training loader must be a dict")  # noqa: TRY004
        except ValueError as error:
            raise unusable(name, error) from error
        for number, entry in enumerate(self.history):
            try:
                _check_entry(entry)
            except Exception as error:  # an edited entry can hold anything
                reason = f"entry {number} of its history has {type(error).__name__}: {error}"
                raise unusable(name, reason) from error

    def to_bytes(self) -> bytes:
        """Return the file's content; equal checkpoints have equal bytes."""
        return packed(documents_of({name: getattr(self, name) for name in self.__slots__}))

    def snapshot(self) -> Self:
        """Return a copy that later training doesn't change; nothing is waited for."""
        kept = {name: _kept(getattr(self, name)) for name in self.__slots__ if name != "history"}
        # A long training has very many entries, and what an entry holds is never changed.
        return type(self)(**kept, history=[dict(entry) for entry in self.history])


def unusable(name: object, reason: object) -> CheckpointError:
    """Return the error for a checkpoint that a training can't go on from."""
    return CheckpointError(
        f"the training can't go on from the checkpoint [{name}] ({' '.join(str(reason).split())}); name another, or "
        "put it right"
    )


def _check_entry(entry: Any) -> None:
    counts = [entry[name] for name in ("epoch", "step", "samples", "failed", "skipped")]
    counts += [metric[1] for metric in entry["metrics"].values()]
    if entry["kind"] not in ("step", "epoch", "val") or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError("a count that is none")
    flat = Outcome.from_json(entry).flat()
    if not all(isinstance(value, float) for value in flat.values()):
        raise ValueError("a metric that is no number")
    dict(entry["values"])


def _kept(value: Any) -> Any:
    if isinstance(value, Variable):
        # Over the slots of now, whatever is assigned later.
        copy = type(value).over(list(value.cell()[0]), value.batch, value.role)
        copy._provenance = value.provenance
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_kept(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


# Folder: the checkpoints of one run and the journal beside them; an earlier run's are put aside, never lost.


JOURNAL: Final = "calls.journal"
EARLIER: Final = "earlier"


def take_up(
    folder: Path, checkpoints: Checkpoints | None, ckpt_path: str | os.PathLike[str] | None
) -> Checkpoint | None:
    """Return the checkpoint to go on from, None to begin. An earlier run's files are put aside.

    Args:
        checkpoints: that will be written to `folder`, None where none are kept.
        ckpt_path: "last", "best", "epoch-N" or a file; "last" begins where there is none yet.

    Raises:
        CheckpointError: if there is none of that name, or it is damaged.
    """
    if ckpt_path is None:
        if checkpoints is not None:
            put_aside(folder)
        return None
    if os.fspath(ckpt_path) == LAST and not (folder / LAST).exists():
        return None
    path = (checkpoints or Checkpoints(folder)).path_of(ckpt_path)
    checkpoint = Checkpoint.read(path)
    checkpoint.check(path)
    if checkpoints is not None:
        if path.resolve().parent == folder.resolve():
            checkpoints.take_up(checkpoint)
        else:
            put_aside(folder)
    return checkpoint


def put_aside(folder: Path) -> Path | None:
    """Move the files of the run that had `folder` to `earlier/1`, `earlier/2`, …; return where, if there were any.

    Its journal goes with its checkpoints: each can only be gone on with together with the other.
    """
    if not folder.is_dir():
        return None
    mine = [path for path in sorted(folder.iterdir()) if _belongs(path.name)]
    if not mine:
        return None
    numbers = itertools.count(1)
    target = next(path for n in numbers if not (path := folder / EARLIER / str(n)).exists())
    for made in (target.parent, target):
        made.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(mine, key=lambda path: path.name != LAST):  # without `last` it is no run to go on with
        path.rename(target / path.name)
    return target


def _belongs(name: str) -> bool:
    journal = name.startswith(JOURNAL) and not name.endswith(".lock")
    return name in (LAST, BEST) or name.removeprefix(EPOCH).isdecimal() or journal


# Ranking: which epochs' checkpoints are kept, and which is the best.


class Ranked(NamedTuple):
    """An epoch and its monitored metric, None where it has none."""

    epoch: int
    score: float | None


@final
class Ranking:
    """Ranks epochs by a metric; of equal ones the earlier is better.

    Args:
        monitor: the metric's name; without one nothing is best, and the newest epochs are kept.
        mode: "max" where a larger value is better, else "min".
        top: how many epochs are kept; -1 for all.

    >>> ranking = Ranking("loss", "min", top=1)
    >>> ranking.add(1, 0.5), ranking.add(2, 0.7), ranking.add(3, 0.3)
    ([], [2], [1])
    >>> ranking.best
    0.3
    """

    def __init__(self, monitor: str | None, mode: str = "max", top: int = -1) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min" (got {mode!r}); "max" where larger is better')
        if isinstance(top, bool) or not isinstance(top, int) or top < -1:
            raise ValueError(f"save_top_k must be a number of files, or -1 for all (got {top!r})")
        self.monitor = monitor
        self.best: float | None = None
        self._sign: Final = 1 if mode == "max" else -1
        self._top = top
        self._kept: list[Ranked] = []

    def score(self, metrics: Mapping[str, Any]) -> float | None:
        """Return the monitored one of `metrics`, None where it is missing or no number."""
        value = None if self.monitor is None else metrics.get(self.monitor)
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    def is_better(self, score: float | None) -> bool:
        """Whether it beats the best so far."""
        return score is not None and (self.best is None or self._worth(score) > self._worth(self.best))

    def add(self, epoch: int, score: float | None) -> list[int]:
        """Take in an epoch and return those that are to go, perhaps itself; one added before is replaced."""
        if self.is_better(score):
            self.best = score
        epochs = [ranked for ranked in self._kept if ranked.epoch != epoch] + [Ranked(epoch, score)]
        epochs.sort(key=self._place)
        top = len(epochs) if self._top < 0 else self._top
        self._kept = epochs[:top]
        return [ranked.epoch for ranked in epochs[top:]]

    def _place(self, ranked: Ranked) -> tuple[float, int]:
        if self.monitor is None:
            return 0.0, -ranked.epoch
        return -self._worth(ranked.score), ranked.epoch

    def _worth(self, score: float | None) -> float:
        return -math.inf if score is None else self._sign * score


# State: what the loop tells of itself, as plain data; for displays and callbacks.


Stage = Literal["fit", "validate", "test", "predict"]
"""What the Trainer was asked to do."""

Phase = Literal["train", "val", "test", "predict"]
"""What is under way; a fit has "train" and "val", which overlap."""

Moment = Literal["batch", "validation", "epoch", "end"]
"""Why a display is told: a batch has ended, a validation pass, an epoch, or all."""


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What lies ahead, as known when it starts.

    Attributes:
        stage: what the Trainer was asked to do.
        agent: the agent's class.
        epochs: how many there will be at most; None if only other limits end the run, and without training.
        batches, samples: of one epoch of training, or of the pass; None where the loader has no length.
        val_batches, val_samples: of one validation pass; None without validation, or where not known.
        max_steps, max_time, max_cost: the limits: steps, seconds, dollars; None for none.
        monitor: the metric that the best checkpoint is chosen by, such as "val_loss".
        mode: "max" where a larger value is better, else "min".
        folder: where checkpoints go; None where none are kept.
        resumed: the checkpoint that this goes on from, None for a start.
    """

    stage: Stage
    agent: str
    epochs: int | None = None
    batches: int | None = None
    samples: int | None = None
    val_batches: int | None = None
    val_samples: int | None = None
    max_steps: int | None = None
    max_time: float | None = None
    max_cost: float | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "max"
    folder: str | None = None
    resumed: str | None = None


@final
@dataclass(frozen=True, slots=True)
class LoopState:
    """How far the loop is.

    Attributes:
        phase: whose batch or pass this is about.
        moment: why it is told.
        epoch: the current one, from 1; 0 outside of training.
        epochs: how many there will be at most, None if not known.
        batch, batches: batches of this epoch or pass that have ended, of how many (None if not known).
        step: optimizer steps that have ended, over all epochs.
        samples, total: samples of this epoch or pass that have ended, failed ones among them, of how many.
        failed: those of them that failed.
        train: training metrics of the epoch so far, without prefix, such as "loss" and "accuracy".
        val: metrics of the last validation pass (or of the pass under way in validate, test).
        best: the best value of the monitored metric so far.
        seconds: of this call of the Trainer so far, by the monotonic clock.
        started: that clock's reading (`time.monotonic()`) when the call began.
    """

    phase: Phase
    moment: Moment
    epoch: int
    epochs: int | None
    batch: int
    batches: int | None
    step: int
    samples: int
    total: int | None
    failed: int
    started: float
    seconds: float
    train: Mapping[str, Any] = field(default_factory=dict)
    val: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = None


# Counters: how far a training is.


@final
@dataclass(slots=True)
class Counters:
    """How far a training is; what a checkpoint says of it.

    Attributes:
        epoch: epochs that have ended.
        batch: batches of the epoch under way that were trained on.
        step: steps that have ended, over all epochs.
        samples: samples that were trained on.
        skipped: steps in a row that changed nothing because of an error.
        validating: whether the parameters' validation was under way when the checkpoint was made.
        scope: the address path that the training's launches start with, the same when it goes on.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    skipped: int = 0
    validating: bool = False
    scope: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the counters of a checkpoint; what an older one lacks is at its start.

        Raises:
            ValueError: for a value that is no counter's.
        """
        known = {name: data[name] for name in cls.__slots__ if name in data}
        for name, value in known.items():
            kind = type(getattr(_START, name))
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"its counter {name} must be {_KINDS[kind]} (got {value!r})")
        return cls(**known)


_START: Final = Counters()
_KINDS: Final = {int: "a whole number from 0", bool: "true or false", str: "a text"}
