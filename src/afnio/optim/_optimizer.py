"""Optimizers: parameters in groups, and a step that gives them better values.

A step reads the feedback that a backward pass left in `parameter.grad`, asks `propose` for a better value, and assigns
it. It is a launch like any op. `step()` returns immediately, and from that line on the parameters are pending.
Whatever reads them, such as the next batch's forward pass, waits for the step and for nothing else.

How a step runs:

* `step()` notes the feedback that is there, in program order. A `clear_grad()` on the next line takes nothing from it.
* Each parameter with feedback is a job. The job waits for that parameter's value and feedback, calls `reduce`,
  `propose` and `remember`, and fills in the new value. A slow proposal for one parameter doesn't hold up the others.
* In a search (`EditTGD`) a candidate is a value for every parameter, so a single job waits for all of them and decides.
  The same holds after an async closure, because it may give feedback to any parameter.
* A last job collects the changes, emits `StepEnded` and resolves the step's `Pending`.

A step never leaves a parameter without a value. If a job fails or is cancelled, its parameters keep the values they
had, and only the `Pending` raises. Otherwise one failed proposal would fail every forward pass after it.

Users' methods get no engine object. They run inside their job (`working`), where `ChatModel.complete` and
`optim.reduce` find the address by which the journal answers a repeated run.
"""

from __future__ import annotations

import inspect
import weakref
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, final

import anyio

from afnio.autodiff._variable import Variable, bind
from afnio.errors import LaunchCancelledError, distinct, reason
from afnio.runtime._callables import is_async
from afnio.runtime._kernel import (
    PENDING,
    Body,
    Job,
    Launch,
    Outcomes,
    Recover,
    Slot,
    current_job,
    note_place,
    working,
)
from afnio.runtime._tracebacks import Failure, folding
from afnio.runtime._waiting import Pending, wait, wait_async
from afnio.runtime.events import StepEnded, emit

T = TypeVar("T")


