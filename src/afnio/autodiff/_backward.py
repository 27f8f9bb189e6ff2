"""The backward pass: walks the graph once, when it's launched, and starts one job for each node and lane.

A job needs the lane's forward value and the feedback of everything that used it. It waits for nothing else, so one
sample can be running backward while another still waits for its first reply. That is why the pass is built up front
from the whole graph, instead of node by node as values arrive:

1. `Sweep` orders the nodes that lead to a target, every consumer before its producers, and claims them: a second pass
   over a graph that the first one frees must fail at its own line.
2. For each node it adds a `LaneBackward` job per lane. The job's inputs are the slots of the feedback that comes in
   (`Incoming`); its outputs are the slots of the feedback that goes out along each edge (`Outgoing`).
3. A Variable's hooks are jobs between the two, one for each sample's feedback.
4. The last job gathers all feedback for each leaf. Gradients are assigned together when the pass ends, and only if
   every lane succeeded, or enough of them (see `afnio.tolerate`). Half a pass in `grad` would be worse than none: the
   optimizer couldn't tell it from a batch in which the other samples were right.

Feedback without words still travels: from a root without a seed an empty `Feedback` reaches the evaluator, and the
evaluator writes the first words itself.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar, final

from afnio.autodiff._function import Context, Function, LaneFeedback, Later, resolved, set_sweep_event
from afnio.autodiff._graph import (
    AccumulateGrad,
    Edge,
    Feedback,
    GradientEdge,
    Hook,
    Hooks,
    Node,
    PendingGradients,
    claim,
    unclaim,
)
from afnio.autodiff._variable import Variable, gradient
from afnio.errors import BudgetExceeded, GraphError, JournalError, distinct, reason
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import NO_FEEDBACK, PENDING, Job, Launch, Outcomes, Slot
from afnio.runtime._tracebacks import Failure, folding
from afnio.runtime._waiting import Pending, wait_async

T = TypeVar("T")
Target = Variable | GradientEdge

# Errors that end the program's work. They aren't failures of a sample, so no quorum masks them.
_ENDS: Final = (BudgetExceeded, JournalError)


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
        grad_variables: for each of them a Variable with feedback. Every output but an evaluator's needs one.
        retain_graph: keep the graph for another pass.
        create_graph: not supported; feedback on feedback has no meaning here.
        inputs: gather only for these; a node that leads to none of them is not called.

    Raises:
        GraphError: for a leaf, a missing seed, a graph that another pass has claimed.
        RuntimeError: if an op on the way needs a backward model and none has been set.

    >>> prompt = Variable("Be brief.", role="prompt", requires_grad=True)
    >>> _ = backward(prompt + Variable("!"), Variable("too curt"))
    >>> "too curt" in prompt.grad[0].data
    True
    """
    if create_graph:
        raise GraphError(
            "create_graph=True is not supported: feedback is text, and text has no gradient; leave it out"
        )
    roots = [variables] if isinstance(variables, Variable) else list(variables)
    sweep = Sweep(roots, _seeds(roots, grad_variables), _targets(inputs), keep=bool(retain_graph))
    for holder, gradients in sweep.gathered:
        holder.pending_gradients.append(gradients)
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
    """Launch the pass that `grad` waits for."""
    roots = [outputs] if isinstance(outputs, Variable) else list(outputs)
    targets = _targets(inputs)
    assert targets is not None
    sweep = Sweep(roots, _seeds(roots, grad_outputs), targets, keep=bool(retain_graph), capture=True)
    faces = [target if isinstance(target, Variable) else Variable() for target in _listed(inputs)]
    captured = dict(sweep.captured)

    def read(_: Any) -> list[list[Variable]]:
        return [
            face.gradients_of([captured[target]]) if target in captured else []
            for face, target in zip(faces, targets, strict=True)
        ]

    return sweep.start(read)


