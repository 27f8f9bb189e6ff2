"""Sweep: the backward pass. It walks the graph once, at launch, and starts one job per (node, lane).

A job waits for the feedback of that lane's consumers and for the lane's own forward value, nothing else:
one sample can be in its backward pass while another waits for its first reply. What the pass gathered is
handed over at its end, and only if all of it succeeded or each node's quorum held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

from afnio.autodiff.feedback import Feedback, Segment
from afnio.autodiff.graph import AccumulateGrad, Edge, GradientEdge, Node, claim
from afnio.autodiff.lane_backward import Arrival, LaneBackward
from afnio.autodiff.roots import Target, check_root, edges_of, listed, seed_arrival, seeds_for
from afnio.autodiff.variable import Variable
from afnio.errors import GraphError
from afnio.runtime import Failure, Job, Launch, Slot, Work
from afnio.runtime.launch import Outcomes
from afnio.runtime.tolerance import batch_failure, current_quorum
from afnio.runtime.waiting import wait


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
    """
    if create_graph:
        raise GraphError(
            "create_graph=True is not supported: feedback is text and has no gradient of its own"
        )
    roots = [variables] if isinstance(variables, Variable) else list(variables)
    sweep = Sweep(roots, seeds_for(roots, grad_variables), edges_of(inputs), keep=bool(retain_graph))
    for leaf, segment in sweep.segments:
        leaf.segments.append(segment)
    return sweep.start().wait_if_allowed()


