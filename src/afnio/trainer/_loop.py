"""Fit loop: epochs of steps, with validation and checkpoints at the same time.

`FitLoop` drives a training. `FitState` is where the training is: agent, optimizers, loaders, counters, history. A
checkpoint is a copy of it, and `FitLoop.restore` continues from one. `Schedule` decides when to validate and when to
end. `Session` holds the journal, the budget, the quorum and the seeds around everything that a Trainer does, and
`RunLog` writes to the run of `te.init`.

A validation pass runs at the same time as the step that follows it, so that the training doesn't wait. Even so, the
order of events depends on counts alone, never on timing. The result of a pass is recorded after that next step, and it
is inserted into the history where the pass began. Otherwise a training that is killed and resumed would end with
another history.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, final
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from afnio.autodiff._variable import Variable
from afnio.cognitive._module import Module
from afnio.errors import BudgetExceeded, CheckpointError, JournalError, first_of, is_passing
from afnio.models._prices import earlier_ledger
from afnio.optim._optimizer import Optimizer
from afnio.runtime._budget import Budget
from afnio.runtime._callables import tolerate
from afnio.runtime._control import seconds_paused
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Seeds, draw_seed, seed_source
from afnio.runtime._spending import Ledger
from afnio.runtime._waiting import active_journal, journal, scope
from afnio.tellurio._queries import MONITOR
from afnio.tellurio._run import Run, RunStatus, get_active_run
from afnio.trainer._callbacks import Callbacks, StopTraining, stopping
from afnio.trainer._checkpoints import (
    JOURNAL,
    Checkpoint,
    Checkpoints,
    Counters,
    LoopState,
    Moment,
    Phase,
    current_versions,
)
from afnio.trainer._feed import (
    Feed,
    Fetched,
    generators_state,
    length,
    limited,
    loader_state,
    restore,
    restore_generators,
    sample_count,
)
from afnio.trainer._options import Outcome, TrainerOptions, combined, is_outage, short_reason
from afnio.trainer._progress import Progress
from afnio.trainer._steps import EvaluationPass, StepEnd, ValidationPass, settled, train_step

# Steps in a row whose failure ends the training. So many failures aren't some samples' fault.
MAX_SKIPPED: Final = 3


@final
class FitLoop:
    """One training, from its start or from a checkpoint. Call `run` once."""

    def __init__(
        self,
        trainer: TrainerState,
        agent: Module,
        optimizers: Sequence[Optimizer],
        train_loader: Any,
        val_loader: Any,
        checkpoints: Checkpoints | None,
        progress: Progress,
        path: str,
        seed: int,
    ) -> None:
        self._trainer = trainer
        self._options = trainer.options
        self._agent = agent
        self._optimizers = optimizers
        self._train_loader = train_loader
        self._val_loader = val_loader
        self._checkpoints = checkpoints
        self._progress = progress
        self.schedule = Schedule(self._options, train_loader, val_loader)
        self._state = FitState(trainer, agent, optimizers, train_loader, val_loader, path, seed)
        self._validation: ValidationPass | None = None
        self._stop: str | None = None
        self._boundary: Checkpoint | None = None
        self._skip = 0
        self._started = 0.0
        self._clock = 0.0
        self._resumed = False
        self._unvalidated: Checkpoint | None = None

    # Starting

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from `checkpoint` in `run`."""
        self._skip = self._state.restore(checkpoint, self.schedule.batches)
        self._resumed = True

    async def run(self, tasks: TaskGroup) -> None:
        """Train until a limit is reached or the end is requested, then record everything that began."""
        self._started, self._clock = anyio.current_time(), time.monotonic()
        state = self._state
        state.settle_loaders()
        feed = Feed(
            tasks, self._train_loader, limit=self.schedule.batches, start=state.counters.batch, skip=self._skip,
            state=state.train_loader, more=self._may_have_more_epochs,
        )  # fmt: skip
        try:
            if not self._resumed:
                await self._save()
            elif state.counters.validating:
                await self._validate(tasks)
            while self._end() is None:
                await self._run_epoch(tasks, feed)
            await self._join()
        finally:
            await feed.close()
        self._trainer.stopped = self._end()
        if self._unvalidated is None:
            await self._save()
        elif self._checkpoints is not None:
            await self._checkpoints.save(self._unvalidated)
        self._tell_training("end")

    async def _run_epoch(self, tasks: TaskGroup, feed: Feed) -> None:
        number = self._state.counters.epoch + 1
        async with scope(name=f"epoch {number}"):
            if self._state.counters.batch == 0:
                await self._call("on_train_epoch_start")
            while await feed.peek() is not None:
                await self._run_step(tasks, await self._group(feed), feed)
                if await feed.peek() is not None and self._end() is not None:
                    return
            ended = await feed.take()
            if ended.number == 0:
                raise ValueError(
                    f"the training loader gave no batch in epoch {number}; give a loader that isn't empty and "
                    "can be iterated again for each epoch"
                )
            if self._stop is None:
                await self._end_epoch(tasks, ended)

    async def _group(self, feed: Feed) -> list[Fetched]:
        """Return the batches of the next step."""
        most = self._options.accumulate_grad_batches if self._agent.automatic_optimization else 1
        group = [await feed.take()]
        while len(group) < most and await feed.peek() is not None:
            group.append(await feed.take())
        return group

    # A step

    async def _run_step(self, tasks: TaskGroup, group: Sequence[Fetched], feed: Feed) -> None:
        end, number = StepEnd(), self._state.counters.step + 1
        for fetched in group:
            await self._call("on_train_batch_start", fetched.batch, fetched.number)
        skipped: str | None = None
        try:
            async with scope(name=f"step {number}"):
                await train_step(self._agent, self._optimizers, group, end, f"step {number}")
        except Exception as error:
            if self._ends_training(error):
                return
            skipped = self._skipped(error, number)
        await settled(self._agent)
        self._state.count_step(group, end, number, skipped)
        for fetched, outcome in zip(group, end.outcomes, strict=False):
            await self._call("on_train_batch_end", outcome.flat(), fetched.batch, fetched.number)
        await self._join()
        if self._unvalidated is not None:
            return
        due = self.schedule.is_validation_due(self._state.counters, len(group))
        if due and await feed.peek() is not None:
            await self._validate(tasks)
        else:
            await self._save()
        self._tell_training("batch")

    def _ends_training(self, error: Exception) -> bool:
        """Return True if the error ends the training without a failure; the step is undone then. Raise a fatal one."""
        budget, stop, journal = (
            first_of(error, BudgetExceeded),
            first_of(error, StopTraining),
            first_of(error, JournalError),
        )
        if journal is not None:
            raise journal
        if budget is None and stop is None:
            return False
        self._stop = str(budget or stop) or "a step asked for the end"
        assert self._boundary is not None
        self._state.go_back(self._boundary)
        return True

    def _skipped(self, error: Exception, number: int) -> str:
        """Return why a step was cut short. Raise if the next one can't do better, or after too many in a row."""
        counters = self._state.counters
        counters.skipped += 1
        if not is_passing(error) or counters.skipped >= MAX_SKIPPED:
            raise error
        why = short_reason(error)
        logging.getLogger("afnio").warning("step %d was cut short: %s", number, why)
        return why

    # The end of an epoch, and validation

    async def _end_epoch(self, tasks: TaskGroup, ended: Fetched) -> None:
        state = self._state
        state.count_epoch(ended)
        await self._call("on_train_epoch_end")
        self._tell_training("epoch")
        state.epoch = Outcome()
        if self.schedule.validates:
            await self._validate(tasks)
        else:
            await self._call_functions()
            await self._save(epoch=state.counters.epoch)

    async def _validate(self, tasks: TaskGroup) -> None:
        """Start a pass with the current parameters. The training continues meanwhile."""
        await self._save(validating=True)
        assert self._boundary is not None
        place = len(self._trainer.history)
        self._validation = validation = ValidationPass(self._state.counters, place, self._boundary)
        await self._call("on_validation_start")
        values = {parameter: parameter.detach() for parameter in self._agent.parameters()}
        evaluation = EvaluationPass(
            self._agent, "val", self._val_loader, self.schedule.val_batches,
            lambda outcome, batches: self._tell_validation(validation, "batch", outcome, batches),
        )  # fmt: skip
        tasks.start_soon(validation.run, evaluation, values)
        if self._trainer.callbacks.needs_validation:
            await self._join()
            await self._save()

    async def _join(self) -> None:
        """Wait for the validation pass in flight, if any, and record its result."""
        validation = self._validation
        if validation is None:
            return
        await validation.done.wait()
        self._validation = None
        if validation.outcome is None:
            # Resuming from here repeats the pass and the step since then. The journal has that step's replies.
            self._stop = str(validation.budget)
            self._state.go_back(validation.checkpoint)
            self._unvalidated = self._boundary = validation.checkpoint
            return
        outcome, state, error = validation.outcome, self._state, validation.error
        if error is not None:
            if self._end() is not None and is_outage(error):
                raise error  # no later step would report that the server is down; resuming repeats the pass
            logging.getLogger("afnio").warning(
                "validation after step %d was cut short: %s", validation.step, short_reason(error)
            )
        metrics = state.count_validation(validation, outcome)
        if error is None:
            await self._call("on_validation_end")
        if validation.ends_epoch:
            await self._call_functions()
        if validation.ends_epoch and self._checkpoints is not None:
            callbacks = self._trainer.callbacks.state_dict()
            checkpoint = validation.completed(self._trainer.history, metrics, state.val_loader, callbacks)
            await self._checkpoints.save(checkpoint, epoch=validation.epoch)
        self._tell_validation(validation, "validation", outcome, validation.batches)

    # Ends

    def _may_have_more_epochs(self) -> bool:
        """Return True if the first batch of another epoch is worth loading ahead."""
        return self._stop is None and self.schedule.may_have_more_epochs(self._state.counters)

    def stop(self, reason: str) -> None:
        """End the training after the current step, whatever its minimum is; from any thread."""
        self._stop = self._stop or reason

    def _end(self) -> str | None:
        """Return why the training ends here, or None if it continues."""
        if self._stop is not None:
            return self._stop
        elapsed = anyio.current_time() - self._started
        seconds = elapsed - seconds_paused(elapsed)
        spent = self._trainer.ledger.total.known_cost
        return self.schedule.end(self._state.counters, seconds, spent, self._trainer.asked_to_stop)

    async def _save(self, *, validating: bool = False, epoch: int | None = None) -> None:
        self._boundary = self._state.checkpoint(validating=validating)
        if self._checkpoints is not None:
            await self._checkpoints.save(self._boundary, epoch=epoch)

    # Callbacks and the display

    async def _call(self, hook: str, *args: Any) -> None:
        with stopping(self._trainer):
            await self._trainer.callbacks.call(hook, self._trainer, self._agent, *args)

    async def _call_functions(self) -> None:
        with stopping(self._trainer):
            await self._trainer.callbacks.epoch_ended(self._trainer)

    def _tell_training(self, moment: Moment) -> None:
        counters, ended = self._state.counters, moment == "epoch"
        epoch = counters.epoch if ended or (counters.batch == 0 and counters.epoch) else counters.epoch + 1
        batch = (self.schedule.batches or 0) if ended else counters.batch
        val = self._state.val.flat()
        self._progress.update(self._loop_state("train", moment, epoch, batch, self._state.epoch, val))

    def _tell_validation(
        self, validation: ValidationPass, moment: Moment, outcome: Outcome, batches: int
    ) -> None:
        validation.batches = batches
        state = self._loop_state("val", moment, validation.epoch, batches, outcome, outcome.flat())
        most, total = self.schedule.val_batches, self.schedule.val_samples
        self._progress.update(replace(state, batches=most, total=total, train=self._state.epoch.flat()))

    def _loop_state(
        self, phase: Phase, moment: Moment, epoch: int, batch: int, outcome: Outcome, val: dict[str, float]
    ) -> LoopState:
        now = time.monotonic()
        return LoopState(
            phase=phase, moment=moment, epoch=epoch, epochs=self._options.epochs, batch=batch,
            batches=self.schedule.batches, step=self._state.counters.step, samples=outcome.samples,
            total=self.schedule.samples, failed=outcome.failed, started=self._clock, seconds=now - self._clock,
            train=outcome.flat(), val=val, best=self._trainer.best_score,
        )  # fmt: skip


