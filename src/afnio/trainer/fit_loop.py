"""Fit loop: epochs of steps, with validation and checkpoints beside them.

What happens, and in which order it is recorded, depends on counts alone, never on how long anything takes:
the result of a validation pass is taken in after the step that follows it, and stands in the history where
the pass began.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, final

import anyio
from anyio.abc import TaskGroup

from afnio.cognitive._module import Module
from afnio.errors import BudgetExceeded, JournalError
from afnio.optim._optimizer import Optimizer
from afnio.runtime._waiting import scope
from afnio.trainer.callback import StopTraining, stopping
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.evaluation import Evaluation
from afnio.trainer.feed import Feed, Fetched
from afnio.trainer.fit_state import FitState
from afnio.trainer.metric import Outcome
from afnio.trainer.progress import Progress
from afnio.trainer.quorum import found, is_outage, is_passing, reason
from afnio.trainer.schedule import Schedule
from afnio.trainer.state import LoopState, Moment, Phase
from afnio.trainer.step import StepEnd, settled, train_step
from afnio.trainer.validation_pass import ValidationPass

if TYPE_CHECKING:
    from afnio.trainer.checkpoints import Checkpoints
    from afnio.trainer.trainer import Trainer

MAX_SKIPPED: Final = 3
"""Steps in a row that may fail: by then it is not some samples' bad luck."""


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
        self.schedule = Schedule(self._options, train_loader, val_loader)
        self._state = FitState(trainer, agent, optimizers, train_loader, val_loader, path)
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
        """Stand where `checkpoint` was made."""
        self._skip = self._state.restore(checkpoint, self.schedule.batches)
        self._resumed = True

    async def run(self, tasks: TaskGroup) -> None:
        """Train until a limit is reached or somebody asks for the end; then all that began is recorded."""
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
        self._state.go_back(self._boundary)
        return True

    def _skipped(self, error: Exception, number: int) -> str:
        """Return why a step was cut short; raise if it is nothing to go on after, or has happened too often."""
        counters = self._state.counters
        counters.skipped += 1
        if not is_passing(error) or counters.skipped >= MAX_SKIPPED:
            raise error
        why = reason(error)
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
        """Begin a pass with the parameters as they are; the training goes on meanwhile."""
        await self._save(validating=True)
        assert self._boundary is not None
        place = len(self._trainer.history)
        self._validation = validation = ValidationPass(self._state.counters, place, self._boundary)
        await self._call("on_validation_start")
        values = {parameter: parameter.detach() for parameter in self._agent.parameters()}
        evaluation = Evaluation(
            self._agent, "val", self._val_loader, self.schedule.val_batches,
            lambda outcome, batches: self._tell_validation(validation, "batch", outcome, batches),
        )  # fmt: skip
        tasks.start_soon(validation.run, evaluation, values)
        if self._trainer.callbacks.needs_validation:
            await self._join()
            await self._save()

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
            self._state.go_back(validation.checkpoint)
            self._unvalidated = self._boundary = validation.checkpoint
            return
        outcome, state, error = validation.outcome, self._state, validation.error
        if error is not None:
            if self._end() is not None and is_outage(error):
                raise error  # no step is left to find out that the server is down; going on repeats the pass
            logging.getLogger("afnio").warning(
                "validation after step %d was cut short: %s", validation.step, reason(error)
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
        """Whether the first batch of another epoch is worth loading ahead."""
        return self._stop is None and self.schedule.may_have_more_epochs(self._state.counters)

    def _end(self) -> str | None:
        """Return why the training ends here, None if it goes on."""
        if self._stop is not None:
            return self._stop
        seconds = anyio.current_time() - self._started
        spent = self._trainer.ledger.total.known_cost
        return self.schedule.end(self._state.counters, seconds, spent, self._trainer.asked_to_stop)

    async def _save(self, *, validating: bool = False, epoch: int | None = None) -> None:
        self._boundary = self._state.checkpoint(validating=validating)
        if self._checkpoints is not None:
            await self._checkpoints.save(self._boundary, epoch=epoch)

    # Telling

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
