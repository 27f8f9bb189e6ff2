"""Step: one optimizer step: its batches forward and backward, then the proposals."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.cognitive._module import Module, mode, recorder
from afnio.errors import BatchError
from afnio.optim._optimizer import Optimizer
from afnio.runtime._callables import current_quorum, is_async, to_thread, tolerate
from afnio.runtime._waiting import Work, scope, sync_mode, wait_async
from afnio.trainer.feed import Fetched
from afnio.trainer.metric import Outcome, combined
from afnio.trainer.quorum import FEEDBACK, check_quorum, errors_of, lenient, raise_fatal
from afnio.trainer.step_output import StepOutput, read, taken_apart
from afnio.trainer.tasks import task_group


@final
@dataclass(slots=True)
class StepEnd:
    """What a step came to; filled in as it goes, so that a step that fails says what it knows.

    Attributes:
        outcomes: one for each batch whose scores are there.
    """

    outcomes: list[Outcome] = field(default_factory=list)


async def train_step(
    agent: Module, optimizers: Sequence[Optimizer], group: Sequence[Fetched], end: StepEnd, name: str
) -> None:
    """Carry out one step on a group of batches, whose forward and backward passes run side by side.

    How many samples may fail is counted over all of its batches. A step that does its own optimization has the
    quorum at each of its nodes.

    Args:
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
        # Launched in the batches' order, which is the order of the feedback that a prompt gathers.
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
    """Wait until no parameter's value is pending; what failed has kept its value."""
    await wait_async([slot for parameter in agent.parameters() for slot in parameter.own_slots])


async def call_step(function: Callable[..., Any], batch: Any, number: int) -> tuple[Any, dict[str, Any]]:
    """Call a step, a `def` in a worker thread; return what it returned, and what it logged."""
    logged: dict[str, Any] = {}
    token = recorder.set(logged.__setitem__)
    try:
        if is_async(function):
            return await function(batch, number), logged
        returned = await to_thread(function, batch, number)
        return (await returned if inspect.iscoroutine(returned) else returned), logged
    finally:
        recorder.reset(token)


async def _outputs(agent: Module, group: Sequence[Fetched]) -> list[StepOutput]:
    if len(group) == 1:
        return [await _output_or_loss(agent, group[0])]
    outputs: list[StepOutput | None] = [None] * len(group)

    async def one(place: int, fetched: Fetched) -> None:
        async with scope(name=f"batch {place + 1}"):
            outputs[place] = await _output_or_loss(agent, fetched)

    async with task_group() as tasks:
        for place, fetched in enumerate(group):
            tasks.start_soon(one, place, fetched)
    return [output for output in outputs if output is not None]


async def _output_or_loss(agent: Module, fetched: Fetched) -> StepOutput:
    try:
        return await _output(agent.training_step, fetched, "training_step")
    except BatchError as error:  # of a step that reads
        return StepOutput(lost=error)


async def _outcome(output: StepOutput, size: int, quorum: float | None) -> Outcome:
    """Wait for a batch's metrics; a batch that failed as a whole is noted in its output."""
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
            f"(got only {output.loss!r}); or set automatic_optimization = False"
        )
    return output.explanation


def _launched(launch: Callable[[], Work[Any]]) -> Work[Any]:
    """Launch without a blocking wait, which a notebook would allow even while a loop runs."""
    with sync_mode.override("error"):
        return launch()
