"""Change, Evidence, Candidate: what a step found and did, as plain data for logs, stores and displays."""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, TypeVar, final

from afnio.autodiff._data import PendingGradients
from afnio.autodiff._variable import Variable, bind
from afnio.errors import LaunchCancelledError, distinct, reason
from afnio.runtime._callables import is_async
from afnio.runtime._kernel import Body, Failure, Job, Launch, Outcomes, Recover, Slot, note_place, within
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, wait, wait_async
from afnio.runtime.events import StepEnded, emit


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """One feedback that a proposer was shown.

    Attributes:
        text: what it says.
        trail: the samples that stand behind it, plain data as in `Variable.provenance`.
    """

    text: str
    trail: tuple[Mapping[str, Any], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one parameter.

    Attributes:
        role: the parameter's role.
        before, after: its values.
        gradients: how many it had.
        rejected: why a proposal was not taken, None if it was, or if there was none.
        evidence: the feedback as the proposer was shown it, after reduction.
    """

    role: str
    before: Any
    after: Any
    gradients: int
    rejected: str | None = None
    evidence: tuple[Evidence, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """Values for all parameters of an optimizer that were weighed against others.

    Attributes:
        number: the candidate's own, unique within the optimizer; 0 is what it started from.
        parents: the numbers of those that it was made from.
        values: one for each parameter, in the optimizer's order.
        scores: one for each sample that it was evaluated on, None where that failed or was cancelled.
        verdict: accepted, or why not.
    """

    number: int
    parents: tuple[int, ...]
    values: tuple[Any, ...]
    scores: tuple[float | None, ...]
    verdict: str


# Optimizer: parameters in groups, and a step that replaces their values by better ones.


REMEMBERED: Final = 8
"""Rejected proposals that a parameter's state keeps for the next prompt."""


class Optimizer(ABC):
    """Base of optimizers: write `propose`, which gets one parameter's value and gradients.

    Args:
        params: Parameters, or dicts with "params" and options of their own.
        defaults: the options of groups that don't give them.
        accept: what decides whether proposals become values; without it all do.
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        defaults: dict[str, Any],
        accept: Acceptance | None = None,
    ) -> None:
        if isinstance(params, Variable):
            raise TypeError("an optimizer takes an iterable of Parameters; put the one in a list")
        if accept is not None and not isinstance(accept, Acceptance):
            raise TypeError(f"accept must be an Acceptance such as optim.Improves(...) (got {accept!r})")
        self.defaults = defaults
        self.accept = accept
        self.state: defaultdict[Variable, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._last: Slot | None = None
        given = list(params)
        if not given:
            raise ValueError("an optimizer needs at least one parameter (got none); does the agent have any?")
        groups: list[Any] = given if isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            self.add_param_group(group)

    @abstractmethod
    async def propose(
        self,
        job: Job,
        parameter: Variable,
        value: Any,
        gradients: Sequence[Variable],
        group: Mapping[str, Any],
    ) -> Change:
        """Return what to do with one parameter; on the runtime's loop, for all parameters at once.

        With `accept` it may be called several times in a step, so what is to be kept of the step belongs in
        `remember`. `self.state[parameter].get("rejected")` has the proposals that were tried and not taken,
        the last ones last: dicts with "value", "score" and "against", the mean scores of the proposal and of the
        value that it was to replace.

        Args:
            value: its value when the step was launched.
            gradients: the feedback that it had then, or some of it; at least one.
            group: the options of its group.
        """

    async def reduce(
        self,
        job: Job,
        parameter: Variable,
        value: Any,
        gradients: Sequence[Variable],
        group: Mapping[str, Any],
    ) -> Sequence[Variable]:
        """Return the gradients as `propose` and `remember` get them; called once a step, with all of them."""
        return gradients

    def remember(  # noqa: B027 - most have nothing to keep
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], group: Mapping[str, Any]
    ) -> None:
        """Keep in `state` what later steps need of this one; called once a step, with all of the feedback."""

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters with options of their own."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"a group is a dict with 'params' and options (got {group!r})")
        unknown = [name for name in group if name not in self.defaults and name != "params"]
        if unknown:
            known_options = ", ".join(self.defaults)
            raise ValueError(f"a group has no option {unknown[0]!r} (the options: {known_options})")
        params = [group["params"]] if isinstance(group["params"], Variable) else list(group["params"])
        known = {id(p) for existing in self.param_groups for p in existing["params"]}
        for parameter in params:
            if not isinstance(parameter, Variable):
                raise TypeError(f"an optimizer takes Parameters (got {parameter!r})")
            if not parameter.is_leaf:
                raise ValueError(f"a parameter must be a leaf (got {parameter!r}, the output of an op)")
            if parameter.batch:
                raise ValueError(f"a parameter is one text, not a batch (got {parameter!r})")
            if id(parameter) in known:
                raise ValueError(f"{parameter!r} is in a group of this optimizer already")
            known.add(id(parameter))
        self.param_groups.append({**self.defaults, **group, "params": params})

    def clear_grad(self) -> None:
        """Drop the gathered feedback of every parameter; what is still on its way goes nowhere."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clear_grad()

    @folding
    def step(self, closure: Callable[[], Any] | None = None) -> Pending[Any]:
        """Replace each parameter by what `propose` makes of its feedback.

        It captures values and feedback and launches; from then on the parameters' values are pending. If
        a proposal fails, is cancelled or rejected, the parameter keeps its value and only the returned
        `Pending` raises. It waits where a blocking wait is allowed; on an event loop await the `Pending`.

        Args:
            closure: called first, to compute the loss and its feedback; its result is the handle's result. A `def`
                runs on this line; an `async def` is awaited on the runtime's loop once the values of earlier
                steps are there, and sees those.
        """
        if self.accept is not None:
            self.accept.begin()
        result = [None]
        deferred: Callable[[], Awaitable[Any]] | None = None
        if closure is not None:
            if is_async(closure):
                deferred = closure
            else:
                result[0] = returned = closure()
                if inspect.iscoroutine(returned):
                    deferred = lambda: returned  # noqa: E731
        launch = Launch(f"{type(self).__name__}.step")
        if deferred is None and self.accept is None:
            updates = self._updates()
            updated = {id(update.parameter) for update in updates}
            others = [parameter for parameter, _ in self._members() if id(parameter) not in updated]
            self._last = launch_step(launch, type(self).__name__, updates, others)
        else:
            self._last = self._launch_joint(launch, deferred, result)
        return Pending(self._last, lambda _: result[0]).wait_if_allowed()

    def _updates(self) -> list[Update]:
        updates: list[Update] = []
        for parameter, group in self._members():
            segments = parameter.pending_gradients[:]
            if parameter.requires_grad and segments:
                propose = self._proposer(parameter, segments, group)
                updates.append(Update(parameter, [segment.slot for segment in segments], propose))
        return updates

    def _proposer(
        self, parameter: Variable, segments: Sequence[PendingGradients], group: Mapping[str, Any]
    ) -> Propose:
        async def propose(job: Job, value: Any) -> Change:
            gradients = parameter.gradients_of(segments)
            if not gradients:
                return Change(parameter.role, value, value, 0)
            reduced = await self.reduce(job, parameter, value, gradients, group)
            change = await self.propose(job, parameter, value, reduced, group)
            self.remember(parameter, value, reduced, group)
            return change

        return propose

    def _launch_joint(
        self, launch: Launch, deferred: Callable[[], Awaitable[Any]] | None, result: list[Any]
    ) -> Slot:
        """Launch a step whose values are decided together, after `deferred` if it is given."""
        parameters = [parameter for parameter, _ in self._members()]
        segments = {} if deferred is not None else self._segments()
        all_of_them = deferred is not None or (self.accept is not None and not self.accept.needs_feedback)
        advancing = [
            p for n, p in enumerate(parameters) if p.requires_grad and (all_of_them or n in segments)
        ]

        async def decide(job: Job, values: tuple[Any, ...]) -> Decision:
            captured = segments
            if deferred is not None:
                with within(job.scope), bind(dict(zip(parameters, values, strict=True))):
                    result[0] = await deferred()
                captured = self._segments()
                await wait_async([s.slot for found in captured.values() for s in found])
            return await self._decide(job, values, captured)

        waits = [segment.slot for found in segments.values() for segment in found]
        return launch_joint_step(launch, type(self).__name__, parameters, advancing, waits, decide)

    def _segments(self) -> dict[int, list[PendingGradients]]:
        """Return the feedback of the parameters that gather it, by their numbers."""
        members = enumerate(self._members())
        return {n: p.pending_gradients[:] for n, (p, _) in members if p.requires_grad and p.pending_gradients}

    async def _decide(
        self, job: Job, values: tuple[Any, ...], segments: Mapping[int, Sequence[PendingGradients]]
    ) -> Decision:
        members = self._members()
        feedback: dict[int, Sequence[Variable]] = {
            n: members[n][0].gradients_of(found) for n, found in segments.items()
        }
        feedback = {number: gradients for number, gradients in feedback.items() if gradients}

        async def reduce(
            job: Job, position: int, gradients: Sequence[Variable], value: Any
        ) -> Sequence[Variable]:
            parameter, group = members[position]
            return await self.reduce(job, parameter, value, gradients, group)

        async def propose(job: Job, position: int, gradients: Sequence[Variable], value: Any) -> Change:
            parameter, group = members[position]
            return await self.propose(job, parameter, value, gradients, group)

        with within(job.scope):
            reduced = await for_each(
                job, "reduce", feedback, lambda inner, at: reduce(inner, at, feedback[at], values[at])
            )
        errors = tuple(found for found in reduced.values() if isinstance(found, BaseException))
        feedback = {n: found for n, found in reduced.items() if not isinstance(found, BaseException)}
        if not feedback and (errors or self.accept is None or self.accept.needs_feedback):
            return Decision(values, (), (), errors)
        parameters = tuple(parameter for parameter, _ in members)
        work = Round(parameters, values, feedback, propose, reduce, tuple(group for _, group in members))
        decision = await (self.accept or Always()).decide(job, work)
        failed = (feedback if decision.errors else ()) if decision.failed is None else decision.failed
        for position, gradients in feedback.items():
            if position not in failed:
                parameter, group = members[position]
                self.remember(parameter, values[position], gradients, group)
        decision = replace(decision, errors=(*errors, *decision.errors))
        for position, tried in decision.rejected:
            memory = self.state[parameters[position]].setdefault("rejected", [])
            memory[:] = [*(past for past in memory if past["value"] != tried["value"]), tried][-REMEMBERED:]
        return decision

    def state_dict(self) -> dict[str, Any]:
        """Return groups, state and what `accept` knows, parameters by number; waits for a step under way.

        What can't be written down (model clients, which hold keys, functions) is left out, however deep it is
        nested; `load_state_dict` keeps what is there.
        """
        if self._last is not None:
            wait([self._last])
        numbers = self._numbers()
        groups = [
            {
                **savable({name: value for name, value in group.items() if name != "params"}),
                "params": [numbers[id(parameter)] for parameter in group["params"]],
            }
            for group in self.param_groups
        ]
        state = {numbers[id(p)]: copied(entries) for p, entries in self.state.items() if id(p) in numbers}
        saved = {"state": state, "param_groups": groups}
        return saved if self.accept is None else {**saved, "accept": self.accept.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take options and state that `state_dict` returned.

        Raises:
            ValueError: if the groups differ in number or size, or one of both has an `accept` and the other none.
        """
        groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"the state has groups of {sizes} parameters and this optimizer of {own}")
        if ("accept" in state_dict) != (self.accept is not None):
            has = "an accept state" if "accept" in state_dict else "no accept state"
            raise ValueError(f"the state has {has} and this optimizer has accept={self.accept!r}")
        for group, saved in zip(self.param_groups, groups, strict=True):
            options = {name: value for name, value in saved.items() if name != "params"}
            group.update(restored({name: group.get(name) for name in options}, options))
        by_number = {number: p for p, number in self._parameters_by_number()}
        self.state.clear()
        for number, entries in state_dict["state"].items():
            self.state[by_number[int(number)]] = copied(entries)
        if self.accept is not None:
            self.accept.load_state_dict(state_dict["accept"])

    def _members(self) -> list[tuple[Variable, dict[str, Any]]]:
        return [(parameter, group) for group in self.param_groups for parameter in group["params"]]

    def _parameters_by_number(self) -> list[tuple[Variable, int]]:
        return [(parameter, number) for number, (parameter, _) in enumerate(self._members())]

    def _numbers(self) -> dict[int, int]:
        return {id(parameter): number for parameter, number in self._parameters_by_number()}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"  group {number}: {len(group['params'])} parameters")
            lines += [f"    {name}: {value!r}" for name, value in sorted(group.items()) if name != "params"]
        return "\n".join([*lines, ")"])


# Step: how new values reach the parameters, each on its own or all together.


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


# State: what of an optimizer's options and state can be written down, and how it comes back.


_PLAIN: Final = (str, int, float, bool, type(None), Variable)


@final
class _Left:
    """Marks what is left out."""


_LEFT: Final = _Left()


def savable(value: Any) -> Any:
    """Return `value` without what can't be written down: model clients, which hold keys, functions, objects.

    Entries of dicts are left out; elements of lists and tuples become None, so that the others keep their places.

    >>> savable({"model": "m", "tools": [print, {"fn": len, "n": 1}]})
    {'model': 'm', 'tools': [None, {'n': 1}]}
    """
    kept = _savable(value)
    return None if kept is _LEFT else kept


def _savable(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = {name: _savable(entry) for name, entry in value.items()}
        return {name: entry for name, entry in entries.items() if entry is not _LEFT}
    if isinstance(value, list):
        return [savable(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(savable(entry) for entry in value)
    return value if isinstance(value, _PLAIN) else _LEFT


def restored(own: Any, saved: Any) -> Any:
    """Return `saved` with what `savable` left out taken from `own`.

    >>> restored({"tools": [print, {"fn": len, "n": 1}]}, {"tools": [None, {"n": 2}]}) == {
    ...     "tools": [print, {"fn": len, "n": 2}]}
    True
    """
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        left = {name: entry for name, entry in own.items() if name not in saved and _savable(entry) is _LEFT}
        return {**left, **{name: restored(own.get(name), entry) for name, entry in saved.items()}}
    if isinstance(own, list | tuple) and isinstance(saved, list | tuple) and len(own) == len(saved):
        return type(saved)(restored(mine, entry) for mine, entry in zip(own, saved, strict=True))
    if saved is None and own is not None and _savable(own) is _LEFT:
        return own
    return copied(saved)


def copied(value: Any) -> Any:
    """Return state whose lists, tuples and dicts later steps don't change; Variables in it are never assigned."""
    if isinstance(value, dict):
        return {name: copied(entry) for name, entry in value.items()}
    if isinstance(value, list):  # also what is more than a list, such as `Reduced`
        return [copied(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(copied(entry) for entry in value)
    return value