class Incoming(NamedTuple):
    """Feedback on its way to one output of a node: from a consumer along an edge, or from a seed.

    Attributes:
        consumer: the node that sends it, None for a seed.
        aligned: True if lane i's feedback is for lane i; otherwise all of it is for each lane.
        slots: one for each lane of the consumer that used the value, or of the seed.
    """

    consumer: Node | None
    aligned: bool
    slots: Sequence[Slot]

    def at(self, lane: int) -> Sequence[Slot]:
        return [self.slots[lane]] if self.aligned else self.slots


class Outgoing(NamedTuple):
    """An edge along which a lane's feedback goes out.

    Attributes:
        variable: the number, among the op's Variables, of the one that the edge leads to.
        silent: True if feedback without words is sent too, because it must reach an evaluator (no seed).
    """

    variable: int
    edge: Edge
    silent: bool


class Status(NamedTuple):
    """How the lanes of one node, or of one hook, ended: a slot for each. The name is for errors."""

    name: str
    batch: bool
    slots: Sequence[Slot]


@final
class Sweep:
    """One backward pass: its nodes in order, its feedback slots, its launch.

    Args:
        targets: gather for these; None gathers at every leaf and at outputs that retain their feedback.
        keep: leave the graph as it is, for another pass.
        capture: gather in `captured`, for `grad`, instead of for the Variables' own `grad`.
    """

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
            _check_root(root, seed, self._seedless)
        starts = [GradientEdge(root.graph_node(), root.output_nr) for root in roots]
        self._incoming: dict[GradientEdge, list[Incoming]] = {}
        for root, seed, start in zip(roots, seeds, starts, strict=True):
            self._receive(start, _from_seed(root, seed))
        self._leading: dict[Node, bool] = {}
        self.nodes = self._ordered([start.node for start in starts])
        for node in self.nodes:
            if node.function is not None and node.contexts:
                node.function.check_backward(node.contexts[0])
        self._launch = Launch("backward")
        self._statuses: list[Status] = []
        self._gatherings: list[list[Incoming]] = []
        self.captured: list[tuple[GradientEdge, PendingGradients]] = []
        self.gathered: list[tuple[Variable, PendingGradients]] = []
        self._done = Slot(self._launch)
        mine = claim(self.nodes, keep=keep)
        try:
            self._build(capture)
        except BaseException:
            unclaim(self.nodes, mine)
            raise
        set_sweep_event(self._launch, self.nodes)
        if not keep:
            # The jobs hold everything they need. Release the graph so that a second pass fails.
            for node in self.nodes:
                node.release()

    def start(self, result: Callable[[Any], T]) -> Pending[T]:
        """Launch the pass; the handle's result is `result` of its outcome."""
        self._launch.holders = [weakref.ref(leaf) for leaf, _ in self.gathered]
        self._launch.start()
        return Pending(self._done, result)

    # Building, on the caller's thread

    def _ordered(self, starts: Sequence[Node]) -> list[Node]:
        """Return the ops that lead to a target, every consumer before its producers."""
        finished: list[Node] = []
        opened: set[int] = set()
        stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(starts)]
        while stack:  # depth first without recursion: a graph may be deeper than Python's stack
            node, expanded = stack.pop()
            if expanded:
                # A claimed node has lost its edges. Include it, so that claiming it again raises.
                self._leading[node] = bool(node.claims) or self._leads(node)
                finished.append(node)
            elif id(node) not in opened and not isinstance(node, AccumulateGrad):
                opened.add(id(node))
                stack.append((node, True))
                stack.extend((e.node, False) for e in reversed(node.edges) if e is not None)
        return [node for node in reversed(finished) if self._leading[node]]

    def _leads(self, node: Node) -> bool:
        if self._targets is None and node.retained:
            return True
        return any(
            self._is_target(edge) or self._leading.get(edge.node, False)
            for edge in node.edges
            if edge is not None
        )

    def _is_target(self, edge: Edge) -> bool:
        if self._targets is None:
            return isinstance(edge.node, AccumulateGrad)
        return GradientEdge(edge.node, edge.output_nr) in self._targets

    def _build(self, capture: bool) -> None:
        for number, node in enumerate(self.nodes):
            self._add_node(node, f"node {number}")
        self._add_gatherings(capture)
        incoming = [entry.slots for gathering in self._gatherings for entry in gathering]
        statuses = [status.slots for status in self._statuses]
        gradients = [pending.slot for _, pending in (*self.gathered, *self.captured)]
        self._launch.add(
            self._finish,
            [slot for slots in (*statuses, *incoming) for slot in slots],
            [self._done, *gradients],
            part="end",
            gather=True,
        )

    def _add_node(self, node: Node, part: str) -> None:
        incoming = [
            self._hooked_at(GradientEdge(node, nr), f"{part}/hook {nr}") for nr in range(len(node.outputs))
        ]
        ends = [Slot(self._launch) for _ in range(node.lanes)]
        outgoing: list[list[Outgoing]] = [[] for _ in range(node.lanes)]
        outputs = [[end] for end in ends]
        for index, edge in enumerate(node.edges):
            if edge is None or not (self._is_target(edge) or self._leading.get(edge.node, False)):
                continue
            way = Outgoing(index, edge, _seedless(edge.node, self._seedless))
            sent = []
            for lane in range(node.lanes) if edge.lanes is None else edge.lanes:
                sent.append(Slot(self._launch))
                outgoing[lane].append(way)
                outputs[lane].append(sent[-1])
            self._receive(GradientEdge(edge.node, edge.output_nr), Incoming(node, edge.batch, sent))
        for lane in range(node.lanes):
            feedback = [slot for at in incoming for entry in at for slot in entry.at(lane)]
            self._launch.add(
                LaneBackward(node, lane, incoming, outgoing[lane], self._quorum),
                [*feedback, *(column[lane] for column in node.outputs)],
                outputs[lane],
                lane=None if node.size is None else lane,
                part=part,
                gather=True,
            )
        name = f"{node.name()} (forward launched at {node.line})"
        self._statuses.append(Status(name, node.size is not None, ends))

    def _receive(self, at: GradientEdge, incoming: Incoming) -> None:
        self._incoming.setdefault(at, []).append(incoming)

    def _hooked_at(self, at: GradientEdge, part: str) -> list[Incoming]:
        """Return all feedback that comes to `at`, in launch order and past its hooks; call it once for each place."""
        incoming = sorted(self._incoming.get(at, ()), key=_launch_order)
        hooks, role = _hooks_at(at)
        for number, entry in enumerate(incoming if hooks else ()):
            assert hooks is not None
            incoming[number], status = _add_hooks(self._launch, hooks, role, entry, f"{part}.{number}")
            self._statuses.append(status)
        if incoming:
            self._incoming[at] = incoming
        return incoming

    def _add_gatherings(self, capture: bool) -> None:
        """Prepare the gradients of every leaf, or target, that feedback reaches."""
        for number, (edge, incoming) in enumerate(list(self._incoming.items())):
            sent = [entry for entry in incoming if entry.consumer is not None]
            if not sent or (self._targets is not None and edge not in self._targets):
                continue
            holder = _holder(edge)
            if holder is None and not capture:
                continue
            if not self._leading.get(edge.node, False):  # otherwise `_add_node` has added its hooks
                hooked = self._hooked_at(edge, f"leaf {number}/hook")
                sent = [entry for entry in hooked if entry.consumer is not None]
            self._gatherings.append(sent)
            gradients = PendingGradients(Slot(self._launch))
            if capture:
                self.captured.append((edge, gradients))
            elif holder is not None:
                self.gathered.append((holder, gradients))

    # Ending, on the runtime's thread

    def _finish(self, job: Job, outcomes: list[Any]) -> Outcomes:
        remaining = iter(outcomes)
        errors: list[BaseException] = []
        reported: set[int] = set()
        for status in self._statuses:
            lanes = [next(remaining) for _ in status.slots]
            failed = {id(outcome) for outcome in lanes if isinstance(outcome, Failure)}
            error = _failure_of(status, lanes, self._quorum)
            # A failed lane makes the nodes before it fail too. Report each failure once, at the node where it
            # started.
            if error is not None and not failed <= reported:
                errors.append(error)
            reported |= failed
        gradients = [_gradients(gathering, remaining) for gathering in self._gatherings]
        if not errors:
            return [True, *gradients]
        if len(errors) == 1:
            return job.fail(errors[0])
        message = f"{len(errors)} nodes failed in the backward pass, first with {reason(errors[0])}"
        group = BaseExceptionGroup(message, distinct(errors))
        # Reading the group counts as reading every failure in it.
        group.failures = tuple(failure for error in errors for failure in getattr(error, "failures", ()))  # type: ignore[attr-defined]
        return job.fail(group)


