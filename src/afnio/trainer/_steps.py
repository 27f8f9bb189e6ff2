"""Steps and passes: what runs between two entries of a training's history.

* `train_step` is one optimizer step: its batches forward and backward side by side, then the proposals.
* `EvaluationPass` is one pass over a loader with fixed parameters, as one pool of samples instead of batch after batch.
* `ValidationPass` is such a pass during the training, with the parameters of the moment at which it began.

Samples fail: a content filter refuses one, a reply is unreadable. The quorum is therefore counted over a whole step or
a whole pass, not at each node. While a step runs its nodes tolerate nearly any failure (`lenient`), and `check_quorum`
decides at its end. Otherwise one failed sample in a batch of four would end the step at the first node.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final, final

import anyio

from afnio.autodiff._backward import resolve
from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable, bind
from afnio.cognitive._members import mode, step_log
from afnio.cognitive._module import Module
from afnio.errors import BatchError, BudgetExceeded, is_passing
from afnio.optim._optimizer import Optimizer
from afnio.runtime._blocking import task_group
from afnio.runtime._callables import current_quorum, is_async, to_thread, tolerate
from afnio.runtime._settings import priority
from afnio.runtime._waiting import Pending, scope, sync_mode, wait_async
from afnio.trainer._checkpoints import Checkpoint, Counters, Phase
from afnio.trainer._feed import Fetched, Pass, batches
from afnio.trainer._options import (
    FEEDBACK,
    Outcome,
    StepOutput,
    batch_size,
    check_quorum,
    combined,
    errors_of,
    lenient,
    raise_fatal,
    read,
    taken_apart,
)


@final
@dataclass(slots=True)
class StepEnd:
    """The outcomes of a step, filled in while it runs, so that those of a step that fails are known too.

    Attributes:
        outcomes: one for each batch whose scores have arrived.
    """

    outcomes: list[Outcome] = field(default_factory=list)


async def train_step(
    agent: Module, optimizers: Sequence[Optimizer], group: Sequence[Fetched], end: StepEnd, name: str
) -> None:
    """Run one step on a group of batches. Their forward and backward passes run side by side.

    The quorum is counted over all of its batches. With `automatic_optimization = False` it holds at each node instead,
    because the step itself goes backward in between.

    Args:
        end: takes the outcomes.
        name: of the step, for errors.

    Raises:
        BatchError: if more samples failed than the quorum allows.
        ReplyError: if a proposal can't be read; the parameters keep their values.
    """
    with mode(True):
        if not agent.automatic_optimization:
            for fetched in group:
                output = await _output(agent.training_step, fetched, "training_step")
                end.outcomes.append(await read(output, fetched.size))
                await settled(agent)
            return
        for optimizer in optimizers:
            optimizer.clear_grad()
        quorum = current_quorum()
        with tolerate(lenient(quorum)):
            outputs = await _outputs(agent, group)
        # Launch in the order of the batches: a prompt gathers its feedback in this order.
        with tolerate(1.0 if quorum is None else quorum if quorum == 1 else min(quorum, FEEDBACK)):
            passes = [
                (output, _launched(explanation.backward))
                for output in outputs
                if (explanation := _explanation(output)) is not None
            ]
        for fetched, output in zip(group, outputs, strict=True):
            end.outcomes.append(await _outcome(output, fetched.size, quorum))
        try:
            errors = [error for output in outputs for error in output.errors]
            check_quorum(combined(end.outcomes), quorum, errors, name)
        except BatchError:
            end.outcomes = [Outcome(samples=each.samples, failed=each.failed) for each in end.outcomes]
            raise
        for output, work in passes:
            try:
                await work
            except ExceptionGroup:
                if output.lost is None:
                    raise
        if passes:
            for work in [_launched(optimizer.step) for optimizer in optimizers]:
                await work


async def settled(agent: Module) -> None:
    """Wait until no parameter's value is pending. A parameter whose step failed has kept its value."""
    await wait_async([slot for parameter in agent.parameters() for slot in parameter.own_slots])


