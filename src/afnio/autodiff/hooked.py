"""Hooked: feedback on its way past the hooks of a Variable or of a module's call, as jobs of the pass.

A Variable's hooks see each feedback as it arrives, one sample at a time. A module's see all samples of one
call together, so they are a barrier for what the module was given, as a batched Function is.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, final

from afnio.autodiff.crossing import Boundary, Crossing
from afnio.autodiff.feedback import Feedback
from afnio.autodiff.function import plain
from afnio.autodiff.hooks import Hook, Hooks
from afnio.autodiff.lane_backward import Arrival
from afnio.autodiff.variable import Variable, gradient
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import NO_FEEDBACK, Job, Launch, Outcomes, Slot


class Stage(NamedTuple):
    """One status for each lane of a part of the pass; its name is for error texts."""

    name: str
    batch: bool
    statuses: Sequence[Slot]


def hooked(
    launch: Launch, hooks: Hooks[Hook], role: str, arrival: Arrival, part: str
) -> tuple[Arrival, Stage]:
    """Return `arrival` as the hooks leave it."""
    batch = len(arrival.slots) != 1 or arrival.aligned
    fresh = [Slot(launch) for _ in arrival.slots]
    statuses = [Slot(launch) for _ in arrival.slots]

    def body(job: Job, outcomes: list[Any]) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        feedback = _spoken(outcomes[0])
        return [outcomes[0], True] if feedback is None else ask(job, feedback)

    async def ask(job: Job, feedback: Feedback) -> Outcomes:
        for hook in list(hooks):
            shown = gradient(feedback.text, role, feedback.trail)
            said = await plain(await call_in_node(job, hook, shown))
            if said is not None:
                feedback = Feedback(_text(said), feedback.seen, feedback.trail, feedback.led_in)
            if not feedback.text:
                return [NO_FEEDBACK, True]
        return [feedback, True]

    for lane, slot in enumerate(arrival.slots):
        launch.add(
            body,
            [slot],
            [fresh[lane], statuses[lane]],
            lane=lane if batch else None,
            part=part,
            gather=True,
        )
    stage = Stage(f"a hook on {role!r}", batch, statuses)
    return arrival._replace(slots=fresh), stage


class _Column(NamedTuple):
    """What was said at one place of a boundary: its slots, those that the hooks fill, and its role."""

    said: Sequence[Slot]
    fresh: Sequence[Slot]
    batch: bool
    role: str


@final
class Passage:
    """One backward pass through one call of a module whose hooks want to know."""

    def __init__(self, launch: Launch, boundary: Boundary) -> None:
        self._launch = launch
        self._boundary = boundary
        self._inputs: dict[int, _Column] = {}
        self._outputs: dict[int, _Column] = {}

    def take(self, crossing: Crossing, said: Sequence[Slot], batch: bool, role: str) -> Sequence[Slot]:
        """Note what is said at a place; returns the slots that go on from there."""
        if crossing.is_input:
            fresh = [Slot(self._launch) for _ in said]
            self._inputs[crossing.position] = _Column(said, fresh, batch, role)
            return fresh
        self._outputs[crossing.position] = _Column(said, (), batch, role)
        return said

    def add_job(self, part: str) -> Stage:
        """Have the hooks called once all that they are shown is there."""
        status = Slot(self._launch)
        columns = [*self._outputs.values(), *self._inputs.values()]
        self._launch.add(
            self._call_hooks,
            [slot for column in columns for slot in column.said],
            [status, *(slot for column in self._inputs.values() for slot in column.fresh)],
            part=part,
            gather=True,
        )
        return Stage(f"a backward hook of {type(self._boundary.module).__name__}", False, [status])

    async def _call_hooks(self, job: Job, outcomes: list[Any]) -> Outcomes:
        arrived = iter(outcomes)
        given = {
            side: {position: [next(arrived) for _ in column.said] for position, column in columns.items()}
            for side, columns in ((False, self._outputs), (True, self._inputs))
        }
        went = given[True]
        boundary = self._boundary
        grad_output = _gradients(self._outputs, given[False], boundary.outputs)
        if any(
            _spoken(outcome) is not None for side in given.values() for o in side.values() for outcome in o
        ):
            for hook in list(boundary.hooks):
                grad_input = _gradients(self._inputs, went, boundary.inputs)
                said = await call_in_node(job, hook, boundary.module, grad_input, grad_output)
                if said is not None:
                    went = await self._replaced(went, said)
        return [True, *(outcome for position in self._inputs for outcome in went[position])]

    async def _replaced(self, went: dict[int, list[Any]], said: Any) -> dict[int, list[Any]]:
        entries = list(said) if isinstance(said, tuple | list) else [said]
        if len(entries) != self._boundary.inputs:
            raise ValueError(
                f"a backward hook of {type(self._boundary.module).__name__} must return "
                f"{self._boundary.inputs} gradients, one for each argument of the call, or None (got {said!r})"
            )
        replaced = {}
        for position, column in self._inputs.items():
            data = await plain(entries[position])
            texts = data if isinstance(data, list) else [data] * len(column.said)
            if len(texts) != len(column.said):
                raise ValueError(
                    f"the gradient of argument {position} has {len(column.said)} samples (got {len(texts)})"
                )
            replaced[position] = [
                _again(outcome, text) for outcome, text in zip(went[position], texts, strict=True)
            ]
        return replaced


def _gradients(columns: dict[int, _Column], outcomes: dict[int, list[Any]], count: int) -> tuple[Any, ...]:
    """Return a gradient for each place, None where nothing was said."""
    found: list[Variable | None] = [None] * count
    for position, column in columns.items():
        spoken = [_spoken(outcome) for outcome in outcomes[position]]
        if not any(spoken):
            continue
        texts = [None if feedback is None else feedback.text for feedback in spoken]
        trails = [() if feedback is None else feedback.trail for feedback in spoken]
        found[position] = (
            gradient(texts, column.role, trails)
            if column.batch
            else gradient(texts[0], column.role, trails[0])
        )
    return tuple(found)


def _again(outcome: Any, text: Any) -> Any:
    """Return the outcome of a lane that a hook gave `text`; a lane that failed stays failed."""
    feedback = _spoken(outcome)
    if feedback is None and outcome is not NO_FEEDBACK:
        return outcome
    if text is None or not _text(text):
        return NO_FEEDBACK
    if feedback is None:
        return Feedback(_text(text))
    return Feedback(_text(text), feedback.seen, feedback.trail, feedback.led_in)


def _spoken(outcome: Any) -> Feedback | None:
    """Return feedback that has words, None for anything else."""
    if isinstance(outcome, str):
        outcome = Feedback(outcome)
    return outcome if isinstance(outcome, Feedback) and outcome.text else None


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise TypeError(f"a hook returns feedback, a text or a Variable of one, or None (got {said!r})")
    return said
