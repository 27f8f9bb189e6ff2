"""Checkpoints: a run's state in files, `last`, `best` and `epoch-N`, written while the training continues.

A `Checkpoint` is everything that a training needs to continue: texts, optimizers, positions, history. Its file is JSON
in a zip, so people can read it, and opening one runs no code. It is replaced whole, so a kill at any point leaves the
new file or the one before.

`Checkpoints` owns the folder for one run. `save` only copies references: a worker thread encodes and writes. If the
disk is slower than the training, checkpoints within an epoch are dropped in favour of newer ones; those of finished
epochs never are. A full disk doesn't end a training: the write is reported and the next checkpoint tries again.

`take_up` decides what happens to the files of an earlier run: continue from them, or move them to `earlier/N`. `Plan`
and `LoopState` describe a run for displays, and `Counters` is how far it is.
"""

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

from afnio.autodiff._variable import Variable
from afnio.cognitive._archive import TEMPORARY, documents_of, fields_of, foreign, packed, replace, unpacked
from afnio.errors import CheckpointError, LockHeldError
from afnio.runtime._files import LockFile
from afnio.trainer._options import Outcome

LAST: Final = "last"
BEST: Final = "best"
EPOCH: Final = "epoch-"


@final
class Checkpoints:
    """Keeps a folder of checkpoints for one run, as `async with`.

    `save` returns immediately: a worker thread encodes and writes, in order. While it is busy, only the newest
    checkpoint of an unfinished epoch waits; those of finished epochs are never dropped. Leaving the block waits until
    everything is written. A write that fails is reported to `warn` once and leaves the files unchanged. The next
    checkpoint tries again. Within the block, no other trainer can use the folder.

    Args:
        folder: created if it is missing.
        monitor: the metric that `best` is chosen by. Without one there is no `best`, and the newest epochs are kept.
        mode: "max" if a larger value is better, else "min".
        save_top_k: how many `epoch-N` are kept, the best ones; -1 for all.
        warn: called with a sentence on what went wrong; by default it is logged.

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
        """The monitored metric of `best`, or None before there is one."""
        return self._ranking.best

    def path_of(self, name: str | os.PathLike[str]) -> Path:
        """Return the file of "last", "best", "epoch-N" or of a path.

        Raises:
            CheckpointError: if there is none.
        """
        for path in (self.folder / name, Path(name)):
            if path.is_file():
                return path
        names = ", ".join(_names(self.folder)) or "none"
        raise CheckpointError(
            f"ckpt_path must name a checkpoint in {self.folder} (got {os.fspath(name)!r}; there: {names}); name one of "
            "these, or a path"
        )

    def take_up(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint`: the folder's epochs up to its own compete with the coming ones.

        Files of later epochs belong to an abandoned course. They stay until they are replaced. `best` becomes the best
        of the epochs that count: it may have been that of a later one, or be missing after a kill in between.
        """
        reached = checkpoint.counters.get("epoch") or 0
        ranking, winner = self._ranking, None
        for name in sorted(_names(self.folder), key=lambda name: (name != BEST, len(name), name)):
            with suppress(CheckpointError):  # a damaged file competes with nothing
                newest = Checkpoint.read(self.folder / name)
                newest.check(name)
                epoch = newest.counters.get("epoch") or 0
                if name == LAST or epoch > reached:
                    continue
                score = ranking.score(newest.metrics)
                if ranking.is_better(score):
                    ranking.best, winner = score, name
                if name != BEST:
                    ranking.add(epoch, score)
        if winner not in (None, BEST):
            replace(self.folder / BEST, (self.folder / winner).read_bytes())

    async def save(self, checkpoint: Checkpoint, *, epoch: int | None = None) -> None:
        """Write a snapshot of `checkpoint` as `last`, in the background.

        Args:
            epoch: the number of the epoch that has ended with it, or None. It becomes `epoch-N` too, and `best` if its
                monitored metric is better than all before.
        """
        if self._tasks is None:
            raise RuntimeError("checkpoints are saved inside of their `async with` block")
        replaced = self._queue and self._queue[-1].epoch is None
        # A `flush` that waits for the replaced one waits for the newer one instead.
        written = self._queue.pop().written if replaced else anyio.Event()
        self._queue.append(_SavedFile(checkpoint.snapshot(), epoch, written))
        self._newest = written
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything saved is on disk, or its failure was reported."""
        if self._newest is not None:
            await self._newest.wait()

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self._open)
        self._closed, self._newest = False, None
        self._wake, self._ended = anyio.Event(), anyio.Event()
        self._tasks = await anyio.create_task_group().__aenter__()
        # Shielded: a cancellation while the folder was opened must reach the block, whose end closes the folder.
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
        # Shielded: an interrupted run writes its checkpoints too.
        with anyio.CancelScope(shield=True):
            await self._ended.wait()
        # Don't pass the block's error on: the task group would wrap it in a group.
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
                "this process" if error.holder == os.getpid() else f"the process {error.holder or 'unknown'}"
            )
            raise CheckpointError(
                f"the folder of checkpoints must have one trainer (got {self.folder}, in use by {who}); wait for its "
                "end, or name another folder (default_root_dir)"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"the folder of checkpoints must be writable (got {self.folder}: {error}); name another "
                "(default_root_dir), or turn checkpoints off (enable_checkpointing=False)"
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
        except Exception as error:  # no error of a write ends the training
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
                f"{self._ranking.monitor!r} (its metrics: {names}); name another as monitor"
            )
        before, best = self._ranking.best, self._ranking.is_better(score)
        gone = self._ranking.add(epoch, score)
        try:
            if epoch not in gone:
                replace(self.folder / f"{EPOCH}{epoch}", content)
            if best:
                replace(self.folder / BEST, content)
        except BaseException:
            self._ranking.best = before  # the file hasn't changed
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
                f"no checkpoint was written to {self.folder} ({reason}); training goes on, what was written "
                "before is whole, and the next checkpoint tries again"
            )


class _SavedFile(NamedTuple):
    """A checkpoint that waits to be written, and the epoch that ended with it, or None within an epoch."""

    checkpoint: Checkpoint
    epoch: int | None
    written: anyio.Event


def _names(folder: Path) -> list[str]:
    """Return the checkpoints in a folder."""
    if not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    return [name for name in names if name in (LAST, BEST) or _is_epoch(name)]


def _is_epoch(name: str) -> bool:
    return name.startswith(EPOCH) and name.removeprefix(EPOCH).isdecimal()


# The file


def current_versions() -> dict[str, str]:
    """Return the versions of Afnio and Python here.

    >>> sorted(current_versions())
    ['afnio', 'python']
    """
    from afnio import __version__

    return {"afnio": __version__, "python": platform.python_version()}


@dataclass(slots=True)
class Checkpoint:
    """The state of a run after some step.

    The file is a zip of JSON documents: `parameters.json` with the agent's texts, `optimizer.json`,
    `loop.json`, `rng.json`, `ledger.json`, `callbacks.json`, `versions.json`.

    Attributes:
        agent: the agent's state dict: Variables by name.
        optimizers: the state dict of each optimizer.
        sampler: states of the loaders, or None if they have none.
        rng: states of the random generators.
        counters: epoch, step, batch, samples.
        metrics: the newest value of each; `Checkpoints` finds the monitored one here.
        history: an entry for each step, epoch and validation pass. Entries are never changed.
        ledger: the spending, as JSON types.
        callbacks: the state of each callback that has one.
        versions: of Afnio and Python that wrote it.

    >>> from afnio import Variable
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
        """Write the file whole or not at all, even if the process is killed. Waits for values and the disk.

        Raises:
            TypeError: for a value that JSON can't hold.
            OSError: if the disk is full, or the folder gone or read-only.
        """
        replace(Path(path), self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the checkpoint in a file of this format or an older one. This runs no code from the file.

        Raises:
            CheckpointError: for a file that is missing, damaged, newer, or something else, such as a pickle.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(
                f"the checkpoint must be readable (got {path}: {reason}); name another"
            ) from error
        try:
            documents = unpacked(content)
        except ValueError as error:
            raise foreign(path, error) from error
        return cls(**fields_of(path, documents))

    def check(self, name: object) -> None:
        """Raise a `CheckpointError` unless a training can continue from it. `name` is the file's.

        Agent, optimizers, loaders and callbacks check their own states when they load them.
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
        """Return the file's content. Equal checkpoints have equal bytes."""
        return packed(documents_of({name: getattr(self, name) for name in self.__slots__}))

    def snapshot(self) -> Self:
        """Return a copy that later training doesn't change. Waits for nothing."""
        kept = {name: _kept(getattr(self, name)) for name in self.__slots__ if name != "history"}
        # A shallow copy of each entry is enough, because entries are never changed, and there may be very many.
        return type(self)(**kept, history=[dict(entry) for entry in self.history])


def unusable(name: object, reason: object) -> CheckpointError:
    """Return the error for a checkpoint that a training can't continue from."""
    return CheckpointError(
        f"the checkpoint must be one that the training can continue from (got {name}: "
        f"{' '.join(str(reason).split())}); name another, or put it right"
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
        # Keep the current slots: an assignment gives the Variable new ones.
        copy = type(value).over(list(value.cell()[0]), value.batch, value.role)
        copy._provenance = value.provenance
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_kept(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


# The files of an earlier run in the folder


JOURNAL: Final = "calls.journal"
EARLIER: Final = "earlier"


def take_up(
    folder: Path, checkpoints: Checkpoints | None, ckpt_path: str | os.PathLike[str] | None
) -> Checkpoint | None:
    """Return the checkpoint to continue from, or None to begin. Files of another run are put aside, never lost.

    Args:
        checkpoints: those that will be written to `folder`, or None if none are kept.
        ckpt_path: "last", "best", "epoch-N" or a file. "last" begins if there is none yet.

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
    """Move an earlier run's files from `folder` to `earlier/1`, `earlier/2`, …. Return the new folder, or None.

    The journal moves with the checkpoints: a run can only be continued with both.
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
    # `last` goes first: after a kill in between, a folder without it isn't resumed by mistake.
    for path in sorted(mine, key=lambda path: path.name != LAST):
        path.rename(target / path.name)
    return target


def _belongs(name: str) -> bool:
    journal = name.startswith(JOURNAL) and not name.endswith(".lock")
    return name in (LAST, BEST) or name.removeprefix(EPOCH).isdecimal() or journal


# Which epochs' checkpoints are kept, and which is the best


class Ranked(NamedTuple):
    """An epoch and its monitored metric, or None if it has none."""

    epoch: int
    score: float | None


@final
class Ranking:
    """Ranks epochs by a metric. Of equal ones the earlier is better.

    Args:
        monitor: the metric's name. Without one nothing is best, and the newest epochs are kept.
        mode: "max" if a larger value is better, else "min".
        top: how many epochs are kept; -1 for all.

    >>> ranking = Ranking("score", "min", top=1)
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
        """Return the monitored one of `metrics`, or None if it is missing or not a number."""
        value = None if self.monitor is None else metrics.get(self.monitor)
        return float(value) if isinstance(value, int | float) and not math.isnan(value) else None

    def is_better(self, score: float | None) -> bool:
        """Return True if `score` beats the best so far."""
        return score is not None and (self.best is None or self._worth(score) > self._worth(self.best))

    def add(self, epoch: int, score: float | None) -> list[int]:
        """Add or replace an epoch. Return the epochs to delete, perhaps itself."""
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


# How far a run is, as plain data


# The Trainer's method.
Stage = Literal["fit", "validate", "test", "predict"]

# The data in use. A fit has "train" and "val", which overlap.
Phase = Literal["train", "val", "test", "predict"]

Moment = Literal["batch", "validation", "epoch", "end"]
"""The part that has ended when the loop reports: a batch, a validation pass, an epoch, or everything."""


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run, as known at its start.

    Attributes:
        stage: the Trainer's method.
        agent: the name of the agent's class.
        epochs: epochs at most; None if only other limits end the run, and without training.
        batches, samples: of one epoch of training, or of the pass; None if the loader has no length.
        val_batches, val_samples: of one validation pass; None without validation, or if unknown.
        max_steps, max_time, max_cost: the limits: steps, seconds, dollars; None for none.
        monitor: the metric that the best checkpoint is chosen by, such as "val_score".
        mode: "max" if a larger value is better, else "min".
        folder: the folder of the checkpoints, or None if none are kept.
        resumed: the place that the run continues from, or None for a start.
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
    """A report of the loop.

    Attributes:
        phase: the phase that it is about.
        moment: what has ended.
        epoch: the current one, from 1; 0 outside of training.
        epochs: epochs at most, or None if unknown.
        batch, batches: batches of this epoch or pass that have ended, and their total (None if unknown).
        step: optimizer steps that have ended, over all epochs.
        samples, total: samples of this epoch or pass that have ended, failed ones included, and their total.
        failed: those of them that failed.
        train: training metrics of the epoch so far, without prefix, such as "score" and "accuracy".
        val: metrics of the last validation pass, or of the current pass in validate and test.
        best: the best value of the monitored metric so far.
        seconds: since the Trainer's method was called, by the monotonic clock.
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


# Counters


@final
@dataclass(slots=True)
class Counters:
    """How far a training is. Checkpoints contain it.

    Attributes:
        epoch: epochs that have ended.
        batch: batches of the current epoch that were trained on.
        step: steps that have ended, over all epochs.
        samples: samples that were trained on.
        skipped: steps in a row that changed nothing because of an error.
        validating: True if the parameters' validation was running when the checkpoint was made.
        scope: the address path of the training's launches. A resumed training uses it again.
        seed: of everything that the training draws. A resumed training goes on with it.
        batch_size: of the training loader, or 0 if unknown.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    skipped: int = 0
    validating: bool = False
    scope: str = ""
    seed: int = 0
    batch_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Return the counters of a checkpoint. A counter that an older file lacks starts at its default.

        Raises:
            ValueError: for a value that a counter can't have.
        """
        counted = {name: data[name] for name in cls.__slots__ if name in data}
        for name, value in counted.items():
            kind = type(getattr(_START, name))
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"its counter {name} must be {_KINDS[kind]} (got {value!r})")
        return cls(**counted)


_START: Final = Counters()
_KINDS: Final = {int: "a whole number from 0", bool: "true or false", str: "a text"}