async def call_step(function: Callable[..., Any], batch: Any, number: int) -> tuple[Any, dict[str, Any]]:
    """Call a user's step, a `def` in a worker thread. Return its result and what it logged."""
    logged: dict[str, Any] = {}
    token = step_log.set(logged.__setitem__)
    try:
        if is_async(function):
            return await function(batch, number), logged
        returned = await to_thread(function, batch, number)
        return (await returned if inspect.iscoroutine(returned) else returned), logged
    finally:
        step_log.reset(token)


async def _outputs(agent: Module, group: Sequence[Fetched]) -> list[StepOutput]:
    if len(group) == 1:
        return [await _output_or_lost(agent, group[0])]
    outputs: list[StepOutput | None] = [None] * len(group)

    async def one(place: int, fetched: Fetched) -> None:
        async with scope(name=f"batch {place + 1}"):
            outputs[place] = await _output_or_lost(agent, fetched)

    async with task_group() as tasks:
        for place, fetched in enumerate(group):
            tasks.start_soon(one, place, fetched)
    return [output for output in outputs if output is not None]


async def _output_or_lost(agent: Module, fetched: Fetched) -> StepOutput:
    try:
        return await _output(agent.training_step, fetched, "training_step")
    except BatchError as error:  # the step itself read values
        return StepOutput(lost=error)


async def _outcome(output: StepOutput, size: int, quorum: float | None) -> Outcome:
    """Wait for a batch's metrics. If the whole batch failed, note that in its output."""
    try:
        if output.lost is not None:
            raise output.lost
        return await read(output, size)
    except BatchError as error:
        raise_fatal(error)
        output.lost, output.errors = error, errors_of(error)
        return Outcome(samples=size, failed=size if quorum is not None else len(output.errors))


async def _output(function: Callable[..., Any], fetched: Fetched, name: str) -> StepOutput:
    returned, logged = await call_step(function, fetched.batch, fetched.number)
    return taken_apart(returned, logged, name)


def _explanation(output: StepOutput) -> Variable | None:
    if output.explanation is None and not output.skipped and output.lost is None:
        raise TypeError(
            "training_step must return (score, explanation), as the explanation sends the feedback "
            f"(got only {output.score!r}); or set automatic_optimization = False"
        )
    return output.explanation


def _launched(launch: Callable[[], Pending[Any]]) -> Pending[Any]:
    """Launch without a blocking wait. A notebook would allow one, and block the loop."""
    with sync_mode.override("error"):
        return launch()


# A pass with fixed parameters


# About how many samples may be in flight. The loader isn't read further ahead than that.
LANES: Final = 4096
# Batches in flight if the step is a `def`: each may hold a worker thread.
THREADED: Final = 16
STEPS: Final = {"val": "validation_step", "test": "test_step", "predict": "predict_step"}
NAMES: Final = {"val": "validation", "test": "test", "predict": "predict"}


