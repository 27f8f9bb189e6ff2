"""LaneBackward: the backward work of one lane of one node."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, final

from afnio.autodiff.context import Context
from afnio.autodiff.feedback import Feedback
from afnio.autodiff.function import Function, Later, Said
from afnio.autodiff.graph import Edge, Node
from afnio.runtime._callables import batch_failure
from afnio.runtime._kernel import NO_FEEDBACK, Failure, Job, Outcomes, Slot


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

    def _said(self, said: Said, incoming: list[list[Feedback]]) -> Outcomes:
        trail = tuple(entry for feedback in incoming for f in feedback for entry in f.trail)
        outcomes: list[Any] = [True]
        for index, edge, silent in self._ways:
            entry = said[index]
            if isinstance(entry, str):
                entry = Feedback(entry, trail=trail)
            if entry is None or not (entry.text or silent):
                outcomes.append(NO_FEEDBACK)
                continue
            if entry.seen is None:
                slot = edge.slots[self._lane] if edge.batch else edge.slots[0]
                entry = Feedback(entry.text, slot.outcome, entry.trail or trail, entry.led_in)
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
