"""Sweep: the backward pass. It walks the graph once, at launch, and starts one job per (node, lane).

A job waits for the feedback of that lane's consumers and for the lane's own forward value, nothing else:
one sample can be in its backward pass while another waits for its first reply. What the pass gathered is
handed over at its end, and only if all of it succeeded or each node's quorum held.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, final

from afnio.autodiff._data import Feedback, Segment
from afnio.autodiff._function import Context, Function, LaneFeedback, Later, resolved, set_sweep_event
from afnio.autodiff._graph import AccumulateGrad, Edge, GradientEdge, Hook, Hooks, Node, claim, unclaim
from afnio.autodiff._variable import Variable, gradient
from afnio.errors import BudgetExceeded, GraphError, JournalError, distinct, reason
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import NO_FEEDBACK, PENDING, Failure, Job, Launch, Outcomes, Slot
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, wait_async

T = TypeVar("T")

_ENDS: Final = (BudgetExceeded, JournalError)
"""What no quorum masks: it ends the program's work, and is no failure of a sample."""


@folding
def backward(
    variables: Variable | Sequence[Variable],
    grad_variables: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Target | Sequence[Target] | None = None,
) -> Pending[None]:
    """Send feedback from `variables` to the leaves that they were computed from.

    It launches, then waits where a blocking wait is allowed; on an event loop await the `Pending`.

    Args:
        variables: outputs of ops. Evaluators' outputs need no seed.
        grad_variables: for each of them a Variable with feedback, which every other output needs.
        retain_graph: keep the graph for another pass.
        create_graph: not supported; feedback on feedback has no meaning here.
        inputs: gather only for these; a node that leads to none of them is not called.

    Raises:
        GraphError: for a leaf, a missing seed, a graph that another pass has claimed.
        RuntimeError: if an op on the way needs a backward model and none has been set.
    """
    if create_graph:
        raise GraphError(
            "create_graph=True is not supported: feedback is text and has no gradient of its own"
        )
    roots = [variables] if isinstance(variables, Variable) else list(variables)
    sweep = Sweep(roots, seeds_for(roots, grad_variables), edges_of(inputs), keep=bool(retain_graph))
    for holder, segment in sweep.segments:
        holder.segments.append(segment)
    return sweep.start(lambda _: None).wait_if_allowed()


@folding
def grad(
    outputs: Variable | Sequence[Variable],
    inputs: Target | Sequence[Target],
    grad_outputs: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
) -> list[list[Variable]]:
    """Return the feedback for each of `inputs` without adding it to their `grad`; waits for it."""
    return launch_grad(outputs, inputs, grad_outputs, retain_graph).wait()


def launch_grad(
    outputs: Variable | Sequence[Variable],
    inputs: Target | Sequence[Target],
    grad_outputs: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
) -> Pending[list[list[Variable]]]:
    """Launch what `grad` waits for."""
    roots = [outputs] if isinstance(outputs, Variable) else list(outputs)
    targets = edges_of(inputs)
    assert targets is not None
    sweep = Sweep(roots, seeds_for(roots, grad_outputs), targets, keep=bool(retain_graph), capture=True)
    faces = [target if isinstance(target, Variable) else Variable() for target in listed(inputs)]
    found = dict(sweep.captured)

    def read(_: Any) -> list[list[Variable]]:
        return [
            face.gradients_of([found[target]]) if target in found else []
            for face, target in zip(faces, targets, strict=True)
        ]

    return sweep.start(read)