@final
class EvaluationPass:
    """One pass. Each batch is launched as soon as it is loaded; results are in the loader's order.

    The quorum is counted over the whole pass, not for each batch.

    Args:
        on_batch: called after each batch with the pass's outcome so far and the number of its batches.
    """

    def __init__(
        self,
        agent: Module,
        phase: Phase,
        loader: Any,
        limit: int | None,
        on_batch: Callable[[Outcome, int], object] = lambda outcome, batches: None,
    ) -> None:
        self._function = getattr(agent, STEPS[phase])
        self._phase = phase
        self._pass = Pass(loader, limit)
        self._on_batch = on_batch
        self._quorum = current_quorum()
        self._outcomes: dict[int, Outcome] = {}
        self._so_far = Outcome()
        self._errors: dict[int, list[BaseException]] = {}
        self.outputs: dict[int, Any] = {}
        self._room: anyio.Semaphore | None = None

    @property
    def so_far(self) -> Outcome:
        """The counts of samples that have ended and failed, without a score. A pass that was cut short keeps these."""
        return Outcome(samples=self._so_far.samples, failed=self._so_far.failed)

    @property
    def drained(self) -> bool:
        """True if the loader itself ended the pass, not a limit."""
        return self._pass.drained

    async def run(self) -> Outcome:
        """Run the pass.

        Raises:
            BatchError: if more of its samples failed than the quorum allows.
        """
        with no_grad(), mode(False), tolerate(lenient(self._quorum)):
            async with task_group() as tasks:
                async for number, batch in batches(iter(self._pass)):
                    size = batch_size(batch)
                    if self._room is None:
                        self._room = anyio.Semaphore(self._window(size))
                    await self._room.acquire()
                    tasks.start_soon(self._one, number, batch, size)
        outcome = combined(self._outcomes[number] for number in sorted(self._outcomes))
        errors = [error for number in sorted(self._errors) for error in self._errors[number]]
        check_quorum(outcome, self._quorum, errors, f"the {NAMES[self._phase]} pass")
        return outcome

    async def _one(self, number: int, batch: Any, size: int) -> None:
        assert self._room is not None
        try:
            async with scope(name=f"batch {number + 1}"):
                self._outcomes[number] = await self._read(number, batch, size)
        except BatchError as error:
            raise_fatal(error)
            if self._quorum is None:
                raise
            self._errors[number] = errors_of(error)
            self._outcomes[number] = Outcome(samples=size, failed=size)
        finally:
            self._room.release()
        self._so_far += self._outcomes[number]
        self._on_batch(self._so_far, len(self._outcomes))

    async def _read(self, number: int, batch: Any, size: int) -> Outcome:
        returned, logged = await call_step(self._function, batch, number)
        if self._phase == "predict":
            self.outputs[number] = await resolve(returned)
            returned = None
        output = taken_apart(returned, logged, STEPS[self._phase])
        outcome = await read(output, size)
        if output.errors:
            self._errors[number] = output.errors
        return outcome

    def _window(self, size: int) -> int:
        window = max(2, LANES // max(1, size))
        return window if is_async(self._function) else min(window, THREADED)


# A validation pass during the training


@final
class ValidationPass:
    """A pass over the validation batches, with the parameters of the moment at which it began.

    Args:
        counters: the training's counters at that moment.
        place: the index in the history at which its result belongs.
        checkpoint: the checkpoint of that moment.

    Attributes:
        epoch: the epoch that it belongs to, from 1.
        ends_epoch: True if an epoch had just ended.
        outcome: its result; None while it runs, and if a budget ended it.
        error: why it was cut short, or None. If it was, its outcome has no score.
        budget: the budget's error that ended it, or None.
        batches: how many have ended.
        drained: True if the loader itself ended it, not a limit.
        done: set at its end, after an error too.
    """

    def __init__(self, counters: Counters, place: int, checkpoint: Checkpoint) -> None:
        self.ends_epoch = counters.batch == 0
        self.epoch = counters.epoch + (counters.batch > 0)
        self.step = counters.step
        self.place = place
        self.checkpoint = checkpoint
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.batches = 0
        self.drained = True
        self.budget: BudgetExceeded | None = None
        self.done = anyio.Event()
        self._name = f"{counters.scope}/val step {counters.step}"

    async def run(self, evaluation: EvaluationPass, values: Any) -> None:
        """Run `evaluation` with `values` in place of the parameters."""
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(bind(values))
                stack.enter_context(priority("validation"))
                await stack.enter_async_context(scope(name=self._name, rooted=True))
                self.outcome = await evaluation.run()
                self.drained = evaluation.drained
        except BudgetExceeded as error:
            self.budget = error
        except Exception as error:
            if not is_passing(error):
                raise
            self.error, self.outcome = error, evaluation.so_far
        finally:
            self.done.set()

    def kept(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that are still valid: if this pass was cut short, without those of the pass before."""
        return {name: metrics[name] for name in metrics if self.error is None or not name.startswith("val_")}

    def completed(
        self,
        history: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, float],
        loader: Mapping[str, Any] | None,
        callbacks: dict[str, Any],
    ) -> Checkpoint:
        """Return the checkpoint of its beginning with its result added, as if it had taken no time.

        Args:
            history: the training's, with this pass's result in place.
            metrics: those of this pass.
            loader, callbacks: their states after it.
        """
        checkpoint = self.checkpoint
        checkpoint.history = list(history[: self.place + 1])
        checkpoint.metrics = {**self.kept(checkpoint.metrics), **metrics}
        checkpoint.counters = {**checkpoint.counters, "validating": False}
        checkpoint.sampler = {**(checkpoint.sampler or {}), "val": loader}
        checkpoint.callbacks = callbacks
        return checkpoint
