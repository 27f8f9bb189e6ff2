"""Step: how new values reach the parameters, each on its own or all together."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, final

from afnio.autodiff._variable import Variable
from afnio.errors import LaunchCancelledError
from afnio.likeness import distinct, reason
from afnio.optim.change import Candidate, Change
from afnio.runtime._kernel import Body, Failure, Job, Launch, Outcomes, Recover, Slot, note_place, within
from afnio.runtime._waiting import wait_async
from afnio.runtime.events import StepEnded, emit

T = TypeVar("T")

Propose = Callable[[Job, Any], Awaitable[Change]]
"""What makes a parameter's next value: called with the step's job and the value so far."""


class Update(NamedTuple):
    """What a step does to one parameter: once its value and `waits` are there, `propose` its next value."""

    parameter: Variable
    waits: Sequence[Slot]
    propose: Propose


@final
@dataclass(frozen=True, slots=True)
class Round:
    """What a step that decides for all parameters together has to work with.

    Attributes:
        parameters: all of the optimizer's, in its order.
        values: theirs at the step's launch.
        feedback: the gradients of those that have some, by position, reduced.
        propose: asks for a better value of the parameter at a position, from gradients and the value they are about.
        reduce: what the optimizer makes of many gradients before they are shown.
        groups: the options of each parameter.
    """

    parameters: tuple[Variable, ...]
    values: tuple[Any, ...]
    feedback: Mapping[int, Sequence[Variable]]
    propose: Callable[[Job, int, Sequence[Variable], Any], Awaitable[Change]]
    reduce: Callable[[Job, int, Sequence[Variable], Any], Awaitable[Sequence[Variable]]]
    groups: tuple[Mapping[str, Any], ...]

    def bound(self, values: Sequence[Any]) -> dict[Variable, Any]:
        """Return `values` by parameter, for `bind`."""
        return dict(zip(self.parameters, values, strict=True))


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """What a joint step decided.

    Attributes:
        values: for all parameters, in their order.
        changes: for those that had feedback.
        candidates: what was weighed.
        rejected: by position, proposals that did not help: dicts with "value", "score", "against".
        errors: what kept it from more; the step raises them.
        failed: positions of the parameters that these errors are about; None is all of them.
    """

    values: tuple[Any, ...]
    changes: tuple[Change, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    errors: tuple[BaseException, ...] = ()
    rejected: tuple[tuple[int, Mapping[str, Any]], ...] = ()
    failed: tuple[int, ...] | None = None


class Acceptance(ABC):
    """What decides whether proposals become values; `Improves` is one.

    One belongs to one optimizer, whose `state_dict` holds its state.
    """

    needs_feedback = True
    """Whether a step without any feedback has nothing to decide."""

    def begin(self) -> None:  # noqa: B027 - most need nothing
        """Prepare for a step; called at its launch, in program order. Random seeds are settled here."""

    @abstractmethod
    async def decide(self, job: Job, work: Round) -> Decision:
        """Have proposals made and return what to do, on the runtime's loop; `job.scope` is the step's."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs to go on in the same way, as JSON could hold it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on where `state` was taken."""


@final
class Always(Acceptance):
    """Every proposal becomes the value."""

    async def decide(self, job: Job, work: Round) -> Decision:
        with within(job.scope):
            found = await proposals(job, work, work.feedback)
        values = list(work.values)
        for position, change in found.items():
            if isinstance(change, Change):
                values[position] = change.after
        changes = tuple(change for change in found.values() if isinstance(change, Change))
        failed = {position: change for position, change in found.items() if not isinstance(change, Change)}
        return Decision(tuple(values), changes, (), tuple(failed.values()), failed=tuple(failed))


async def proposals(
    job: Job, work: Round, feedback: Mapping[int, Sequence[Variable]]
) -> dict[int, Change | BaseException]:
    """Ask for one proposal for each position in `feedback`, side by side; in the current scope."""
    return await for_each(
        job, "proposal", feedback, lambda inner, at: work.propose(inner, at, feedback[at], work.values[at])
    )


async def for_each(
    job: Job, name: str, positions: Iterable[int], do: Callable[[Job, int], Awaitable[T]]
) -> dict[int, T | BaseException]:
    """Do something for parameters, side by side, in the current scope; return results or errors by position.

    Each has a job and an address of its own there, so what it asks is numbered alike in every run.
    """
    launch = Launch(name)
    launch.line = job.launch.line
    slots: dict[int, Slot] = {}
    for position in positions:
        slots[position] = Slot(launch)
        launch.add(_doing(do, position), [], [slots[position]], part=f"parameter {position}")
    launch.start()
    await wait_async(slots.values())
    found: dict[int, T | BaseException] = {}
    for position, slot in slots.items():
        if isinstance(slot.outcome, Failure):
            slot.outcome.mark_read()
            found[position] = slot.outcome.error
        else:
            (found[position],) = slot.outcome
    return found


