"""LaneBackward: the backward work of one lane of one node."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, final

from afnio.autodiff.feedback import Feedback
from afnio.autodiff.function import Function, Said
from afnio.autodiff.graph import Edge, Node
from afnio.runtime import NO_FEEDBACK, Failure, Job, Slot
from afnio.runtime.launch import Outcomes
from afnio.runtime.tolerance import batch_failure


class Arrival(NamedTuple):
    """Feedback on its way to one output of a node: from a consumer along an edge, or from a seed.

    Attributes:
        consumer: the node that says it, None for a seed.
        aligned: lane i's feedback is for lane i; otherwise all of it is for each lane.
        slots: one for each lane of the consumer, or of the seed.
    """

    consumer: Node | None
    aligned: bool
    slots: Sequence[Slot]

    def at(self, lane: int) -> Sequence[Slot]:
        return [self.slots[lane]] if self.aligned else self.slots


@final
class LaneBackward:
    """The backward body of one lane of one node."""

    __slots__ = ("_counts", "_edges", "_lane", "_node", "_quorum")

    def __init__(
        self,
        node: Node,
        lane: int,
        edges: Sequence[tuple[int, Edge]],
        counts: Sequence[int],
        quorum: float | None,
    ) -> None:
        self._node = node
        self._lane = lane
        self._edges = edges
        self._counts = counts
        self._quorum = quorum

    def __call__(self, job: Job, outcomes: list[Any]) -> Outcomes | Coroutine[Any, Any, Outcomes]:
        width = 1 + len(self._edges)
        arrived = iter(outcomes)
        columns = [[next(arrived) for _ in range(count)] for count in self._counts]
        own = list(arrived)
        failure = self._failure(columns, own)
        if failure is not None:
            return [failure] * width
        if any(outcome is None for outcome in own):
            return [None, *[NO_FEEDBACK] * (width - 1)]
        incoming = [[_as_feedback(o) for o in column if _speaks(o)] for column in columns]
        if not any(incoming):
            return [True, *[NO_FEEDBACK] * (width - 1)]
        function = self._node.function
        assert function is not None
        ctx = self._node.contexts[self._lane].with_feedback(incoming)
        said = function.run_backward(job, ctx)
        if inspect.iscoroutine(said):
            return self._later(said, incoming)
        return self._said(said, incoming)  # type: ignore[arg-type]

    async def _later(self, coroutine: Coroutine[Any, Any, Said], incoming: list[list[Feedback]]) -> Outcomes:
        return self._said(await coroutine, incoming)

    def _said(self, said: Said, incoming: list[list[Feedback]]) -> Outcomes:
        trail = tuple(entry for feedback in incoming for f in feedback for entry in f.trail)
        outcomes: list[Any] = [True]
        for index, edge in self._edges:
            entry = said[index]
            if isinstance(entry, str):
                entry = Feedback(entry, trail=trail)
            if entry is None or (not entry.text and not seedless(edge.node)):
                outcomes.append(NO_FEEDBACK)
                continue
            if entry.seen is None:
                slot = edge.slots[self._lane] if edge.batch else edge.slots[0]
                entry = Feedback(entry.text, slot.outcome, entry.trail or trail)
            outcomes.append(entry)
        return outcomes

    def _failure(self, columns: Sequence[Sequence[Any]], own: Sequence[Any]) -> Failure | None:
        for outcome in own:
            if isinstance(outcome, Failure):
                return outcome
        for column in columns:
            failed = [outcome for outcome in column if isinstance(outcome, Failure)]
            # A scalar that samples share hears those that could speak, as long as they are a quorum.
            shared = len(column) > 1 and self._quorum is not None
            if failed and not (shared and batch_failure(column, self._node.name(), self._quorum) is None):
                return failed[0]
        return None


def _speaks(outcome: Any) -> bool:
    return outcome is not NO_FEEDBACK and outcome is not None and not isinstance(outcome, Failure)


def _as_feedback(outcome: Any) -> Feedback:
    return outcome if isinstance(outcome, Feedback) else Feedback(str(outcome))


def seedless(node: Node) -> bool:
    """Whether a pass may start at `node` without a seed: evaluators, and what only adds them up."""
    stack, seen = [node], set[int]()
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        function: type[Function] | None = current.function
        if function is None or not (function.seedless or function.transparent):
            return False
        if not function.seedless:
            stack.extend(edge.node for edge in current.edges if edge is not None)
    return True