# Where a training is


class TrainerState:
    """The part of a Trainer that its loop reads and writes. Its docstring says what the attributes are."""

    def __init__(self, options: TrainerOptions, callbacks: Callbacks) -> None:
        self.options = options
        self.callbacks = callbacks
        self.monitor = options.monitor or "val_score"
        self.metrics: dict[str, float] = {}
        self.history: list[dict[str, Any]] = []
        self.current_epoch = 0
        self.global_step = 0
        self.best_score: float | None = None
        self.stopped: str | None = None
        self.asked_to_stop: str | None = None
        self._session = Session(options)
        self._run_log = RunLog()

    @property
    def mode(self) -> Literal["min", "max"]:
        return self.options.mode

    @property
    def ledger(self) -> Ledger:
        """This Trainer's spending by phase, client and model, including what its journals recorded before."""
        return self._session.ledger

    @property
    def total_cost(self) -> float | None:
        """Dollars spent so far, or None if a price is unknown."""
        cost = self.ledger.total.cost
        return None if cost is None else float(cost)

    def stop(self, reason: str = "stop was called") -> None:
        """End the training after the current step, once `min_epochs` and `min_steps` are reached."""
        self.asked_to_stop = self.asked_to_stop or reason

    def log_to_run(self, entry: dict[str, Any]) -> None:
        """Record an entry of the history in the active run, if there is one."""
        self._run_log.entry(entry, self.total_cost)

    def _reset(self) -> None:
        self.metrics, self.history = {}, []
        self.current_epoch = self.global_step = 0
        self.best_score = self.stopped = self.asked_to_stop = None