def _gradients(gathering: Sequence[Incoming], outcomes: Iterator[Any]) -> list[Any]:
    """Return the gradients `(data, provenance)` of one Variable from the feedback of its consumers' lanes."""
    gradients: list[Any] = []
    for incoming in gathering:
        lanes = [_with_words(next(outcomes)) for _ in incoming.slots]
        if not incoming.aligned:
            gradients += [(f.text, f.provenance) for f in lanes if f is not None]
        elif any(lanes):
            texts = [None if f is None else f.text for f in lanes]
            gradients.append((texts, tuple(() if f is None else f.provenance for f in lanes)))
    return gradients


def _failure_of(status: Status, lanes: Sequence[Any], quorum: float | None) -> BaseException | None:
    if status.batch:
        ended = any(isinstance(lane, Failure) and isinstance(lane.error, _ENDS) for lane in lanes)
        return batch_failure(lanes, status.name, None if ended else quorum)
    (outcome,) = lanes
    if not isinstance(outcome, Failure):
        return None
    outcome.mark_read()
    return outcome.error


def _holder(edge: GradientEdge) -> Variable | None:
    """Return the Variable that gathers the feedback at `edge`: a leaf, or an output that retains it."""
    node, output_nr = edge
    if isinstance(node, AccumulateGrad):
        return node.variable
    reference = node.retained.get(output_nr)
    return None if reference is None else reference()


