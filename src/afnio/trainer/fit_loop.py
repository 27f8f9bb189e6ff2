"""Fit loop: epochs of steps, with validation and checkpoints beside them.

What happens, and in which order it is recorded, depends on counts alone, never on how long anything takes:
the result of a validation pass is taken in after the step that follows it, and stands in the history where
the pass began.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

import anyio
from anyio.abc import TaskGroup

from afnio.autodiff import bind
from afnio.cognitive import Module
from afnio.errors import BatchError, BudgetExceeded, JournalError, ReplyError, TransientModelError
from afnio.optim import Optimizer
from afnio.runtime import scope
from afnio.runtime.priority import priority
from afnio.trainer.callback import StopTraining
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.counters import Counters
from afnio.trainer.evaluation import Evaluation
from afnio.trainer.feed import Feed, Fetched, length, limited, loader_state, restore, sample_count
from afnio.trainer.generators import generators_state, restore_generators
from afnio.trainer.metric import Outcome, combined
from afnio.trainer.progress import Progress
from afnio.trainer.state import LoopState, Moment, Phase
from afnio.trainer.step import StepEnd, found, settled, train_step

if TYPE_CHECKING:
    from afnio.trainer.checkpoints import Checkpoints
    from afnio.trainer.trainer import Trainer

MAX_SKIPPED: Final = 3
"""Steps in a row that may fail: by then it is not some samples' bad luck."""


@final
class _Validation:
    """A pass over the validation batches, with the parameters of the moment at which it began.

    Attributes:
        place: where in the history its result belongs.
        checkpoint: of that moment.
        ends_epoch: whether an epoch had ended then.
    """

    def __init__(
        self, *, epoch: int, step: int, place: int, checkpoint: Checkpoint, ends_epoch: bool
    ) -> None:
        self.epoch = epoch
        self.step = step
        self.place = place
        self.checkpoint = checkpoint
        self.ends_epoch = ends_epoch
        self.outcome: Outcome | None = None
        self.batches = 0
        self.drained = True
        self.budget: BudgetExceeded | None = None
        self.done = anyio.Event()