@final
class Sweep:
    """One backward pass: its nodes in order, its feedback slots, its launch."""

    def __init__(
        self,
        roots: Sequence[Variable],
        seeds: Sequence[Variable | None],
        targets: list[GradientEdge] | None,
        *,
        keep: bool,
        capture: bool = False,
    ) -> None:
        self._targets = targets
        self._quorum = current_quorum()
        self._seedless: dict[Node, bool] = {}
        for root, seed in zip(roots, seeds, strict=True):
            check_root(root, seed, self._seedless)
        starts = [GradientEdge(root.graph_node(), root.output_nr) for root in roots]
        self._arrivals: dict[GradientEdge, list[Arrival]] = {}
        for root, seed, start in zip(roots, seeds, starts, strict=True):
            self._arrive(start, seed_arrival(root, seed))
        self.nodes = self._ordered([start.node for start in starts])
        for node in self.nodes:
            if node.function is not None and node.contexts:
                node.function.check_backward(node.contexts[0])
        self._launch = Launch("backward")
        self._stages: list[Stage] = []
        self._gatherings: list[list[Arrival]] = []
        self.captured: list[tuple[GradientEdge, Segment]] = []
        self.segments: list[tuple[Variable, Segment]] = []
        self._work = Slot(self._launch)
        mine = claim(self.nodes, keep=keep)
        try:
            self._build(capture)
        except BaseException:
            unclaim(self.nodes, mine)
            raise
        set_sweep_event(self._launch, self.nodes)
        if not keep:
            # The jobs own what they need, and nobody else may use the graph any more.
            for node in self.nodes:
                node.release()

    def start(self, result: Callable[[Any], T]) -> Pending[T]:
        """Launch the pass; the handle's result is what `result` finds once it has ended."""
        self._launch.holders = [weakref.ref(leaf) for leaf, _ in self.segments]
        self._launch.start()
        return Pending(self._work, result)

    # Building, on the caller's thread

    def _ordered(self, starts: Sequence[Node]) -> list[Node]:
        """Return the ops that lead to a target, every consumer before its producers."""
        leading: dict[Node, bool] = {}
        finished: list[Node] = []
        opened: set[int] = set()
        stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(starts)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                # A claimed node has lost its edges; it counts, so that claiming it again says so.
                leading[node] = bool(node.claims) or self._leads(node, leading)
                finished.append(node)
            elif id(node) not in opened and not isinstance(node, AccumulateGrad):
                opened.add(id(node))
                stack.append((node, True))
                stack.extend((e.node, False) for e in reversed(node.edges) if e is not None)
        self._leading = leading
        return [node for node in reversed(finished) if leading[node]]

    def _leads(self, node: Node, leading: Mapping[Node, bool]) -> bool:
        if self._targets is None and node.retained:
            return True
        return any(
            self._is_target(edge) or leading.get(edge.node, False) for edge in node.edges if edge is not None
        )

    def _is_target(self, edge: Edge) -> bool:
        if self._targets is None:
            return isinstance(edge.node, AccumulateGrad)
        return GradientEdge(edge.node, edge.output_nr) in self._targets

    def _build(self, capture: bool) -> None:
        for number, node in enumerate(self.nodes):
            self._add_node(node, f"node {number}")
        self._add_segments(capture)
        gathered = [arrival.slots for gathering in self._gatherings for arrival in gathering]
        statuses = [stage.statuses for stage in self._stages]
        segments = [segment.slot for _, segment in (*self.segments, *self.captured)]
        self._launch.add(
            self._finish,
            [slot for slots in (*statuses, *gathered) for slot in slots],
            [self._work, *segments],
            part="end",
            gather=True,
        )

    def _add_node(self, node: Node, part: str) -> None:
        arrivals = [
            self._arrived(GradientEdge(node, nr), f"{part}/hook {nr}") for nr in range(len(node.outputs))
        ]
        statuses = [Slot(self._launch) for _ in range(node.lanes)]
        ways: list[list[Way]] = [[] for _ in range(node.lanes)]
        outputs = [[status] for status in statuses]
        for index, edge in enumerate(node.edges):
            if edge is None or not (self._is_target(edge) or self._leading.get(edge.node, False)):
                continue
            way = Way(index, edge, seedless(edge.node, self._seedless))
            said = []
            for lane in range(node.lanes) if edge.lanes is None else edge.lanes:
                said.append(Slot(self._launch))
                ways[lane].append(way)
                outputs[lane].append(said[-1])
            self._arrive(GradientEdge(edge.node, edge.output_nr), Arrival(node, edge.batch, said))
        for lane in range(node.lanes):
            arriving = [slot for at in arrivals for arrival in at for slot in arrival.at(lane)]
            self._launch.add(
                LaneBackward(node, lane, ways[lane], arrivals, self._quorum),
                [*arriving, *(column[lane] for column in node.outputs)],
                outputs[lane],
                lane=None if node.size is None else lane,
                part=part,
                gather=True,
            )
        name = f"{node.name()} (forward launched at {node.line})"
        self._stages.append(Stage(name, node.size is not None, statuses))

    def _arrive(self, at: GradientEdge, arrival: Arrival) -> None:
        self._arrivals.setdefault(at, []).append(arrival)

    def _arrived(self, at: GradientEdge, part: str) -> list[Arrival]:
        """Return all that comes to `at`, in launch order, past its hooks; once for each place."""
        arrivals = sorted(self._arrivals.get(at, ()), key=_sequence)
        hooks, role = _hooks_at(at)
        for number, arrival in enumerate(arrivals if hooks else ()):
            assert hooks is not None
            arrivals[number], stage = hooked(self._launch, hooks, role, arrival, f"{part}.{number}")
            self._stages.append(stage)
        if arrivals:
            self._arrivals[at] = arrivals
        return arrivals

    def _add_segments(self, capture: bool) -> None:
        for number, (edge, arrivals) in enumerate(list(self._arrivals.items())):
            incoming = [arrival for arrival in arrivals if arrival.consumer is not None]
            if not incoming or (self._targets is not None and edge not in self._targets):
                continue
            holder = _holder(edge)
            if holder is None and not capture:
                continue
            if not self._leading.get(edge.node, False):  # else its hooks have seen what arrives
                arrived = self._arrived(edge, f"leaf {number}/hook")
                incoming = [arrival for arrival in arrived if arrival.consumer is not None]
            self._gatherings.append(incoming)
            segment = Segment(Slot(self._launch))
            if capture:
                self.captured.append((edge, segment))
            elif holder is not None:
                self.segments.append((holder, segment))

    # Ending, on the runtime's thread

    def _finish(self, job: Job, outcomes: list[Any]) -> Outcomes:
        arrived = iter(outcomes)
        errors: list[BaseException] = []
        told: set[int] = set()
        for stage in self._stages:
            lanes = [next(arrived) for _ in stage.statuses]
            failed = {id(outcome) for outcome in lanes if isinstance(outcome, Failure)}
            error = _stage_failure(stage, lanes, self._quorum)
            # A failed lane fails the lanes before it: each failure is told of once, where it showed first.
            if error is not None and not failed <= told:
                errors.append(error)
            told |= failed
        gathered = [_gather(gathering, arrived) for gathering in self._gatherings]
        if not errors:
            return [True, *gathered]
        if len(errors) == 1:
            return job.fail(errors[0])
        message = f"{len(errors)} nodes failed in the backward pass, first with {reason(errors[0])}"
        group = BaseExceptionGroup(message, distinct(errors))
        # Whoever reads the group has read the failures of all samples in it.
        group.failures = tuple(failure for error in errors for failure in getattr(error, "failures", ()))  # type: ignore[attr-defined]
        return job.fail(group)