def _launch_order(incoming: Incoming) -> int:
    """Sort key: the consumer's place in launch order, seeds first."""
    return -1 if incoming.consumer is None else incoming.consumer.sequence


@final
class LaneBackward:
    """The body of the job for one lane of one node.

    It holds the function, the context and the edges itself, so that the node can be released at launch.
    """

    __slots__ = ("_ctx", "_function", "_incoming", "_lane", "_name", "_outgoing", "_quorum")

    def __init__(
        self,
        node: Node,
        lane: int,
        incoming: Sequence[Sequence[Incoming]],
        outgoing: Sequence[Outgoing],
        quorum: float | None,
    ) -> None:
        assert node.function is not None
        self._function: type[Function] = node.function
        self._ctx: Context = node.contexts[lane]
        self._name = node.name()
        self._lane = lane
        # For each output and each consumer: how many slots of feedback come to this lane, and if the lane shares
        # them with others.
        self._incoming = [[(len(entry.at(lane)), not entry.aligned) for entry in at] for at in incoming]
        self._outgoing = outgoing
        self._quorum = quorum

    def __call__(self, job: Job, outcomes: list[Any]) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        remaining = iter(outcomes)
        columns = [
            [([next(remaining) for _ in range(count)], shared) for count, shared in at]
            for at in self._incoming
        ]
        values = list(remaining)
        failure = self._failure(columns, values)
        if failure is not None:
            return [failure] * (1 + len(self._outgoing))
        feedback = [
            [_as_feedback(outcome) for sent, _ in column for outcome in sent if _is_feedback(outcome)]
            for column in columns
        ]
        missing = any(value is None for value in values)
        if missing or not any(feedback):
            return [None if missing else True, *[NO_FEEDBACK] * len(self._outgoing)]
        returned = self._function.run_backward(job, self._ctx.with_feedback(feedback))
        return self._awaited(returned, feedback) if callable(returned) else self._sent(returned, feedback)

    async def _awaited(self, start: Later, feedback: list[list[Feedback]]) -> Outcomes:
        return self._sent(await start(), feedback)

    def _sent(self, returned: LaneFeedback, feedback: list[list[Feedback]]) -> Outcomes:
        """Return the lane's status and its feedback for each outgoing edge, with value and provenance filled in."""
        provenance = tuple(entry for at in feedback for f in at for entry in f.provenance)
        outcomes: list[Any] = [True]
        for index, edge, silent in self._outgoing:
            entry = returned[index]
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
        self, columns: Sequence[Sequence[tuple[list[Any], bool]]], values: Sequence[Any]
    ) -> Failure | None:
        """Return the failure of forward, or of a consumer, that this lane inherits."""
        for outcome in values:
            if isinstance(outcome, Failure):
                return outcome
        for column in columns:
            for sent, shared in column:
                failed = [outcome for outcome in sent if isinstance(outcome, Failure)]
                if not failed:
                    continue
                # A scalar that samples share is judged on the samples that succeeded, if they are a quorum.
                if not shared or self._quorum is None or batch_failure(sent, self._name, self._quorum):
                    return failed[0]
        return None