@final
class FitState:
    """Where a training is. Keeps the Trainer's history, metrics and counts in step.

    Args:
        path: the address path that the training's launches start with, unless a checkpoint has another.
        seed: of everything that the training draws.

    Attributes:
        epoch: the outcome of the current epoch so far.
        val: the outcome of the last validation pass.
        train_loader, val_loader: the states of the loaders, or None if they have none.
    """

    def __init__(
        self,
        trainer: TrainerState,
        agent: Module,
        optimizers: Sequence[Optimizer],
        train_loader: Any,
        val_loader: Any,
        path: str,
        seed: int,
    ) -> None:
        self._trainer = trainer
        self._agent = agent
        self._optimizers = optimizers
        self._train_loader = train_loader
        self._val_loader = val_loader
        size = getattr(train_loader, "batch_size", None)
        self.counters = Counters(scope=path, seed=seed, batch_size=size if isinstance(size, int) else 0)
        self.epoch = Outcome()
        self.val = Outcome()
        self.train_loader: dict[str, Any] | None = None
        self.val_loader: dict[str, Any] | None = None

    # Checkpoints

    def checkpoint(self, *, validating: bool = False) -> Checkpoint:
        """Return a copy of this state."""
        trainer = self._trainer
        return Checkpoint(
            agent=self._agent.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self._optimizers],
            sampler={"train": self.train_loader, "val": self.val_loader},
            rng=generators_state(),
            counters={**self.counters.to_dict(), "validating": validating},
            metrics=dict(trainer.metrics),
            history=list(trainer.history),
            ledger=json.loads(trainer.ledger.to_json()),
            callbacks=trainer.callbacks.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint, limit: int | None) -> int:
        """Restore `checkpoint`. Return how many batches of the training loader must be skipped.

        Args:
            limit: batches of an epoch at most.
        """
        if len(checkpoint.optimizers) != len(self._optimizers):
            raise CheckpointError(
                f"the checkpoint has {len(checkpoint.optimizers)} optimizers and configure_optimizers gives "
                f"{len(self._optimizers)}; give as many"
            )
        mine = self.counters
        changes = self._changes(checkpoint)
        with _named("agent or optimizers"):
            for name, own in self._agent.state_dict().items():
                saved = checkpoint.agent.get(name)
                if isinstance(own, Variable) and isinstance(saved, Variable):
                    _check_value(name, own.data, saved.data)
            self._load(checkpoint, Counters.of(checkpoint.counters))
        self.counters.scope = self.counters.scope or mine.scope
        self.counters.seed, self.counters.batch_size = mine.seed, mine.batch_size
        sampler = checkpoint.sampler or {}
        self.train_loader = sampler.get("train")
        with _named("training loader"):
            skip = restore(self._train_loader, self.train_loader, self.counters.batch, limit)
        if self._val_loader is not None:
            self.val_loader = sampler.get("val")
            with _named("validation loader"):
                restore(self._val_loader, self.val_loader, 0)
        with _named("random generators"):
            restore_generators(checkpoint.rng)
        if changes:
            logging.getLogger("afnio").warning("the training is resumed with other settings: %s", changes)
        with _named("callbacks"):
            self._trainer.callbacks.load_state_dict(checkpoint.callbacks)
        self._read_history()
        return skip

    def _changes(self, checkpoint: Checkpoint) -> str:
        """Return which settings differ from those that the checkpoint was made with. Empty if none does."""
        saved = checkpoint.counters
        changes: list[str] = []
        size, before = self.counters.batch_size, saved.get("batch_size")
        if before and size and size != before:
            changes.append(f"the batch size is {size} (was {before})")
        asked, before = self._trainer.options.seed, saved.get("seed")
        if None not in (asked, before) and asked != before:
            changes.append(f"the seed is {asked} (was {before}, which it goes on with)")
        for name, version in current_versions().items():
            before = checkpoint.versions.get(name)
            if before is not None and before != version:
                changes.append(f"{name} is {version} (was {before})")
        return ", ".join(changes)

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Undo everything since `checkpoint`, one that this training made."""
        self._load(checkpoint, Counters.of({**checkpoint.counters, "validating": False}))

    def _load(self, checkpoint: Checkpoint, counters: Counters) -> None:
        self._agent.load_state_dict(checkpoint.agent)
        for optimizer, state in zip(self._optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.counters = counters
        self._trainer.history = list(checkpoint.history)
        self._trainer.metrics = dict(checkpoint.metrics)
        self._share_counters()

    def _read_history(self) -> None:
        history, epoch = self._trainer.history, self.counters.epoch + 1
        steps = [entry for entry in history if entry["kind"] == "step" and entry["epoch"] == epoch]
        self.epoch = combined(Outcome.from_json(entry) for entry in steps)
        for entry in history:
            if entry["kind"] == "val":
                self.val = Outcome.from_json(entry)
                self._note_best(self.val)

    def settle_loaders(self) -> None:
        """Store the loaders' states, unless a checkpoint had them. This fixes their seeds before anything runs."""
        if self.train_loader is None:
            self.train_loader = loader_state(self._train_loader)
        if self._val_loader is not None and self.val_loader is None:
            self.val_loader = loader_state(self._val_loader)

    # The log of the run

    def count_step(self, group: Sequence[Fetched], end: StepEnd, number: int, skipped: str | None) -> None:
        """Record a step.

        Args:
            skipped: why it was cut short, or None.
        """
        counters, outcome = self.counters, combined(end.outcomes)
        if skipped is None:
            counters.skipped = 0
        elif len(end.outcomes) < len(group):  # batches without a score have failed
            rest = sum(fetched.size for fetched in group[len(end.outcomes) :])
            outcome += Outcome(samples=rest, failed=rest)
        counters.step = number
        counters.batch += len(group)
        counters.samples += sum(fetched.size for fetched in group)
        self.train_loader = group[-1].state
        self.epoch += outcome
        entry = {"kind": "step", "epoch": counters.epoch + 1, "step": number, "batch": counters.batch}
        self._record({**entry, **({} if skipped is None else {"error": skipped}), **outcome.to_json()})

    def count_epoch(self, ended: Fetched) -> None:
        """Record the end of an epoch. `epoch` keeps its outcome."""
        counters = self.counters
        counters.epoch += 1
        counters.batch = 0
        self.train_loader = ended.state
        entry = {"kind": "epoch", "epoch": counters.epoch, "step": counters.step}
        self._record({**entry, **self.epoch.to_json()})

    def count_validation(self, validation: ValidationPass, outcome: Outcome) -> dict[str, float]:
        """Record a validation pass and return its metrics."""
        trainer, state = self._trainer, loader_state(self._val_loader)
        self.val_loader = None if state is None else {**state, "drained": validation.drained}
        entry = {"kind": "val", "epoch": validation.epoch, "step": validation.step}
        if validation.error is not None:
            entry["error"] = short_reason(validation.error)
        entry |= outcome.to_json()
        trainer.history.insert(validation.place, entry)
        metrics = _prefixed("val", outcome.flat())
        trainer.metrics = {**validation.kept(trainer.metrics), **metrics}
        self.val = outcome
        self._note_best(outcome)
        trainer.log_to_run(entry)
        return metrics

    def _record(self, entry: dict[str, Any]) -> None:
        self._trainer.history.append(entry)
        self._trainer.log_to_run(entry)
        self._trainer.metrics |= _prefixed("train", self.epoch.flat())
        self._share_counters()

    def _share_counters(self) -> None:
        self._trainer.current_epoch = self.counters.epoch
        self._trainer.global_step = self.counters.step

    def _note_best(self, outcome: Outcome) -> None:
        trainer = self._trainer
        value = _prefixed("val", outcome.flat()).get(trainer.monitor)
        if value is not None:
            better = max if trainer.mode == "max" else min
            trainer.best_score = value if trainer.best_score is None else better(trainer.best_score, value)


