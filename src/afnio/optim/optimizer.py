"""Optimizer: parameters in groups, and a step that replaces their values by better ones."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

from afnio.autodiff import Variable
from afnio.autodiff.feedback import Segment
from afnio.errors import LaunchCancelledError
from afnio.models import ChatClient
from afnio.runtime import Failure, Job, Launch, Slot, Work
from afnio.runtime.events import StepEnded, emit
from afnio.runtime.launch import Body, Outcomes, Recover
from afnio.runtime.waiting import wait


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


Propose = Callable[[Job, Any], Awaitable[Change]]
"""What makes a parameter's next value: called with the step's job and the value so far."""


class Optimizer(ABC):
    """Base of optimizers: write `propose`, which gets one parameter's value and gradients.

    Args:
        params: Parameters, or dicts with "params" and options of their own.
        defaults: the options of groups that don't give them.
    """

    def __init__(
        self, params: Iterable[Variable] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        if isinstance(params, Variable):
            raise TypeError("an optimizer takes an iterable of Parameters; put the one in a list")
        self.defaults = defaults
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

        Args:
            value: its value when the step was launched.
            gradients: the feedback that it had then; at least one.
            group: the options of its group.
        """

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

    def step(self, closure: Callable[[], Any] | None = None) -> Work[Any]:
        """Replace each parameter by what `propose` makes of its feedback.

        It captures values and feedback and launches; from then on the parameters' values are pending. If
        a proposal fails, is cancelled or rejected, the parameter keeps its value and only the returned
        `Work` raises. It waits where a blocking wait is allowed; on an event loop await the `Work`.

        Args:
            closure: called first; its result is the Work's result.
        """
        result = closure() if closure is not None else None
        launch = Launch(f"{type(self).__name__}.step")
        updates: list[Update] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                segments = parameter.segments[:]
                if parameter.requires_grad and segments:
                    propose = self._proposer(parameter, segments, group)
                    updates.append(Update(parameter, [segment.slot for segment in segments], propose))
        self._last = launch_step(launch, type(self).__name__, updates)
        return Work(self._last, lambda _: result).wait_if_allowed()

    def _proposer(
        self, parameter: Variable, segments: Sequence[Segment], group: Mapping[str, Any]
    ) -> Propose:
        async def propose(job: Job, value: Any) -> Change:
            gradients = parameter.gradients_of(segments)
            if not gradients:
                return Change(parameter.role, value, value, 0)
            return await self.propose(job, parameter, value, gradients, group)

        return propose

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state, parameters by number; waits for a step that is under way.

        Model clients, which hold keys, are left out; `load_state_dict` keeps those that are there.
        """
        if self._last is not None:
            wait([self._last])
        numbers = self._numbers()
        groups = [
            {
                **{name: value for name, value in group.items() if not isinstance(value, ChatClient)},
                "params": [numbers[id(parameter)] for parameter in group["params"]],
            }
            for group in self.param_groups
        ]
        state = {numbers[id(p)]: _copied(entries) for p, entries in self.state.items() if id(p) in numbers}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take options and state that `state_dict` returned.

        Raises:
            ValueError: if the groups differ in number or size.
        """
        groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(f"the state has groups of {sizes} parameters and this optimizer of {own}")
        for group, saved in zip(self.param_groups, groups, strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        by_number = {number: p for p, number in self._parameters_by_number()}
        self.state.clear()
        for number, entries in state_dict["state"].items():
            self.state[by_number[int(number)]] = _copied(entries)

    def _parameters_by_number(self) -> list[tuple[Variable, int]]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        return [(parameter, number) for number, parameter in enumerate(parameters)]

    def _numbers(self) -> dict[int, int]:
        return {id(parameter): number for parameter, number in self._parameters_by_number()}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"  group {number}: {len(group['params'])} parameters")
            lines += [f"    {name}: {value!r}" for name, value in sorted(group.items()) if name != "params"]
        return "\n".join([*lines, ")"])


def _copied(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return state whose lists later steps don't change; what they hold is never changed in place."""
    return {name: list(entry) if isinstance(entry, list) else entry for name, entry in entries.items()}


class Update(NamedTuple):
    """What a step does to one parameter: once its value and `waits` are there, `propose` its next value."""

    parameter: Variable
    waits: Sequence[Slot]
    propose: Propose


def launch_step(launch: Launch, name: str, updates: Sequence[Update]) -> Slot:
    """Start a step and return the slot of its end: the changes, or the errors of what kept its value.

    A parameter whose update fails or is cancelled takes the value that it had.
    """
    values = [Slot(launch) for _ in updates]
    statuses = [Slot(launch) for _ in updates]
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
    launch.add(_finishing(name), statuses, [done], part="end", gather=True)
    launch.holders = [weakref.ref(update.parameter) for update in updates]
    # Nothing after this line raises: no parameter is left waiting for a step that never ran.
    for update, value in zip(updates, values, strict=True):
        update.parameter.advance(value)
    launch.start()
    return done


def _proposing(propose: Propose) -> Body:
    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        change = await propose(job, outcomes[0])
        return [change.after, change]

    return body


def _keeping(previous: Slot) -> Recover:
    def keep(job: Job, error: BaseException) -> Outcomes:
        return [previous.outcome, Failure(error, read=isinstance(error, LaunchCancelledError))]

    return keep


def _finishing(name: str) -> Body:
    def finish(job: Job, outcomes: list[Any]) -> Outcomes:
        changes = tuple(outcome for outcome in outcomes if isinstance(outcome, Change))
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        for failure in failures:
            failure.mark_read()
        errors = [failure.error for failure in failures]
        error: BaseException | None = errors[0] if errors else None
        if len(errors) > 1:
            error = BaseExceptionGroup("parameters kept their values", errors)
        emit(StepEnded(job.launch.address, name, changes, None if error is None else str(error)))
        return [changes] if error is None else job.fail(error)

    return finish