def _is_feedback(outcome: Any) -> bool:
    return outcome is not NO_FEEDBACK and outcome is not None and not isinstance(outcome, Failure)


def _as_feedback(outcome: Any) -> Feedback:
    return outcome if isinstance(outcome, Feedback) else Feedback(str(outcome))


def _with_words(outcome: Any) -> Feedback | None:
    """Return feedback that has words, None for anything else."""
    if isinstance(outcome, str):
        outcome = Feedback(outcome)
    return outcome if isinstance(outcome, Feedback) and outcome.text else None


# Hooks on Variables.


def _hooks_at(edge: GradientEdge) -> tuple[Hooks[Hook] | None, str]:
    """Return the hooks on the feedback that comes to `edge`, and the role of the value there."""
    node, output_nr = edge
    if isinstance(node, AccumulateGrad):
        return node.variable.hooks, node.variable.role
    hooks = node.hooks.get(output_nr)
    return hooks, node.contexts[0].output_roles[output_nr] if hooks and node.contexts else ""


def _add_hooks(
    launch: Launch, hooks: Hooks[Hook], role: str, incoming: Incoming, part: str
) -> tuple[Incoming, Status]:
    """Add a job for each lane that calls the hooks; return the feedback that comes out of them.

    One job for each lane: a slow hook holds up its own sample only.
    """
    batch = len(incoming.slots) != 1 or incoming.aligned
    changed = [Slot(launch) for _ in incoming.slots]
    ends = [Slot(launch) for _ in incoming.slots]

    def body(job: Job, outcomes: list[Any]) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        feedback = _with_words(outcomes[0])
        return [outcomes[0], True] if feedback is None else call(job, feedback)

    async def call(job: Job, feedback: Feedback) -> Outcomes:
        for hook in list(hooks):
            shown = gradient(feedback.text, role, feedback.provenance)
            returned = await resolved(await call_in_node(job, hook, shown))
            if returned is not None:
                text = _hook_text(returned)
                feedback = Feedback(text, feedback.seen, feedback.provenance, feedback.led_in)
            if not feedback.text:
                return [NO_FEEDBACK, True]
        return [feedback, True]

    for lane, slot in enumerate(incoming.slots):
        launch.add(
            body,
            [slot],
            [changed[lane], ends[lane]],
            lane=lane if batch else None,
            part=part,
            gather=True,
        )
    return incoming._replace(slots=changed), Status(f"a hook on {role!r}", batch, ends)


def _hook_text(returned: Any) -> str:
    if not isinstance(returned, str):
        raise TypeError(
            f"a hook must return feedback, a text or a Variable of one, or None (got {returned!r})"
        )
    return returned


# Arguments of a pass: where it starts, with which seeds, and what it gathers for.


