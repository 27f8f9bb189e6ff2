"""Sweep: the backward pass. It walks the graph once, at launch, and starts one job per (node, lane).

A job waits for the feedback of that lane's consumers and for the lane's own forward value, nothing else:
one sample can be in its backward pass while another waits for its first reply. What the pass gathered is
handed over at its end, and only if all of it succeeded or each node's quorum held.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, final

from afnio.autodiff.crossing import Boundary
from afnio.autodiff.feedback import Feedback, Segment
from afnio.autodiff.graph import AccumulateGrad, Edge, GradientEdge, Node, claim, unclaim
from afnio.autodiff.hooked import Passage, Stage, hooked
from afnio.autodiff.hooks import Hook, Hooks
from afnio.autodiff.lane_backward import Arrival, LaneBackward, Way, seedless
from afnio.autodiff.launch_event import tell_sweep
from afnio.autodiff.roots import Target, check_root, edges_of, listed, seed_arrival, seeds_for
from afnio.autodiff.variable import Variable
from afnio.errors import BudgetExceeded, GraphError, JournalError
from afnio.likeness import distinct, reason
from afnio.runtime._callables import batch_failure, current_quorum
from afnio.runtime._kernel import Failure, Job, Launch, Outcomes, Slot
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Work

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
) -> Work[None]:
    """Send feedback from `variables` to the leaves that they were computed from.

    It launches, then waits where a blocking wait is allowed; on an event loop await the `Work`.

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
) -> Work[list[list[Variable]]]:
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
        self._passages: dict[Boundary, Passage] = {}
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
        tell_sweep(self._launch, self.nodes)
        if not keep:
            # The jobs own what they need, and nobody else may use the graph any more.
            for node in self.nodes:
                node.release()

    def start(self, result: Callable[[Any], T]) -> Work[T]:
        """Launch the pass; the Work's result is what `result` finds once it has ended."""
        self._launch.holders = [weakref.ref(leaf) for leaf, _ in self.segments]
        self._launch.start()
        return Work(self._work, result)

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
        for number, passage in enumerate(self._passages.values()):
            self._stages.append(passage.add_job(f"module {number}"))
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
            going: Sequence[Slot] = said
            if node.crossing is not None:
                boundary = node.crossing.boundary
                passage = self._passages.setdefault(boundary, Passage(self._launch, boundary))
                going = passage.take(node.crossing, said, edge.batch, edge.role)
            self._arrive(GradientEdge(edge.node, edge.output_nr), Arrival(node, edge.batch, going))
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
    """Return the gradients `(data, trail)` of one Variable from what its consumers' lanes said."""
    gradients: list[Any] = []
    for arrival in gathering:
        lanes = [next(arrived) for _ in arrival.slots]
        said = [outcome if isinstance(outcome, Feedback) and outcome.text else None for outcome in lanes]
        if not arrival.aligned:
            gradients += [(f.text, f.trail) for f in said if f is not None]
        elif any(said):
            texts = [None if f is None else f.text for f in said]
            gradients.append((texts, tuple(() if f is None else f.trail for f in said)))
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
