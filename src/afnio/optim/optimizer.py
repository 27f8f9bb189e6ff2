"""Optimizer: parameters in groups, and a step that replaces their values by better ones."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from afnio.autodiff._data import Segment
from afnio.autodiff._variable import Variable, bind
from afnio.optim.change import Change
from afnio.optim.state import copied, restored, savable
from afnio.optim.step import (
    Acceptance,
    Always,
    Decision,
    Propose,
    Round,
    Update,
    for_each,
    launch_joint_step,
    launch_step,
)
from afnio.runtime._callables import is_async
from afnio.runtime._kernel import Job, Launch, Slot, within
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Work, wait, wait_async

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
    def step(self, closure: Callable[[], Any] | None = None) -> Work[Any]:
        """Replace each parameter by what `propose` makes of its feedback.

        It captures values and feedback and launches; from then on the parameters' values are pending. If
        a proposal fails, is cancelled or rejected, the parameter keeps its value and only the returned
        `Work` raises. It waits where a blocking wait is allowed; on an event loop await the `Work`.

        Args:
            closure: called first, to compute the loss and its feedback; its result is the Work's result. A `def`
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
        return Work(self._last, lambda _: result[0]).wait_if_allowed()

    def _updates(self) -> list[Update]:
        updates: list[Update] = []
        for parameter, group in self._members():
            segments = parameter.segments[:]
            if parameter.requires_grad and segments:
                propose = self._proposer(parameter, segments, group)
                updates.append(Update(parameter, [segment.slot for segment in segments], propose))
        return updates

    def _proposer(
        self, parameter: Variable, segments: Sequence[Segment], group: Mapping[str, Any]
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

    def _segments(self) -> dict[int, list[Segment]]:
        """Return the feedback of the parameters that gather it, by their numbers."""
        members = enumerate(self._members())
        return {n: p.segments[:] for n, (p, _) in members if p.requires_grad and p.segments}

    async def _decide(
        self, job: Job, values: tuple[Any, ...], segments: Mapping[int, Sequence[Segment]]
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