def _check_value(name: str, own: Any, value: Any) -> None:
    if isinstance(own, str) and not isinstance(value, str):
        raise TypeError(f"{name} must be a text (got {value!r})")


@contextmanager
def _named(owner: str) -> Iterator[None]:
    """Turn an error in the block into a `CheckpointError` that names the owner of the state."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"the training can't go on from the checkpoint, as its {owner} can't take their state ({reason}); name "
            "another, or give what it was made with"
        ) from error


def _prefixed(prefix: str, flat: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in flat.items()}


# When a fit validates and when it ends


@final
class Schedule:
    """When a fit validates and when it ends, from its options, its loaders and counts.

    Attributes:
        batches, samples: of an epoch; None if the loader has no length.
        val_batches, val_samples: of a validation pass; None if unknown, and without validation.
        validates: True if there is anything to validate on.
        interval: batches between two validations within an epoch; None to validate only at its end.
    """

    def __init__(self, options: TrainerOptions, train_loader: Any, val_loader: Any) -> None:
        self._options = options
        self.batches = limited(length(train_loader), options.limit("train"), "limit_train_batches")
        self.samples = sample_count(train_loader, self.batches)
        self.val_batches = None
        if val_loader is not None:
            self.val_batches = limited(length(val_loader), options.limit("val"), "limit_val_batches")
        self.val_samples = sample_count(val_loader, self.val_batches)
        self.validates = val_loader is not None and self.val_batches != 0
        self.interval = None if val_loader is None else self._validation_interval()

    def _validation_interval(self) -> int | None:
        """Return the batches between two validations within an epoch, or None."""
        interval = self._options.val_check_interval
        if not isinstance(interval, float):
            return interval
        if interval == 1.0:
            return None
        if self.batches is None:
            raise ValueError(
                f"val_check_interval={interval} is a fraction, and the loader has no length; "
                "give a number of batches"
            )
        return max(1, math.floor(self.batches * interval))

    def is_validation_due(self, counters: Counters, batches: int) -> bool:
        """Return True if validation is due within the epoch, after a step on `batches` batches."""
        if self.interval is None or not self.validates:
            return False
        return counters.batch // self.interval > (counters.batch - batches) // self.interval

    def may_have_more_epochs(self, counters: Counters) -> bool:
        """Return True if another epoch may follow the one that is ending."""
        epochs, steps = self._options.epochs, self._options.max_steps
        if epochs is not None and counters.epoch + 1 >= epochs:
            return False
        return steps is None or counters.step < steps

    def end(self, counters: Counters, seconds: float, spent: Decimal, asked: str | None) -> str | None:
        """Return why the training ends here, or None if it continues.

        Args:
            seconds: since it started.
            spent: dollars, as far as they are known.
            asked: why a callback or the program requested the end, or None.
        """
        options = self._options
        if options.epochs is not None and counters.epoch >= options.epochs:
            return f"max_epochs={options.epochs} reached"
        if options.max_steps is not None and counters.step >= options.max_steps:
            return f"max_steps={options.max_steps} reached"
        if options.max_time is not None and seconds >= options.max_time:
            return f"max_time={options.max_time:g} s reached"
        if options.max_cost is not None and spent >= options.max_cost:
            return f"max_cost=${options.max_cost:g} reached (${spent:f} spent)"
        early = counters.epoch < (options.min_epochs or 0) or counters.step < (options.min_steps or 0)
        return None if early else asked


# Contexts of everything that a Trainer does


@final
class Session:
    """The budget of all of a Trainer's calls, and the journal of its fit."""

    def __init__(self, options: TrainerOptions) -> None:
        self._options = options
        self._spending = Budget(max_cost=options.max_cost)
        self._folder: Path | None = None
        self._journals: list[Path] = []
        self._uses: dict[str, int] = {}
        self.seed = 0
        """Of everything that is drawn in the pass or fit that was entered last."""

    @property
    def ledger(self) -> Ledger:
        """The spending, including that of earlier runs in the journals."""
        return self._spending.ledger

    @asynccontextmanager
    async def entered(self, name: str, folder: Path | None, resumed: Checkpoint | None) -> AsyncIterator[str]:
        """Apply the options in the block. Yields the address path of the calls that are launched there.

        Args:
            name: of the method, the path's last element.
            folder: the folder of a fit's checkpoints and journal, or None. Later passes use the same journal.
            resumed: the checkpoint that a fit continues from, or None. The fit takes over its path, because the journal
                finds the calls by it.
        """
        options = self._options
        async with AsyncExitStack() as stack:
            if folder is not None:
                self._folder, self._uses = folder, {}
            if active_journal.get() is None and self._folder is not None:
                await self._open(stack, self._folder / JOURNAL)
                uses = self._uses[name] = self._uses.get(name, 0) + 1
                path = f"journal/{name}" if uses == 1 else f"journal/{name}#{uses}"
            else:
                path = current_scope().child_path(name)
            if resumed is not None:
                path = resumed.counters.get("scope") or path
            stack.enter_context(self._spending)
            if options.max_time is not None and name == "fit":
                stack.enter_context(Budget(max_seconds=options.max_time))
            if options.quorum is not None:
                stack.enter_context(tolerate(options.quorum))
            seed = None if resumed is None else resumed.counters.get("seed")
            if seed is None:
                seed = draw_seed(f"{path}/Trainer") if options.seed is None else options.seed
            self.seed = seed
            stack.enter_context(seed_source.override(Seeds(seed)))
            await stack.enter_async_context(scope(path, rooted=True))
            yield path

    async def _open(self, stack: AsyncExitStack, path: Path) -> None:
        opened = await stack.enter_async_context(journal(path))
        assert opened is not None
        # Charge earlier spending once: this Trainer counts its own. Do it now, not with the first call: a resumed
        # training may have nothing left to do.
        before = Ledger()
        if path not in self._journals:
            before = await anyio.to_thread.run_sync(earlier_ledger, opened)
        self._spending.charge(before, opened)
        self._journals.append(path)