def grad(
    outputs: Variable | Sequence[Variable],
    inputs: Target | Sequence[Target],
    grad_outputs: Variable | Sequence[Variable | None] | None = None,
    retain_graph: bool | None = None,
) -> list[list[Variable]]:
    """Return the feedback for each of `inputs` without adding it to their `grad`; waits for it."""
    roots = [outputs] if isinstance(outputs, Variable) else list(outputs)
    targets = edges_of(inputs)
    assert targets is not None
    sweep = Sweep(roots, seeds_for(roots, grad_outputs), targets, keep=bool(retain_graph), capture=True)
    sweep.start().wait()
    found = dict(sweep.captured)
    wait([segment.slot for segment in found.values()])
    faces = [target if isinstance(target, Variable) else Variable() for target in listed(inputs)]
    return [
        face.gradients_of([found[target]]) if target in found else []
        for face, target in zip(faces, targets, strict=True)
    ]


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
        self._keep = keep
        self._targets = targets
        self._quorum = current_quorum()
        for root, seed in zip(roots, seeds, strict=True):
            check_root(root, seed)
        starts = [root.graph_node() for root in roots]
        self.nodes = self._ordered(starts)
        claim(self.nodes, keep)
        self._launch = Launch("backward")
        self._arrivals: dict[GradientEdge, list[Arrival]] = {}
        for root, seed, node in zip(roots, seeds, starts, strict=True):
            self._arrive(GradientEdge(node, root.output_nr), seed_arrival(root, seed))
        self._statuses: list[tuple[Node, list[Slot]]] = []
        for node in self.nodes:
            self._add_node(node)
        self.captured: list[tuple[GradientEdge, Segment]] = []
        self.segments: list[tuple[Variable, Segment]] = []
        self._gatherings: list[list[Arrival]] = []
        self._add_segments(capture)
        self._work = Slot(self._launch)

    def start(self) -> Work[None]:
        """Launch the pass."""
        gathered = [arrival.slots for gathering in self._gatherings for arrival in gathering]
        statuses = [slots for _, slots in self._statuses]
        segments = [s.slot for _, s in self.segments] + [s.slot for _, s in self.captured]
        self._launch.add(
            self._finish,
            [slot for slots in (*statuses, *gathered) for slot in slots],
            [self._work, *segments],
            gather=True,
            recover=self._abandon,
        )
        self._launch.start()
        return Work(self._work, lambda _: None)

    # Building, on the caller's thread

    def _ordered(self, starts: Sequence[Node]) -> list[Node]:
        """Return the ops that lead to a target, every consumer before its producers."""
        targets = None if self._targets is None else {(t.node, t.output_nr) for t in self._targets}
        leading: dict[Node, bool] = {}
        finished: list[Node] = []
        opened: set[int] = set()
        stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(starts)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                # A released node has lost its edges; it counts, so that claiming it says so.
                leading[node] = node.released or any(
                    _wanted(edge, targets) or leading.get(edge.node, False)
                    for edge in node.edges
                    if edge is not None
                ) or _retains(node, targets)
                finished.append(node)
            elif id(node) not in opened and not isinstance(node, AccumulateGrad):
                opened.add(id(node))
                stack.append((node, True))
                stack.extend((e.node, False) for e in reversed(node.edges) if e is not None)
        self._leading = leading
        return [node for node in reversed(finished) if leading[node]]

    def _add_node(self, node: Node) -> None:
        edges = [
            (index, edge) for index, edge in enumerate(node.edges) if edge is not None and self._is_live(edge)
        ]
        said = {index: [Slot(self._launch) for _ in range(node.lanes)] for index, _ in edges}
        statuses = [Slot(self._launch) for _ in range(node.lanes)]
        self._statuses.append((node, statuses))
        arrivals = [
            sorted(self._arrivals.get(GradientEdge(node, nr), []), key=_sequence)
            for nr in range(len(node.outputs))
        ]
        for lane in range(node.lanes):
            arriving = [[slot for arrival in at for slot in arrival.at(lane)] for at in arrivals]
            own = [column[lane] for column in node.outputs]
            self._launch.add(
                LaneBackward(node, lane, edges, [len(slots) for slots in arriving], self._quorum),
                [slot for slots in (*arriving, own) for slot in slots],
                [statuses[lane], *(said[index][lane] for index, _ in edges)],
                lane=None if node.size is None else lane,
                gather=True,
            )
        for index, edge in edges:
            self._arrive(GradientEdge(edge.node, edge.output_nr), Arrival(node, edge.batch, said[index]))

    def _arrive(self, at: GradientEdge, arrival: Arrival) -> None:
        self._arrivals.setdefault(at, []).append(arrival)

    def _is_live(self, edge: Edge) -> bool:
        if isinstance(edge.node, AccumulateGrad):
            return self._targets is None or any(t.node is edge.node for t in self._targets)
        if self._targets is not None and GradientEdge(edge.node, edge.output_nr) in self._targets:
            return True
        return self._leading.get(edge.node, False)

    def _add_segments(self, capture: bool) -> None:
        for edge, arrivals in self._arrivals.items():
            incoming = [arrival for arrival in arrivals if arrival.consumer is not None]
            if not incoming or (self._targets is not None and edge not in self._targets):
                continue
            face = _face(edge)
            if face is None and not capture:
                continue
            incoming.sort(key=_sequence)
            self._gatherings.append(incoming)
            segment = Segment(Slot(self._launch))
            if capture:
                self.captured.append((edge, segment))
            elif face is not None:
                self.segments.append((face, segment))

    # Ending, on the runtime's thread

    def _finish(self, job: Job, outcomes: list[Any]) -> Outcomes:
        arrived = iter(outcomes)
        error: BaseException | None = None
        for node, slots in self._statuses:
            lanes = [next(arrived) for _ in slots]
            error = error or _node_failure(node, lanes, self._quorum)
        gathered = [_gather(gathering, arrived) for gathering in self._gatherings]
        self._release()
        if error is not None:
            return job.fail(error)
        return [True, *gathered]

    def _abandon(self, job: Job, error: BaseException) -> Outcomes:
        self._release()
        job.recover = None
        return job.fail(error)

    def _release(self) -> None:
        if not self._keep:
            for node in self.nodes:
                node.release()


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


def _node_failure(node: Node, lanes: Sequence[Any], quorum: float | None) -> BaseException | None:
    if node.size is None:
        if isinstance(lanes[0], Failure):
            lanes[0].read = True
            return lanes[0].error
        return None
    return batch_failure(lanes, f"{node.name()} (forward launched at {node.line})", quorum)


def _wanted(edge: Edge, targets: set[tuple[Node, int]] | None) -> bool:
    if targets is None:
        return isinstance(edge.node, AccumulateGrad)
    return (edge.node, edge.output_nr) in targets


def _retains(node: Node, targets: set[tuple[Node, int]] | None) -> bool:
    return targets is None and bool(node.retained)


def _face(edge: GradientEdge) -> Variable | None:
    """Return the Variable that gathers what arrives at `edge`: a leaf, or an output that retains it."""
    node, output_nr = edge
    if isinstance(node, AccumulateGrad):
        return node.variable
    reference = node.retained.get(output_nr)
    return None if reference is None else reference()


def _sequence(arrival: Arrival) -> int:
    """Return the consumer's place in launch order, a seed before them all."""
    return -1 if arrival.consumer is None else arrival.consumer.sequence