def _gather(gathering: Sequence[Arrival], arrived: Iterator[Any]) -> list[Any]:
    """Return the gradients `(data, provenance)` of one Variable from what its consumers' lanes said."""
    gradients: list[Any] = []
    for arrival in gathering:
        lanes = [next(arrived) for _ in arrival.slots]
        said = [outcome if isinstance(outcome, Feedback) and outcome.text else None for outcome in lanes]
        if not arrival.aligned:
            gradients += [(f.text, f.provenance) for f in said if f is not None]
        elif any(said):
            texts = [None if f is None else f.text for f in said]
            gradients.append((texts, tuple(() if f is None else f.provenance for f in said)))
    return gradients


def _stage_failure(stage: Stage, lanes: Sequence[Any], quorum: float | None) -> BaseException | None:
    if stage.batch:
        ended = any(isinstance(lane, Failure) and isinstance(lane.error, _ENDS) for lane in lanes)
        return batch_failure(lanes, stage.name, None if ended else quorum)
    (outcome,) = lanes
    if not isinstance(outcome, Failure):
        return None
    outcome.mark_read()
    return outcome.error


def _holder(edge: GradientEdge) -> Variable | None:
    """Return the Variable that gathers what arrives at `edge`: a leaf, or an output that retains it."""
    node, output_nr = edge
    if isinstance(node, AccumulateGrad):
        return node.variable
    reference = node.retained.get(output_nr)
    return None if reference is None else reference()


def _hooks_at(edge: GradientEdge) -> tuple[Hooks[Hook] | None, str]:
    """Return the hooks on the feedback that arrives at `edge`, and the role of what it is about."""
    node, output_nr = edge
    if isinstance(node, AccumulateGrad):
        return node.variable.hooks, node.variable.role
    hooks = node.hooks.get(output_nr)
    return hooks, node.contexts[0].output_roles[output_nr] if hooks and node.contexts else ""


def _sequence(arrival: Arrival) -> int:
    """Return the consumer's place in launch order, a seed before them all."""
    return -1 if arrival.consumer is None else arrival.consumer.sequence


# Roots: where a backward pass starts, with which seed, and what it gathers for.


Target = Variable | GradientEdge