def _check_root(root: Variable, seed: Variable | None, checked: dict[Node, bool]) -> None:
    if root.grad_fn is None:
        raise GraphError(
            f"backward() starts at the output of an op, and {root!r} is a leaf; call it on the output of an "
            "evaluator, with a Variable that has requires_grad=True among the inputs"
        )
    if seed is None and not _seedless(root.grad_fn, checked):
        raise GraphError(
            f"backward() from {root.grad_fn.name()} needs a feedback to start from, because only evaluators write "
            'one themselves; write variable.backward(afnio.Variable("what should change"))'
        )
    if seed is not None and not isinstance(seed, Variable):
        raise TypeError(
            f"the gradient to start from must be a Variable (got {seed!r}); wrap it: afnio.Variable(...)"
        )


def _seedless(node: Node, checked: dict[Node, bool]) -> bool:
    """Return True if a pass may start at `node` without a seed: at evaluators, and ops that only add them up.

    Args:
        known: the answers so far; it is extended, so each node is visited once.
    """
    stack = [node]
    while stack:
        current = stack[-1]
        if current in checked:
            stack.pop()
            continue
        function = current.function
        if function is None or function.seedless or not function.transparent:
            checked[current] = function is not None and function.seedless
            continue
        before = [edge.node for edge in current.edges if edge is not None]
        unknown = [producer for producer in before if producer not in checked]
        if unknown:
            stack.extend(unknown)
        else:
            checked[current] = all(checked[producer] for producer in before)
    return checked[node]


def _seeds(roots: Sequence[Variable], feedback: Any) -> Sequence[Variable | None]:
    if feedback is None:
        return [None] * len(roots)
    seeds = list(feedback) if isinstance(feedback, list | tuple) else [feedback]
    if len(seeds) != len(roots):
        raise ValueError(
            f"{len(roots)} variables need as many seeds (got {len(seeds)}); use None for no seed"
        )
    return seeds


def _from_seed(root: Variable, seed: Variable | None) -> Incoming:
    """Return the feedback that starts the pass at `root`: the seed's text for its lane, or for every lane."""
    if seed is None:
        return Incoming(None, False, [Slot.filled(Feedback(""))])
    slots, batch = seed.cell()
    root_slots, root_batch = root.cell()
    if batch and (not root_batch or len(slots) != len(root_slots)):
        has = f"{len(root_slots)} samples" if root_batch else "one value"
        raise ValueError(
            f"the gradient has {len(slots)} samples and the output {has}; give one text, or one for each sample"
        )
    if not root_batch:
        return Incoming(None, False, [_about(slots[0], root_slots[0])])
    texts = slots if batch else slots * len(root_slots)
    return Incoming(None, True, [_about(text, value) for text, value in zip(texts, root_slots, strict=True)])


def _about(text: Slot, value: Slot) -> Slot:
    """Return a seed's text as feedback on the root's present value, which may have been edited since the launch."""
    if isinstance(text.outcome, str) and value.outcome is not PENDING:
        return Slot.filled(Feedback(text.outcome, value.outcome))
    return text


def _listed(inputs: Target | Sequence[Target]) -> list[Target]:
    if isinstance(inputs, Variable | GradientEdge):
        return [inputs]
    return list(inputs)


def _targets(inputs: Target | Sequence[Target] | None) -> list[GradientEdge] | None:
    if inputs is None:
        return None
    targets = []
    for target in _listed(inputs):
        if isinstance(target, GradientEdge):
            targets.append(target)
        elif isinstance(target, Variable) and target.requires_grad:
            targets.append(GradientEdge(target.graph_node(), target.output_nr))
        else:
            raise GraphError(f"inputs takes Variables that require a gradient (got {target!r})")
    return targets


# Waiting for many values.


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
    variables: list[Any] = []
    _collect(tree, variables)
    await wait_async([slot for value in variables if isinstance(value, Variable) for slot in value.cell()[0]])
    for value in variables:
        await value
    return tree


def _collect(tree: Any, variables: list[Any]) -> None:
    if isinstance(tree, Variable | Pending):
        variables.append(tree)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            _collect(item, variables)
    elif isinstance(tree, list | tuple):
        for item in tree:
            _collect(item, variables)