@final
class FitLoop:
    """One training, from its start or from a checkpoint; `run` it once."""

    def __init__(
        self,
        trainer: Trainer,
        agent: Module,
        optimizers: Sequence[Optimizer],
        train_loader: Any,
        val_loader: Any,
        checkpoints: Checkpoints | None,
        progress: Progress,
        path: str,
    ) -> None:
        self._trainer = trainer
        self._options = trainer.options
        self._agent = agent
        self._optimizers = optimizers
        self._train_loader = train_loader
        self._val_loader = val_loader
        self._checkpoints = checkpoints
        self._progress = progress
        self.counters = Counters(scope=path)
        options = self._options
        self.batches = limited(length(train_loader), options.limit("train"), "limit_train_batches")
        self.val_batches = None
        if val_loader is not None:
            self.val_batches = limited(length(val_loader), options.limit("val"), "limit_val_batches")
        self.samples = sample_count(train_loader, self.batches)
        self._interval = self._validation_interval()
        self._epoch = Outcome()
        self._val = Outcome()
        self._validation: _Validation | None = None
        self._stop: str | None = None
        self._train_state: dict[str, Any] | None = None
        self._val_state: dict[str, Any] | None = None
        self._boundary: Checkpoint | None = None
        self._skip = 0
        self._started = 0.0
        self._clock = 0.0
        self._resumed: Checkpoint | None = None
        self._unvalidated: Checkpoint | None = None

    # Starting

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where `checkpoint` was made."""
        trainer, sampler = self._trainer, checkpoint.sampler or {}
        self._agent.load_state_dict(checkpoint.agent)
        if len(checkpoint.optimizers) != len(self._optimizers):
            raise ValueError(
                f"the checkpoint has {len(checkpoint.optimizers)} optimizers and configure_optimizers gives "
                f"{len(self._optimizers)}; give as many"
            )
        for optimizer, state in zip(self._optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
        path = self.counters.scope
        self.counters = Counters.of(checkpoint.counters)
        self.counters.scope = self.counters.scope or path
        self._train_state = sampler.get("train")
        self._skip = restore(self._train_loader, self._train_state, self.counters.batch)
        if self._val_loader is not None:
            self._val_state = sampler.get("val")
            restore(self._val_loader, self._val_state, 0)
        restore_generators(checkpoint.rng)
        trainer.callbacks.load_state_dict(checkpoint.callbacks)
        trainer.history = list(checkpoint.history)
        trainer.metrics = dict(checkpoint.metrics)
        epoch = self.counters.epoch + 1
        steps = [entry for entry in trainer.history if entry["kind"] == "step" and entry["epoch"] == epoch]
        self._epoch = combined(Outcome.from_json(entry) for entry in steps)
        for entry in trainer.history:
            if entry["kind"] == "val":
                self._val = Outcome.from_json(entry)
                self._note_best(self._val)
        self._resumed = checkpoint
        self._share_counters()

    async def run(self, tasks: TaskGroup) -> None:
        """Train until a limit is reached or somebody asks for the end; then all that began is recorded."""
        self._started, self._clock = anyio.current_time(), time.monotonic()
        if self._train_state is None:
            self._train_state = loader_state(self._train_loader)
        if self._val_loader is not None and self._val_state is None:
            self._val_state = loader_state(self._val_loader)  # settles its seed before anything runs beside
        feed = Feed(
            tasks, self._train_loader, limit=self.batches, start=self.counters.batch, skip=self._skip,
            state=self._train_state, more=self._more_epochs,
        )  # fmt: skip
        try:
            if self._resumed is None:
                await self._save()
            elif self.counters.validating:
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
        self._tell("train", "end")

    async def _run_epoch(self, tasks: TaskGroup, feed: Feed) -> None:
        number = self.counters.epoch + 1
        async with scope(name=f"epoch {number}"):
            if self.counters.batch == 0:
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
        end, number = StepEnd(), self.counters.step + 1
        for fetched in group:
            await self._call("on_train_batch_start", fetched.batch, fetched.number)
        skipped: str | None = None
        try:
            async with scope(name=f"step {number}"):
                await train_step(self._agent, self._optimizers, group, end)
        except Exception as error:
            if self._ends_training(error):
                return
            skipped = self._skipped(error, number)
        await settled(self._agent)
        self._count(group, end, number, skipped)
        for fetched, outcome in zip(group, end.outcomes, strict=False):
            await self._call("on_train_batch_end", outcome.flat(), fetched.batch, fetched.number)
        await self._join()
        if self._unvalidated is not None:
            return
        if self._is_due(len(group)) and await feed.peek() is not None:
            await self._validate(tasks)
        else:
            await self._save()
        self._tell("train", "batch")

    def _ends_training(self, error: Exception) -> bool:
        """Whether a step's error is an end that was asked for: then the step never was; else raise what is fatal."""
        budget, stop, journal = (
            found(error, BudgetExceeded),
            found(error, StopTraining),
            found(error, JournalError),
        )
        if journal is not None:
            raise journal
        if budget is None and stop is None:
            return False
        self._stop = str(budget or stop) or "a step asked for the end"
        assert self._boundary is not None
        self._go_back(self._boundary)
        return True

    def _skipped(self, error: Exception, number: int) -> str:
        """Return why a step was cut short; raise if it is nothing to go on after, or has happened too often."""
        self.counters.skipped += 1
        if not _passing(error) or self.counters.skipped >= MAX_SKIPPED:
            raise error
        reason = str(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
        logging.getLogger("afnio").warning("step %d was cut short: %s", number, reason)
        return reason

    def _go_back(self, checkpoint: Checkpoint) -> None:
        """Undo what came after `checkpoint`, which this training made."""
        self._agent.load_state_dict(checkpoint.agent)
        for optimizer, state in zip(self._optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.counters = Counters.of({**checkpoint.counters, "validating": False})
        self._trainer.history = list(checkpoint.history)
        self._trainer.metrics = dict(checkpoint.metrics)
        self._share_counters()

    def _count(self, group: Sequence[Fetched], end: StepEnd, number: int, skipped: str | None) -> None:
        counters, outcome = self.counters, combined(end.outcomes)
        size = sum(fetched.size for fetched in group)
        if skipped is None:
            counters.skipped = 0
        elif len(end.outcomes) < len(group):  # what wasn't scored failed
            rest = sum(fetched.size for fetched in group[len(end.outcomes) :])
            outcome += Outcome(samples=rest, failed=rest)
        counters.step = number
        counters.batch += len(group)
        counters.samples += size
        self._train_state = group[-1].state
        self._epoch += outcome
        entry = {"kind": "step", "epoch": counters.epoch + 1, "step": number, "batch": counters.batch}
        self._record({**entry, **({} if skipped is None else {"error": skipped}), **outcome.to_json()})
        self._trainer.metrics |= prefixed("train", self._epoch.flat())
        self._share_counters()

    # The end of an epoch, and validation

    async def _end_epoch(self, tasks: TaskGroup, ended: Fetched) -> None:
        counters = self.counters
        counters.epoch += 1
        counters.batch = 0
        self._train_state = ended.state
        entry = {"kind": "epoch", "epoch": counters.epoch, "step": counters.step}
        self._record({**entry, **self._epoch.to_json()})
        self._trainer.metrics |= prefixed("train", self._epoch.flat())
        self._share_counters()
        await self._call("on_train_epoch_end")
        self._tell("train", "epoch")
        self._epoch = Outcome()
        if self._val_loader is not None and self.val_batches != 0:
            await self._validate(tasks)
        else:
            await self._call_functions()
            await self._save(epoch=counters.epoch)

    async def _validate(self, tasks: TaskGroup) -> None:
        """Begin a pass with the parameters as they are; the training goes on meanwhile."""
        await self._save(validating=True)
        assert self._boundary is not None
        counters = self.counters
        validation = _Validation(
            epoch=counters.epoch + (counters.batch > 0),
            step=counters.step,
            place=len(self._trainer.history),
            checkpoint=self._boundary,
            ends_epoch=counters.batch == 0,
        )
        self._validation = validation
        await self._call("on_validation_start")
        values = {parameter: parameter.detach() for parameter in self._agent.parameters()}
        evaluation = Evaluation(
            self._agent, "val", self._val_loader, self.val_batches,
            lambda outcome, batches: self._tell_validation(validation, "batch", outcome, batches),
        )  # fmt: skip
        tasks.start_soon(self._run_validation, validation, evaluation, values)
        if self._trainer.callbacks.needs_validation:
            await self._join()
            await self._save()

    async def _run_validation(self, validation: _Validation, evaluation: Evaluation, values: Any) -> None:
        name = f"{self.counters.scope}/val step {validation.step}"
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(bind(values))
                stack.enter_context(priority("validation"))
                await stack.enter_async_context(scope(name=name, rooted=True))
                validation.outcome = await evaluation.run()
                validation.drained = evaluation.drained
        except BudgetExceeded as error:
            validation.budget = error
        finally:
            validation.done.set()

    async def _join(self) -> None:
        """Wait for the validation pass under way, if any, and take its result in."""
        validation = self._validation
        if validation is None:
            return
        await validation.done.wait()
        self._validation = None
        if validation.outcome is None:
            # Going on from here repeats it, and the step since, which the journal has.
            self._stop = str(validation.budget)
            self._go_back(validation.checkpoint)
            self._unvalidated = self._boundary = validation.checkpoint
            return
        trainer, outcome = self._trainer, validation.outcome
        state = loader_state(self._val_loader)
        self._val_state = None if state is None else {**state, "drained": validation.drained}
        entry = {"kind": "val", "epoch": validation.epoch, "step": validation.step, **outcome.to_json()}
        trainer.history.insert(validation.place, entry)
        metrics = prefixed("val", outcome.flat())
        trainer.metrics |= metrics
        self._val = outcome
        self._note_best(outcome)
        trainer.log_to_run(entry)
        await self._call("on_validation_end")
        if validation.ends_epoch:
            await self._call_functions()
        if validation.ends_epoch and self._checkpoints is not None:
            checkpoint = validation.checkpoint
            checkpoint.history = trainer.history[: validation.place + 1]
            checkpoint.metrics = {**checkpoint.metrics, **metrics}
            checkpoint.counters = {**checkpoint.counters, "validating": False}
            checkpoint.sampler = {**(checkpoint.sampler or {}), "val": self._val_state}
            checkpoint.callbacks = trainer.callbacks.state_dict()
            await self._checkpoints.save(checkpoint, epoch=validation.epoch)
        self._tell_validation(validation, "validation", outcome, validation.batches)

    def _validation_interval(self) -> int | None:
        """Return after how many batches of an epoch validation is due within it."""
        interval = self._options.val_check_interval
        if self._val_loader is None or (interval == 1.0 and isinstance(interval, float)):
            return None
        if isinstance(interval, float):
            if self.batches is None:
                raise ValueError(
                    f"val_check_interval={interval} is a fraction, and the loader has no length; "
                    "give a number of batches"
                )
            return max(1, math.floor(self.batches * interval))
        return interval

    def _is_due(self, batches: int) -> bool:
        if self._interval is None or self.val_batches == 0:
            return False
        return self.counters.batch // self._interval > (self.counters.batch - batches) // self._interval

    # Ends

    def _more_epochs(self) -> bool:
        """Whether another epoch may follow the one that is ending, so that its first batch is loaded ahead."""
        epochs, steps = self._options.epochs, self._options.max_steps
        if epochs is not None and self.counters.epoch + 1 >= epochs:
            return False
        return self._stop is None and (steps is None or self.counters.step < steps)

    def _end(self) -> str | None:
        """Return why the training ends here, None if it goes on."""
        options, counters = self._options, self.counters
        if self._stop is not None:
            return self._stop
        if options.epochs is not None and counters.epoch >= options.epochs:
            return f"max_epochs={options.epochs} reached"
        if options.max_steps is not None and counters.step >= options.max_steps:
            return f"max_steps={options.max_steps} reached"
        if options.max_time is not None and anyio.current_time() - self._started >= options.max_time:
            return f"max_time={options.max_time:g} s reached"
        spent = self._trainer.ledger.total.known_cost
        if options.max_cost is not None and spent >= options.max_cost:
            return f"max_cost=${options.max_cost:g} reached (${spent:f} spent)"
        asked = self._trainer.asked_to_stop
        early = counters.epoch < (options.min_epochs or 0) or counters.step < (options.min_steps or 0)
        return None if early else asked

    # Recording

    def _record(self, entry: dict[str, Any]) -> None:
        self._trainer.history.append(entry)
        self._trainer.log_to_run(entry)

    def _checkpoint(self, *, validating: bool = False) -> Checkpoint:
        trainer = self._trainer
        return Checkpoint(
            agent=self._agent.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self._optimizers],
            sampler={"train": self._train_state, "val": self._val_state},
            rng=generators_state(),
            counters={**self.counters.to_dict(), "validating": validating},
            metrics=dict(trainer.metrics),
            history=list(trainer.history),
            ledger=json.loads(trainer.ledger.to_json()),
            callbacks=trainer.callbacks.state_dict(),
        )

    async def _save(self, *, validating: bool = False, epoch: int | None = None) -> None:
        self._boundary = self._checkpoint(validating=validating)
        if self._checkpoints is not None:
            await self._checkpoints.save(self._boundary, epoch=epoch)

    def _share_counters(self) -> None:
        self._trainer.current_epoch = self.counters.epoch
        self._trainer.global_step = self.counters.step

    def _note_best(self, outcome: Outcome) -> None:
        trainer = self._trainer
        value = prefixed("val", outcome.flat()).get(trainer.monitor)
        if value is not None:
            better = max if trainer.mode == "max" else min
            trainer.best_score = value if trainer.best_score is None else better(trainer.best_score, value)

    # Telling

    async def _call(self, hook: str, *args: Any) -> None:
        try:
            await self._trainer.callbacks.call(hook, self._trainer, self._agent, *args)
        except StopTraining as error:
            self._trainer.stop(str(error) or "a callback asked for it")

    async def _call_functions(self) -> None:
        try:
            await self._trainer.callbacks.epoch_ended(self._trainer)
        except StopTraining as error:
            self._trainer.stop(str(error) or "a callback asked for it")

    def _tell(self, phase: Phase, moment: Moment) -> None:
        counters = self.counters
        ended = moment == "epoch"
        epoch = counters.epoch if ended or (counters.batch == 0 and counters.epoch) else counters.epoch + 1
        batch = (self.batches or 0) if ended else counters.batch
        self._progress.update(self._state(phase, moment, epoch, batch, self._epoch, self._val.flat()))

    def _tell_validation(
        self, validation: _Validation, moment: Moment, outcome: Outcome, batches: int
    ) -> None:
        validation.batches = batches
        total = None if self.val_batches is None else sample_count(self._val_loader, self.val_batches)
        state = self._state("val", moment, validation.epoch, batches, outcome, outcome.flat())
        self._progress.update(replace(state, batches=self.val_batches, total=total, train=self._epoch.flat()))

    def _state(
        self, phase: Phase, moment: Moment, epoch: int, batch: int, outcome: Outcome, val: dict[str, float]
    ) -> LoopState:
        now = time.monotonic()
        return LoopState(
            phase=phase, moment=moment, epoch=epoch, epochs=self._options.epochs, batch=batch,
            batches=self.batches, step=self.counters.step, samples=outcome.samples, total=self.samples,
            failed=outcome.failed, started=self._clock, seconds=now - self._clock,
            train=outcome.flat(), val=val, best=self._trainer.best_score,
        )  # fmt: skip


def prefixed(prefix: str, flat: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in flat.items()}


def _passing(error: BaseException) -> bool:
    """Whether the next step may do better: samples failed, a reply can't be used, a provider was away."""
    if type(error) is ExceptionGroup:
        return all(_passing(each) for each in error.exceptions)
    return isinstance(error, BatchError | ReplyError | TransientModelError)