def seed_arrival(root: Variable, seed: Variable | None) -> Arrival:
    """Return what starts the pass at `root`: the seed's text for its lane, or for every lane."""
    if seed is None:
        return Arrival(None, False, [Slot.filled(Feedback(""))])
    slots, batch = seed.cell()
    root_slots, root_batch = root.cell()
    if batch and (not root_batch or len(slots) != len(root_slots)):
        has = f"{len(root_slots)} samples" if root_batch else "one value"
        raise ValueError(
            f"the gradient has {len(slots)} samples and the output {has}; give one text, or one for each sample"
        )
    if not root_batch:
        return Arrival(None, False, [_about(slots[0], root_slots[0])])
    texts = slots if batch else slots * len(root_slots)
    return Arrival(None, True, [_about(text, value) for text, value in zip(texts, root_slots, strict=True)])


def _about(text: Slot, value: Slot) -> Slot:
    """Return a seed's text as feedback on what the root shows now, which may be an edited value."""
    if isinstance(text.outcome, str) and value.outcome is not PENDING:
        return Slot.filled(Feedback(text.outcome, value.outcome))
    return text


def check_root(root: Variable, seed: Variable | None, known: dict[Node, bool]) -> None:
    if root.grad_fn is None:
        raise GraphError(
            f"backward() starts at the output of an op, and {root!r} is a leaf; call it on what an evaluator "
            "returned, with a Variable that has requires_grad=True among the inputs"
        )
    if seed is None and not seedless(root.grad_fn, known):
        raise GraphError(
            f"backward() from {root.grad_fn.name()} needs a feedback to start from, as only evaluators have "
            'one of their own; write variable.backward(afnio.Variable("what should change"))'
        )
    if seed is not None and not isinstance(seed, Variable):
        raise TypeError(
            f"the gradient to start from is a Variable (got {seed!r}); wrap it: afnio.Variable(...)"
        )


def seeds_for(roots: Sequence[Variable], given: Any) -> Sequence[Variable | None]:
    if given is None:
        return [None] * len(roots)
    seeds = list(given) if isinstance(given, list | tuple) else [given]
    if len(seeds) != len(roots):
        raise ValueError(
            f"{len(roots)} variables need as many seeds (got {len(seeds)}); use None for no seed"
        )
    return seeds


def listed(inputs: Target | Sequence[Target]) -> list[Target]:
    if isinstance(inputs, Variable | GradientEdge):
        return [inputs]
    return list(inputs)


def edges_of(inputs: Target | Sequence[Target] | None) -> list[GradientEdge] | None:
    if inputs is None:
        return None
    targets = []
    for target in listed(inputs):
        if isinstance(target, GradientEdge):
            targets.append(target)
        elif isinstance(target, Variable) and target.requires_grad:
            targets.append(GradientEdge(target.graph_node(), target.output_nr))
        else:
            raise GraphError(f"inputs takes Variables that require a gradient (got {target!r})")
    return targets


# LaneBackward: the backward work of one lane of one node.


class Arrival(NamedTuple):
    """Feedback on its way to one output of a node: from a consumer along an edge, or from a seed.

    Attributes:
        consumer: the node that says it, None for a seed.
        aligned: lane i's feedback is for lane i; otherwise all of it is for each lane.
        slots: one for each lane of the consumer that used the value, or of the seed.
    """

    consumer: Node | None
    aligned: bool
    slots: Sequence[Slot]

    def at(self, lane: int) -> Sequence[Slot]:
        return [self.slots[lane]] if self.aligned else self.slots


class Way(NamedTuple):
    """An edge that a lane's feedback goes along.

    Attributes:
        variable: which Variable of the op it leads to, by number.
        silent: whether feedback without words still counts, as at the evaluators of a seedless root.
    """

    variable: int
    edge: Edge
    silent: bool