def _doing(do: Callable[[Job, int], Awaitable[T]], position: int) -> Body:
    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        return [(await do(job, position),)]

    return body


def launch_step(
    launch: Launch, name: str, updates: Sequence[Update], others: Sequence[Variable] = ()
) -> Slot:
    """Start a step and return the slot of its end: the changes, or the errors of what kept its value.

    A parameter whose update fails or is cancelled takes the value that it had.

    Args:
        others: parameters of the same optimizer without an update, to be told of.
    """
    values = [Slot(launch) for _ in updates]
    statuses = [Slot(launch) for _ in updates]
    known = [(update.parameter.role, value) for update, value in zip(updates, values, strict=True)]
    known += [(parameter.role, parameter.own_slots[0]) for parameter in others]
    done = Slot(launch)
    for number, (update, value, status) in enumerate(zip(updates, values, statuses, strict=True)):
        (previous,) = update.parameter.own_slots
        launch.add(
            _proposing(update.propose),
            [previous, *update.waits],
            [value, status],
            part=f"parameter {number}",
            gather=True,
            recover=_keeping(previous),
        )
    launch.add(_finishing(name, known), statuses, [done], part="end", gather=True)
    _advance(launch, [update.parameter for update in updates], values)
    return done


def launch_joint_step(
    launch: Launch,
    name: str,
    parameters: Sequence[Variable],
    advancing: Sequence[Variable],
    waits: Sequence[Slot],
    decide: Callable[[Job, tuple[Any, ...]], Awaitable[Decision]],
) -> Slot:
    """Start a step that decides for all parameters at once, and return the slot of its end.

    Args:
        parameters: those whose values `decide` is given, in order.
        advancing: those of them that may change; they are pending from now on.
        waits: what else has to be there before.
    """
    previous = [parameter.own_slots[0] for parameter in parameters]
    places = [number for number, p in enumerate(parameters) if any(p is other for other in advancing)]
    done = Slot(launch)
    values = [Slot(launch) for _ in places]

    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        decision = await decide(job, tuple(outcomes[: len(previous)]))
        known = tuple((p.role, value) for p, value in zip(parameters, decision.values, strict=True))
        end = _end(job, name, decision.changes, decision.errors, known, decision.candidates)
        return [*(decision.values[place] for place in places), end]

    def keep(job: Job, error: BaseException) -> Outcomes:
        emit(StepEnded(job.launch.address, name, (), str(error)))
        failure = Failure(error, read=isinstance(error, LaunchCancelledError))
        job.launch.scope.owner.note(failure)
        return [*(previous[place].outcome for place in places), failure]

    launch.add(body, [*previous, *waits], [*values, done], part="all", gather=True, recover=keep)
    _advance(launch, [parameters[place] for place in places], values)
    return done


def _advance(launch: Launch, parameters: Sequence[Variable], values: Sequence[Slot]) -> None:
    launch.holders = [weakref.ref(parameter) for parameter in parameters]
    # Nothing after this line raises: no parameter is left waiting for a step that never ran.
    for parameter, value in zip(parameters, values, strict=True):
        parameter.advance(value)
    launch.start()


def _proposing(propose: Propose) -> Body:
    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        change = await propose(job, outcomes[0])
        return [change.after, change]

    return body


def _keeping(previous: Slot) -> Recover:
    def keep(job: Job, error: BaseException) -> Outcomes:
        return [previous.outcome, Failure(error, read=isinstance(error, LaunchCancelledError))]

    return keep


def _finishing(name: str, known: Sequence[tuple[str, Slot]]) -> Body:
    def finish(job: Job, outcomes: list[Any]) -> Outcomes:
        changes = tuple(outcome for outcome in outcomes if isinstance(outcome, Change))
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        for failure in failures:
            failure.mark_read()
        values = tuple(
            (role, slot.outcome)
            for role, slot in known
            if slot.done and not isinstance(slot.outcome, Failure)
        )
        return [_end(job, name, changes, [failure.error for failure in failures], values)]

    return finish


def _end(
    job: Job,
    name: str,
    changes: tuple[Change, ...],
    errors: Sequence[BaseException],
    values: tuple[tuple[str, Any], ...],
    candidates: tuple[Candidate, ...] = (),
) -> Any:
    """Tell how a step ended, and return what its end's slot gets."""
    errors = distinct(errors)
    error: BaseException | None = errors[0] if errors else None
    if len(errors) > 1:
        error = BaseExceptionGroup(f"parameters kept their values, first with {reason(errors[0])}", errors)
    told = None if error is None else str(error)
    emit(StepEnded(job.launch.address, name, changes, told, candidates, values))
    if error is None:
        return changes
    note_place(error, job.launch, None)
    failure = Failure(error, read=isinstance(error, LaunchCancelledError))
    job.launch.scope.owner.note(failure)
    return failure