# The run of `te.init`


@final
class RunLog:
    """Logs entries of the history in the active run, if there is one.

    Steps are logged at their number, epochs and validation passes at the epoch's.
    """

    def __init__(self) -> None:
        self._logged: WeakKeyDictionary[Run, int] = WeakKeyDictionary()

    def entry(self, entry: Mapping[str, Any], cost: float | None = None) -> None:
        """Log one entry. `cost` is in dollars so far, or None if unknown."""
        run = active_run()
        if run is None:
            return
        outcome, kind = Outcome.from_json(entry), entry["kind"]
        prefix = "val" if kind == "val" else "train"
        suffix = "_step" if kind == "step" else ""
        metrics = {**outcome.flat(), **outcome.values}
        step = entry["epoch"] if kind != "step" else entry["step"]
        run.log({f"{prefix}_{name}{suffix}": value for name, value in metrics.items()}, step=step)
        if kind == "epoch" and cost is not None:
            run.log("total_cost($)", cost, step=step)
        self._logged[run] = self._logged.get(run, 0) + 1

    def monitor(self, metric: str, mode: str) -> None:
        """Record the monitored metric. Readers of the run show it first, with its best value."""
        run = active_run()
        if run is not None:
            run.record(MONITOR, {"metric": metric, "mode": mode, "unit": "epoch"})

    def history(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Log the history of a checkpoint, except for entries that this run has: a continued run begins empty."""
        run = active_run()
        for entry in entries[0 if run is None else self._logged.get(run, 0) :]:
            self.entry(entry)

    def result(self, prefix: str, outcome: Outcome, cost: float | None) -> None:
        """Log the outcome of `validate` or `test`."""
        run = active_run()
        if run is not None:
            metrics = {**outcome.flat(), **outcome.values}
            run.log({f"{prefix}_{name}": value for name, value in metrics.items()})
            if cost is not None:
                run.log("total_cost($)", cost)


def active_run() -> Run | None:
    """Return the run that is active and running, or None."""
    try:
        run = get_active_run()
    except ValueError:
        return None
    return run if run.status is RunStatus.RUNNING else None