@final
class LaneBackward:
    """The backward body of one lane; it owns what it needs, so the pass can free the node at launch."""

    __slots__ = ("_arrivals", "_ctx", "_function", "_lane", "_name", "_quorum", "_ways")

    def __init__(
        self,
        node: Node,
        lane: int,
        ways: Sequence[Way],
        arrivals: Sequence[Sequence[Arrival]],
        quorum: float | None,
    ) -> None:
        assert node.function is not None
        self._function: type[Function] = node.function
        self._ctx: Context = node.contexts[lane]
        self._name = node.name()
        self._lane = lane
        self._ways = ways
        # For each output how much each consumer says to this lane, and whether several samples share it.
        self._arrivals = [[(len(a.at(lane)), not a.aligned) for a in at] for at in arrivals]
        self._quorum = quorum

    def __call__(self, job: Job, outcomes: list[Any]) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        arrived = iter(outcomes)
        columns = [
            [([next(arrived) for _ in range(count)], shared) for count, shared in at] for at in self._arrivals
        ]
        own = list(arrived)
        failure = self._failure(columns, own)
        if failure is not None:
            return [failure] * (1 + len(self._ways))
        incoming = [
            [_as_feedback(outcome) for said, _ in column for outcome in said if _speaks(outcome)]
            for column in columns
        ]
        if any(outcome is None for outcome in own) or not any(incoming):
            return [None if None in own else True, *[NO_FEEDBACK] * len(self._ways)]
        said = self._function.run_backward(job, self._ctx.with_feedback(incoming))
        return self._later(said, incoming) if callable(said) else self._said(said, incoming)

    async def _later(self, start: Later, incoming: list[list[Feedback]]) -> Outcomes:
        return self._said(await start(), incoming)

    def _said(self, said: LaneFeedback, incoming: list[list[Feedback]]) -> Outcomes:
        provenance = tuple(entry for feedback in incoming for f in feedback for entry in f.provenance)
        outcomes: list[Any] = [True]
        for index, edge, silent in self._ways:
            entry = said[index]
            if isinstance(entry, str):
                entry = Feedback(entry, provenance=provenance)
            if entry is None or not (entry.text or silent):
                outcomes.append(NO_FEEDBACK)
                continue
            if entry.seen is None:
                slot = edge.slots[self._lane] if edge.batch else edge.slots[0]
                entry = Feedback(entry.text, slot.outcome, entry.provenance or provenance, entry.led_in)
            outcomes.append(entry)
        return outcomes

    def _failure(
        self, columns: Sequence[Sequence[tuple[list[Any], bool]]], own: Sequence[Any]
    ) -> Failure | None:
        for outcome in own:
            if isinstance(outcome, Failure):
                return outcome
        for column in columns:
            for said, shared in column:
                failed = [outcome for outcome in said if isinstance(outcome, Failure)]
                if not failed:
                    continue
                # A scalar that samples share hears those that could speak, as long as they are a quorum.
                if not shared or self._quorum is None or batch_failure(said, self._name, self._quorum):
                    return failed[0]
        return None


def _speaks(outcome: Any) -> bool:
    return outcome is not NO_FEEDBACK and outcome is not None and not isinstance(outcome, Failure)


def _as_feedback(outcome: Any) -> Feedback:
    return outcome if isinstance(outcome, Feedback) else Feedback(str(outcome))


def seedless(node: Node, known: dict[Node, bool]) -> bool:
    """Whether a pass may start at `node` without a seed: evaluators, and what only adds them up.

    Args:
        known: answers so far, extended; each node is looked at once.
    """
    stack = [node]
    while stack:
        current = stack[-1]
        if current in known:
            stack.pop()
            continue
        function = current.function
        if function is None or function.seedless or not function.transparent:
            known[current] = function is not None and function.seedless
            continue
        before = [edge.node for edge in current.edges if edge is not None]
        unknown = [producer for producer in before if producer not in known]
        if unknown:
            stack.extend(unknown)
        else:
            known[current] = all(known[producer] for producer in before)
    return known[node]


# Hooked: feedback on its way past the hooks of a Variable, one job for each sample's feedback.


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
            shown = gradient(feedback.text, role, feedback.provenance)
            said = await resolved(await call_in_node(job, hook, shown))
            if said is not None:
                feedback = Feedback(_text(said), feedback.seen, feedback.provenance, feedback.led_in)
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


def _spoken(outcome: Any) -> Feedback | None:
    """Return feedback that has words, None for anything else."""
    if isinstance(outcome, str):
        outcome = Feedback(outcome)
    return outcome if isinstance(outcome, Feedback) and outcome.text else None


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise TypeError(f"a hook returns feedback, a text or a Variable of one, or None (got {said!r})")
    return said


# Resolve: await every value in a structure.


@folding
async def resolve(tree: T) -> T:
    """Wait for every Variable and Pending in lists, tuples and dicts; returns the same structure.

    Raises:
        Exception: the first error, in order, if any of the values failed.

    >>> import afnio
    >>> async def main():
    ...     return (await resolve({"sum": Variable(1) + Variable(2)}))["sum"].data
    >>> afnio.run(main())
    3
    """
    found: list[Any] = []
    _collect(tree, found)
    await wait_async([slot for value in found if isinstance(value, Variable) for slot in value.cell()[0]])
    for value in found:
        await value
    return tree


def _collect(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, Variable | Pending):
        found.append(tree)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            _collect(item, found)
    elif isinstance(tree, list | tuple):
        for item in tree:
            _collect(item, found)