class Optimizer(ABC):
    """Base class of optimizers. A subclass writes `propose`, which gets one parameter's value and feedback.

    Args:
        params: parameters, or dicts with "params" and options for that group.
        defaults: options of groups that don't set them.

    Raises:
        TypeError: for anything but Parameters.
        ValueError: for no parameters, for one that is given twice, and for outputs of ops.

    >>> import afnio
    >>> class Append(Optimizer):
    ...     async def propose(self, parameter, value, gradients, options):
    ...         after = options["sep"].join([value, *(gradient.data for gradient in gradients)])
    ...         return Change(parameter.role, value, after, len(gradients))
    >>> prompt = afnio.Parameter("Answer.", role="prompt")
    >>> prompt.append_grad(afnio.Variable("Be brief."))
    >>> _ = Append([prompt], {"sep": " "}).step()
    >>> prompt.data
    'Answer. Be brief.'
    """

    needs_feedback: ClassVar[bool] = True
    """False if a step finds feedback itself, as that of `EditTGD`, and so does something without any."""

    def __init__(
        self, params: Iterable[Variable] | Iterable[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        if isinstance(params, Variable):
            raise TypeError(f"params must be an iterable of Parameters (got {params!r}); put it in a list")
        self.defaults = defaults
        self.state: defaultdict[Variable, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        self._last: Slot | None = None
        entries = list(params)
        if not entries:
            raise ValueError(
                "params must have at least one parameter (got none); check that the agent has parameters"
            )
        groups: list[Any] = entries if isinstance(entries[0], dict) else [{"params": entries}]
        for group in groups:
            self.add_param_group(group)

    @abstractmethod
    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        """Return the change to one parameter. All parameters are asked at the same time, on the runtime's loop.

        Write what later steps need in `remember`, which is called only if the step succeeds.

        Args:
            value: the parameter's value. Don't read `parameter.data`, which is pending until the step ends.
            gradients: feedback from the step's launch, or some of it; at least one.
            options: the options of the parameter's group.
        """

    async def reduce(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Sequence[Variable]:
        """Return the gradients that `propose` and `remember` get. Called once per step, with all of them."""
        return gradients

    def remember(  # noqa: B027 - most optimizers have nothing to keep
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> None:
        """Update `state` after a step that succeeded. Called once per step, with all of its (reduced) feedback."""

    def add_param_group(self, group: dict[str, Any]) -> None:
        """Add parameters, with options for them."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"a group must be a dict with 'params' and options (got {group!r})")
        unknown = [name for name in group if name not in self.defaults and name != "params"]
        if unknown:
            known_options = ", ".join(self.defaults)
            raise ValueError(f"a group's options must be among {known_options} (got {unknown[0]!r})")
        params = [group["params"]] if isinstance(group["params"], Variable) else list(group["params"])
        present = {id(p) for existing in self.param_groups for p in existing["params"]}
        for parameter in params:
            if not isinstance(parameter, Variable):
                raise TypeError(f"params must be Parameters (got {parameter!r})")
            if not parameter.is_leaf:
                raise ValueError(f"a parameter must be a leaf (got {parameter!r}, the output of an op)")
            if parameter.batch:
                raise ValueError(f"a parameter must be one text, not a batch (got {parameter!r})")
            if id(parameter) in present:
                raise ValueError(f"a parameter must be in one group only (got {parameter!r} twice)")
            present.add(id(parameter))
        self.param_groups.append({**self.defaults, **group, "params": params})

    def clear_grad(self) -> None:
        """Drop the feedback of every parameter. Feedback still in flight is dropped when it arrives."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.clear_grad()

    @folding
    def step(self, closure: Callable[[], Any] | None = None) -> Pending[Any]:
        """Replace each parameter that has feedback by the value that `propose` returns.

        Launches and returns. The parameters are pending until their new values are there. If a proposal fails, is
        cancelled or is rejected, its parameter keeps its value and the others step. Waits for the end where a
        blocking wait is allowed; on an event loop, await the `Pending`.

        Args:
            closure: computes the loss and its feedback; called before the step, which returns its result. A `def` runs
                on this line. An `async def` runs on the runtime's loop once earlier steps have ended, and reads
                their values.
        """
        decide = self._begin()
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
        if deferred is None and self.needs_feedback:
            lanes = self._lanes(self._gathered())
        else:
            lanes = [self._joint_lane(decide, deferred, result)]
        parameters = [parameter for parameter, _ in self._members()]
        self._last = launch_step(launch, type(self).__name__, parameters, lanes)
        return Pending(self._last, lambda _: result[0]).wait_if_allowed()

    def _gathered(self) -> dict[int, Gathered]:
        """Return the feedback there is now, by position of the parameter. Frozen parameters are left out."""
        return {
            position: Gathered([s.slot for s in segments], partial(parameter.gradients_of, segments))
            for position, (parameter, _) in enumerate(self._members())
            if parameter.requires_grad and (segments := parameter.pending_gradients[:])
        }

    def _lanes(self, gathered: Mapping[int, Gathered]) -> list[StepLane]:
        """Return one lane for each parameter with feedback, so that none waits for another."""
        return [
            StepLane(f"parameter {number}", [position], [position], entry.waits, self._alone(position, entry))
            for number, (position, entry) in enumerate(gathered.items())
        ]

    def _alone(self, position: int, gathered: Gathered) -> Decide:
        async def decide(values: tuple[Any, ...]) -> Decision:
            change = await self._improve(position, values[0], gathered)
            return Decision((change.after,), (change,))

        return decide

    async def _improve(self, position: int, value: Any, gathered: Gathered) -> Change:
        """Make and accept one parameter's proposal."""
        parameter, options = self._members()[position]
        gradients = gathered.read()
        if not gradients:
            return Change(parameter.role, value, value, 0)
        reduced = await self.reduce(parameter, value, gradients, options)
        change = await self.propose(parameter, value, reduced, options)
        self.remember(parameter, value, reduced, options)
        return change

    def _begin(self) -> DecideAll:
        """Return how a step decides for all parameters together.

        Called when the step is launched, in program order: draw seeds and read options here.
        """
        return self._propose_all

    async def _propose_all(self, inputs: StepInputs) -> Decision:
        feedback = inputs.feedback
        changes, failed = await for_each(
            feedback,
            lambda at: self.propose(
                inputs.parameters[at], inputs.values[at], feedback[at], inputs.options[at]
            ),
        )
        return accepted(inputs.values, changes, failed)

    def _joint_lane(
        self, decide_all: DecideAll, deferred: Callable[[], Awaitable[Any]] | None, result: list[Any]
    ) -> StepLane:
        """Return the lane that decides for all parameters together, after `deferred` if it is given."""
        parameters = [parameter for parameter, _ in self._members()]
        gathered = {} if deferred is not None else self._gathered()
        any_may_change = deferred is not None or not self.needs_feedback
        advances = [
            n for n, p in enumerate(parameters) if p.requires_grad and (any_may_change or n in gathered)
        ]

        async def decide(values: tuple[Any, ...]) -> Decision:
            found: Mapping[int, Gathered] = gathered
            if deferred is not None:
                with bind(dict(zip(parameters, values, strict=True))):
                    result[0] = await deferred()
                found = self._gathered()
                await wait_async([slot for entry in found.values() for slot in entry.waits])
            return await self._decide(values, found, decide_all)

        waits = [slot for entry in gathered.values() for slot in entry.waits]
        return StepLane("all", range(len(parameters)), advances, waits, decide)

    async def _decide(
        self, values: tuple[Any, ...], gathered: Mapping[int, Gathered], decide_all: DecideAll
    ) -> Decision:
        """Reduce the feedback, decide, and keep what later steps need."""
        members = self._members()
        read = {at: gradients for at, entry in gathered.items() if (gradients := entry.read())}
        parameters, options = tuple(p for p, _ in members), tuple(group for _, group in members)
        feedback, failed = await for_each(
            read, lambda at: self.reduce(parameters[at], values[at], read[at], options[at])
        )
        errors = tuple(failed.values())
        if not feedback and (errors or self.needs_feedback):
            return Decision(values, errors=errors)
        decision = await decide_all(StepInputs(parameters, values, feedback, options))
        kept = (feedback if decision.errors else ()) if decision.failed is None else decision.failed
        for position, gradients in feedback.items():
            if position not in kept:
                self.remember(parameters[position], values[position], gradients, options[position])
        return replace(decision, errors=(*errors, *decision.errors))

    def state_dict(self) -> dict[str, Any]:
        """Return groups and state, with parameters by number. Waits for the last step.

        Values that can't be saved (model clients, which hold keys, and functions) are left out at any depth.
        `load_state_dict` keeps those that the optimizer has.
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
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore options and state from `state_dict()`.

        Raises:
            ValueError: if the groups differ in number or size.
        """
        groups = state_dict["param_groups"]
        sizes = [len(group["params"]) for group in groups]
        own = [len(group["params"]) for group in self.param_groups]
        if sizes != own:
            raise ValueError(
                f"the state must have groups of {own} parameters, as this optimizer (got {sizes})"
            )
        for group, saved in zip(self.param_groups, groups, strict=True):
            options = {name: value for name, value in saved.items() if name != "params"}
            group.update(restored({name: group.get(name) for name in options}, options))
        members = self._members()
        self.state.clear()
        for number, entries in state_dict["state"].items():
            self.state[members[int(number)][0]] = copied(entries)

    def _members(self) -> list[tuple[Variable, dict[str, Any]]]:
        """Return every parameter with its group. A parameter's position in this list is its number."""
        return [(parameter, group) for group in self.param_groups for parameter in group["params"]]

    def _numbers(self) -> dict[int, int]:
        return {id(parameter): number for number, (parameter, _) in enumerate(self._members())}

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__} ("]
        for number, group in enumerate(self.param_groups):
            lines.append(f"  group {number}: {len(group['params'])} parameters")
            lines += [f"    {name}: {value!r}" for name, value in sorted(group.items()) if name != "params"]
        return "\n".join([*lines, ")"])


# The result of a step, as plain data for logs, stores and displays.


@final
@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one parameter.

    Attributes:
        role: the parameter's role.
        before, after: its values. They are equal if it wasn't changed.
        gradients: the number of gradients it had.
        rejected: why a proposal was rejected. None if it was accepted or there was none.
        evidence: the feedback that the proposer read, after reduction.
        lineage: the blocks of `after` in order, for optimizers that edit by block. Empty for others.
        dropped: why edits were left out, one sentence for each.
    """

    role: str
    before: Any
    after: Any
    gradients: int
    rejected: str | None = None
    evidence: tuple[Evidence, ...] = ()
    lineage: tuple[Lineage, ...] = ()
    dropped: tuple[str, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Lineage:
    """Where one block of a text comes from, and how candidates with it did against candidates without it.

    `dataclasses.asdict` makes a plain dict of it, with these keys, that JSON can hold:

        {"text": "Answer in one word.", "step": 3, "samples": [17, 4], "replaces": None,
         "races": 2, "wins": 5, "losses": 1, "ties": 42, "effect": 0.083, "low": -0.02, "high": 0.187}

    Attributes:
        text: the block.
        step: the step whose edit wrote it, from 1. 0 for a block of the start text.
        samples: numbers of the training samples that the edit was made from.
        replaces: the block that it replaced. None if it was added.
        races: the number of races in which some candidates had it and others didn't.
        wins, losses, ties: samples of these races on which the candidates with it scored more, less or the same, on
            average, than those without it.
        effect: the mean difference in score, with minus without. None if it was in no race.
        low, high: the 95 % interval of `effect`. Most intervals contain 0: one block is worth little, and a race is
            short. None with fewer than two samples.
    """

    text: str
    step: int = 0
    samples: tuple[int, ...] = ()
    replaces: str | None = None
    races: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    effect: float | None = None
    low: float | None = None
    high: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """One feedback text that a proposer read.

    Attributes:
        text: the feedback.
        trail: the samples it comes from, plain data as in `Variable.provenance`.
    """

    text: str
    trail: tuple[Mapping[str, Any], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """A value for each parameter of an optimizer, compared with other candidates.

    Attributes:
        number: unique within the optimizer. 0 is the start. None for values that were made elsewhere, such as those
            that a gate compares: a run records them under the number that the values have there, or a new one.
        parents: the numbers of the candidates it was made from.
        values: one for each parameter, in the optimizer's order.
        scores: one for each sample it was evaluated on. None if the sample failed or was cancelled.
        verdict: "accepted", or the reason why it wasn't.
        name: what it is, such as "incumbent", "chain 2", "union". Empty if the optimizer doesn't name candidates.
        samples: the numbers of the samples that `scores` are of, in the data set. Candidates of one race share them,
            so a table of candidate by sample has a column for each. Empty if unknown.
    """

    number: int | None
    parents: tuple[int, ...]
    values: tuple[Any, ...]
    scores: tuple[float | None, ...]
    verdict: str
    name: str = ""
    samples: tuple[int, ...] = ()

    @property
    def vetoed(self) -> bool:
        """True if a guard refused it."""
        return self.verdict.startswith("vetoed")


# Steps that decide for all parameters together.


@final
@dataclass(frozen=True, slots=True)
class StepInputs:
    """The input of a step that decides for all parameters together.

    Attributes:
        parameters: all parameters, in the optimizer's order.
        values: their values before the step.
        feedback: the reduced gradients of the parameters that have some, by position.
        options: the options of each parameter's group.
    """

    parameters: tuple[Variable, ...]
    values: tuple[Any, ...]
    feedback: Mapping[int, Sequence[Variable]]
    options: tuple[Mapping[str, Any], ...]

    def bound(self, values: Sequence[Any]) -> dict[Variable, Any]:
        """Return `values` by parameter, for `bind`."""
        return dict(zip(self.parameters, values, strict=True))


@final
@dataclass(frozen=True, slots=True)
class Decision:
    """The result of a lane of a step.

    Attributes:
        values: one for each parameter that the lane reads, in order.
        changes: one for each parameter that had feedback.
        candidates: the candidates that were compared.
        errors: errors for the step to raise.
        failed: positions of the parameters that `errors` are about. None means all.
    """

    values: tuple[Any, ...]
    changes: tuple[Change, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    errors: tuple[BaseException, ...] = ()
    failed: tuple[int, ...] | None = None


DecideAll = Callable[[StepInputs], Awaitable[Decision]]
"""Returns new values of all parameters."""


def accepted(
    values: Sequence[Any], changes: Mapping[int, Change], failed: Mapping[int, BaseException]
) -> Decision:
    """Return the decision to take all `changes`, by position. Parameters that `failed` keep their values."""
    after = tuple(changes[at].after if at in changes else value for at, value in enumerate(values))
    return Decision(after, tuple(changes.values()), (), tuple(failed.values()), failed=tuple(failed))


async def for_each(
    positions: Iterable[int], do: Callable[[int], Awaitable[T]]
) -> tuple[dict[int, T], dict[int, BaseException]]:
    """Do something for several parameters concurrently. Return the results and the errors, by position.

    Each position is a job in the current scope, with its own address. So calls are numbered by parameter, not by
    which one asked first, and a journal finds them in the next run.
    """
    outer = current_job().launch
    launch = Launch(outer.name)
    launch.line = outer.line
    slots: dict[int, Slot] = {}
    for position in positions:
        slots[position] = Slot(launch)
        launch.add(_doing(do, position), [], [slots[position]], part=f"parameter {position}")
    launch.start()
    await wait_async(slots.values())
    done: dict[int, T] = {}
    failed: dict[int, BaseException] = {}
    for position, slot in slots.items():
        if isinstance(slot.outcome, Failure):
            slot.outcome.mark_read()
            failed[position] = slot.outcome.error
        else:
            (done[position],) = slot.outcome
    return done, failed


def _doing(do: Callable[[int], Awaitable[T]], position: int) -> Body:
    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        with working(job):
            return [(await do(position),)]

    return body


async def side_by_side(works: Sequence[Callable[[], Any]]) -> None:
    """Run all concurrently. If some fail, cancel the others and raise the first error by position, without a group."""
    errors: dict[int, Exception] = {}

    async def one(number: int) -> None:
        try:
            await works[number]()
        except Exception as error:
            errors[number] = error
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for number in range(len(works)):
            tasks.start_soon(one, number)
    if errors:
        raise errors[min(errors)]


# The launch of a step.


Decide = Callable[[tuple[Any, ...]], Awaitable["Decision"]]
"""Returns a lane's decision from the values that it reads."""


class Gathered(NamedTuple):
    """Feedback on one parameter: the slots that it is in, and how to read it once they are done."""

    waits: Sequence[Slot]
    read: Callable[[], Sequence[Variable]]


class StepLane(NamedTuple):
    """One job of a step. Parameters are given by position.

    Attributes:
        part: the job's name in addresses. Journals find calls by it.
        reads: parameters whose values `decide` gets.
        advances: parameters that may change, among those that it reads. They are pending from the launch on.
        waits: slots that must be done before, beside the values.
        decide: returns the new values.
    """

    part: str
    reads: Sequence[int]
    advances: Sequence[int]
    waits: Sequence[Slot]
    decide: Decide


def launch_step(launch: Launch, name: str, parameters: Sequence[Variable], lanes: Sequence[StepLane]) -> Slot:
    """Start a step. Return the slot of its end: the changes, or a failure with the lanes' errors."""
    values: dict[int, Slot] = {}
    ends: list[Slot] = []
    for lane in lanes:
        previous = {position: parameters[position].own_slots[0] for position in lane.reads}
        outputs = {position: Slot(launch) for position in lane.advances}
        end = Slot(launch)
        launch.add(
            _deciding(lane),
            [*previous.values(), *lane.waits],
            [*outputs.values(), end],
            part=lane.part,
            gather=True,
            recover=_keeping([previous[position] for position in outputs]),
        )
        values.update(outputs)
        ends.append(end)
    before = [(p.role, values.get(at, p.own_slots[0])) for at, p in enumerate(parameters)]
    done = Slot(launch)
    finish = partial(_finish, name, before, ends)
    launch.add(finish, ends, [done], part="end", gather=True, recover=finish)
    launch.holders = [weakref.ref(parameters[position]) for position in values]
    # Nothing below may raise: a parameter must not wait for a step that never starts.
    for position, value in values.items():
        parameters[position].advance(value)
    launch.start()
    return done


def _deciding(lane: StepLane) -> Body:
    async def body(job: Job, outcomes: list[Any]) -> Outcomes:
        with working(job):
            decision = await lane.decide(tuple(outcomes[: len(lane.reads)]))
        after = dict(zip(lane.reads, decision.values, strict=True))
        return [*(after[position] for position in lane.advances), decision]

    return body


def _keeping(previous: Sequence[Slot]) -> Recover:
    def keep(job: Job, error: BaseException) -> Outcomes:
        return [*(slot.outcome for slot in previous), Failure(error, read=True)]

    return keep


def _finish(
    name: str, before: Sequence[tuple[str, Slot]], ends: Sequence[Slot], job: Job, _: object
) -> Outcomes:
    """End a step, after its last lane; also one that was cancelled."""
    changes: list[Change] = []
    candidates: list[Candidate] = []
    errors: list[BaseException] = []
    for end in ends:
        if isinstance(end.outcome, Decision):
            changes += end.outcome.changes
            candidates += end.outcome.candidates
            errors += end.outcome.errors
        elif isinstance(end.outcome, Failure):
            errors.append(end.outcome.error)
    values = tuple(
        (role, slot.outcome)
        for role, slot in before
        if slot.outcome is not PENDING and not isinstance(slot.outcome, Failure)
    )
    errors = distinct(errors)
    error: BaseException | None = errors[0] if errors else None
    if len(errors) > 1:
        error = BaseExceptionGroup(f"parameters kept their values, first with {reason(errors[0])}", errors)
    message = None if error is None else str(error)
    emit(StepEnded(job.launch.address, name, tuple(changes), message, tuple(candidates), values))
    if error is None:
        return [tuple(changes)]
    note_place(error, job.launch, None)
    failure = Failure(error, read=isinstance(error, LaunchCancelledError))
    job.launch.scope.owner.note(failure)
    return [failure]


# The state of an optimizer: which options and entries can be saved, and how they are restored.


_PLAIN: Final = (str, int, float, bool, type(None), Variable)


@final
class _Left:
    """Marks a value that can't be saved."""


_LEFT: Final = _Left()


def savable(value: Any) -> Any:
    """Return `value` without the parts that can't be saved: model clients, which hold keys, functions, objects.

    Entries of dicts are left out. Elements of lists and tuples become None, so that the others keep their places.

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
    """Return `saved`, with the parts that `savable` left out taken from `own`.

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
    """Return a copy of `value` whose lists, tuples and dicts later steps don't change. Variables are shared."""
    if isinstance(value, dict):
        return {name: copied(entry) for name, entry in value.items()}
    if isinstance(value, list):  # subclasses too, such as `Reduced`, become plain lists
        return [copied(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(copied(entry) for entry in value)
    return value
