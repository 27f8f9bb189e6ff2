"""SpanTree: spans from the event stream, nested by the addresses that the events carry.

run → scope (epoch, step, …) → sample → node → call → attempt. Nothing but addresses says what belongs
where, so it is right however many calls are under way side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, final

from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    NodeLaunched,
    SampleScored,
    ScopeEnded,
    StepEnded,
)
from afnio.tellurio.run_events import RunEnded, RunStarted
from afnio.tellurio.sinks import gen_ai
from afnio.tellurio.sinks.sink import Moment

KEPT_OPEN: Final = 10_000
"""Samples and nodes whose spans are open at once, at most; beyond, the oldest end where they last did something."""
KEPT_LAUNCHES: Final = 50_000
"""Launches that are remembered; what belongs to older ones has long been told."""

Kind = Literal["run", "scope", "sample", "node", "call", "attempt"]
S = TypeVar("S")


class Spans(Protocol[S]):
    """What makes spans somewhere; times in nanoseconds since 1970."""

    def open(
        self, kind: Kind, name: str, parent: S | None, start: int, attributes: gen_ai.Attributes
    ) -> S: ...
    def close(self, span: S, end: int, attributes: gen_ai.Attributes, error: str | None) -> None: ...


@final
@dataclass(slots=True, eq=False)
class _Open(Generic[S]):
    """A span that has not ended, and when something last happened in it."""

    span: S
    parent: _Open[S] | None
    scope: str
    last: int
    attributes: gen_ai.Attributes = field(default_factory=dict)
    error: str | None = None


class _Launched(NamedTuple):
    """What is remembered of a launch: its parts are those of a backward pass, by the ops they belong to."""

    name: str
    group: str
    start: int
    parts: tuple[tuple[str, str], ...] = ()


@final
class SpanTree(Generic[S]):
    """Takes events in order and opens and ends spans.

    Args:
        spans: where they are made.
        name: of the outermost span.
        content: whether calls show what was asked and answered.
    """

    def __init__(self, spans: Spans[S], name: str, *, content: bool) -> None:
        self._spans = spans
        self._name = name
        self._content = content
        self._root: _Open[S] | None = None
        self._open: OrderedDict[Hashable, _Open[S]] = OrderedDict()
        self._launches: OrderedDict[str, _Launched] = OrderedDict()
        self._batches: dict[int, str] = {}
        self._failed: dict[str, list[tuple[int, CallRetried]]] = {}

    def take(self, moment: Moment) -> None:
        """Tell of one event."""
        time, event = moment
        if isinstance(event, RunStarted):
            self._outermost(time).attributes |= {gen_ai.RUN: event.run_id, gen_ai.RUN_NAME: event.name}
        elif isinstance(event, RunEnded):
            _touch(self._root, time)
            if self._root is not None and event.status != "COMPLETED":
                self._root.error = event.status
        elif isinstance(event, NodeLaunched):
            self._launch(event, time)
        elif isinstance(event, CallRetried):
            self._failed.setdefault(event.address, []).append((time, event))
        elif isinstance(event, CallEnded | CallReplayed):
            self._call(event, time)
        elif isinstance(event, SampleScored):
            self._score(event, time)
        elif isinstance(event, StepEnded):
            self._step(event, time)
        elif isinstance(event, ScopeEnded):
            self._end_scope(event.address)

    def finish(self) -> None:
        """End all spans, inner ones first, each where it last did something."""
        for key in reversed(list(self._open)):
            self._close(key)
        if self._root is not None:
            root, self._root = self._root, None
            self._spans.close(root.span, root.last, root.attributes, root.error)

    # Events

    def _launch(self, event: NodeLaunched, time: int) -> None:
        group = event.address
        parts: tuple[tuple[str, str], ...] = ()
        if event.kind == "backward":
            known = [self._launches.get(entry.producer or "") for entry in event.inputs]
            parts = tuple((one.name, one.group) if one else ("", event.address) for one in known)
        elif event.lanes is not None:
            group = self._group(event)
        self._launches[event.address] = _Launched(event.name, group, time, parts)
        if len(self._launches) > KEPT_LAUNCHES:
            self._launches.popitem(last=False)

    def _group(self, event: NodeLaunched) -> str:
        """Return which batch the launch works on, by the address of the first launch that did."""
        for entry in event.inputs:
            producer = self._launches.get(entry.producer or "")
            if producer is not None:
                return producer.group
        for entry in event.inputs:
            if entry.values is not None:
                return self._batches.setdefault(hash(tuple(map(repr, entry.values))), event.address)
        return event.address

    def _call(self, event: CallEnded | CallReplayed, time: int) -> None:
        lasted = 0 if isinstance(event, CallReplayed) else _nanoseconds(event.seconds + event.waited)
        part = event.address[len(event.node) + 1 :].rpartition("/")[0]
        if event.lane is not None:
            part = part.rpartition("/")[0]
        node = self._node(event.node, part, event.lane, event.purpose, time - lasted)
        attributes = gen_ai.of_call(event, content=self._content)
        span = self._spans.open("call", f"chat {event.model}", node.span, time - lasted, attributes)
        error = None if isinstance(event, CallReplayed) else event.error
        failed = self._failed.pop(event.address, [])
        if isinstance(event, CallEnded):
            self._attempts(event, failed, span, time)
        self._spans.close(span, time, {}, error)
        _touch(node, time)

    def _attempts(self, event: CallEnded, failed: list[tuple[int, CallRetried]], span: S, time: int) -> None:
        for end, attempt in failed:
            start = end - _nanoseconds(attempt.seconds)
            self._attempt(span, attempt.attempt, start, end, attempt.error)
        if event.attempts > len(failed):
            seconds = event.seconds - sum(attempt.seconds for _, attempt in failed)
            start = time - _nanoseconds(max(seconds, 0.0))
            self._attempt(span, event.attempts, start, time, event.error)

    def _attempt(self, parent: S, number: int, start: int, end: int, error: str | None) -> None:
        attributes = {gen_ai.ATTEMPT: number}
        span = self._spans.open("attempt", f"attempt {number}", parent, start, attributes)
        self._spans.close(span, end, {}, error)

    def _score(self, event: SampleScored, time: int) -> None:
        node = self._node(event.node, "", event.lane, "evaluator", time)
        about = node if event.lane is None or node.parent is None else node.parent
        if isinstance(event.score, int | float):
            about.attributes[gen_ai.SCORE] = float(event.score)
        about.attributes[gen_ai.SUCCESS] = event.success
        _touch(node, time)

    def _step(self, event: StepEnded, time: int) -> None:
        node = self._node(event.address, "", None, "step", time)
        node.attributes |= {gen_ai.OPTIMIZER: event.optimizer, gen_ai.UPDATES: len(event.changes)}
        node.error = event.error
        _touch(node, time)
        self._close((event.address, "", None))
        # The next step's samples are others, even if a batch has the same texts.
        self._batches = {}

    def _end_scope(self, path: str) -> None:
        inside = f"{path}/"
        for key, entry in reversed(list(self._open.items())):
            if f"{entry.scope}/".startswith(inside):
                self._close(key)
        for address in [address for address in self._launches if address.startswith(inside)]:
            del self._launches[address]

    # Places

    def _node(self, address: str, part: str, lane: int | None, purpose: str, start: int) -> _Open[S]:
        """Return the span of a launch's lane; of a launch that isn't told of, of all of it."""
        launched = self._launches.get(address)
        if launched is None:
            launched, part = _Launched(purpose, address, start), ""
        key = (address, part, lane)
        found = self._open.get(key)
        if found is not None:
            return found
        name, group = launched.name, launched.group
        number = part.removeprefix("node ")
        if number.isdecimal() and int(number) < len(launched.parts):
            forward, group = launched.parts[int(number)]
            name = f"{forward} backward".strip()
        scope = address.rpartition("/")[0]
        start = min(start, launched.start)
        parent = self._place(scope, start)
        attributes: gen_ai.Attributes = {gen_ai.ADDRESS: f"{address}/{part}" if part else address}
        if lane is not None:
            attributes[gen_ai.LANE] = lane
            parent = self._opened(
                (scope, group, lane), "sample", f"sample {lane}", parent, scope, start, {gen_ai.LANE: lane}
            )
        return self._opened(key, "node", name, parent, scope, start, attributes)

    def _place(self, path: str, start: int) -> _Open[S]:
        """Return the span that a launch in the scope `path` belongs to: a scope's, or a node's that launched it."""
        if path in ("", "run"):
            return self._outermost(start)
        if path in self._launches:
            return self._node(path, "", None, "", start)
        head, _, tail = path.rpartition("/")
        if tail.isdecimal():
            address, _, part = head.rpartition("/")
            if head in self._launches:
                return self._node(head, "", int(tail), "", start)
            if address in self._launches:
                return self._node(address, part, int(tail), "", start)
        return self._opened(
            path, "scope", tail, self._place(head, start), path, start, {gen_ai.ADDRESS: path}
        )

    def _opened(
        self,
        key: Hashable,
        kind: Kind,
        name: str,
        parent: _Open[S],
        scope: str,
        start: int,
        attributes: gen_ai.Attributes,
    ) -> _Open[S]:
        found = self._open.get(key)
        if found is None:
            if len(self._open) >= KEPT_OPEN:
                self._close(next(iter(self._open)))
            span = self._spans.open(kind, name, parent.span, start, attributes)
            found = self._open[key] = _Open(span, parent, scope, start)
        return found

    def _outermost(self, start: int) -> _Open[S]:
        if self._root is None:
            self._root = _Open(self._spans.open("run", self._name, None, start, {}), None, "", start)
        return self._root

    def _close(self, key: Any) -> None:
        entry = self._open.pop(key, None)
        if entry is not None:
            self._spans.close(entry.span, entry.last, entry.attributes, entry.error)


def _touch(entry: _Open[Any] | None, time: int) -> None:
    while entry is not None:
        entry.last = max(entry.last, time)
        entry = entry.parent


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
