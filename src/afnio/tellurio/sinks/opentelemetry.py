"""The sink for OpenTelemetry: a run as a tree of spans. Needs `afnio[opentelemetry]`.

The tree is run → scope (epoch, step, …) → sample → node → call; a call that was sent several times has a span for each
attempt. Events carry no spans, only addresses such as `run/epoch 1/step 3/7/12/forward`. `SpanTree` works out the tree
from these: the scopes are the address's beginning, then comes the launch and the part. So the tree is right, though
thousands of calls run at the same time in any order.

`SpanTree` doesn't know OpenTelemetry. It creates spans through the protocol `Spans`, so that MLflow's sink can use it
too. The attributes of calls follow OpenTelemetry's conventions for generative AI (`_gen_ai`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, final

from afnio.errors import AfnioError
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    NodeLaunched,
    RunEnded,
    RunStarted,
    SampleScored,
    ScopeEnded,
    StepEnded,
)
from afnio.tellurio.sinks import _gen_ai
from afnio.tellurio.sinks._gen_ai import Attributes
from afnio.tellurio.sinks._sink import Moment, Sink

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider


# The name of the instrumentation scope.
SCOPE: Final = "afnio"
# Its attributes.
ABOUT: Final = {"afnio.gen_ai.conventions": _gen_ai.CONVENTIONS}


@final
class OpenTelemetrySink(Sink):
    """Sends spans (run → scope → sample → node → call), metrics of the calls, and scores to OpenTelemetry.

    If there is a current span when the sink is created, it becomes the parent of the outermost span. Spans of samples
    and nodes end with their scope, or with the sink.

    A call that the journal answers has the operation `fetch_response`: it has no tokens, no duration in the metrics,
    and nothing leaves the process. A score is an event `gen_ai.evaluation.result` of its evaluator's span.

    Args:
        tracer_provider: by default the process's.
        meter_provider: by default the process's.
        logger_provider: if given, scores are log records in the context of their span, in place of its events.
        name: the name of the outermost span.
        content: put prompts, replies and tools into the spans of calls, and explanations into scores.
        process_wide: see `afnio.tellurio.sinks._sink.Sink`.

    Raises:
        AfnioError: if OpenTelemetry is not installed.

    >>> from opentelemetry.sdk.trace import TracerProvider
    >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    >>> from afnio.testing import ScriptedClient
    >>> exporter, provider = InMemorySpanExporter(), TracerProvider()
    >>> provider.add_span_processor(SimpleSpanProcessor(exporter))
    >>> with OpenTelemetrySink(provider):
    ...     _ = ScriptedClient("Hi").chat(messages=[{"role": "user", "content": "Hello"}], model="m")
    >>> [span.name for span in exporter.get_finished_spans()]
    ['chat m', 'chat', 'run']
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        meter_provider: MeterProvider | None = None,
        logger_provider: LoggerProvider | None = None,
        name: str = "run",
        content: bool = False,
        process_wide: bool = False,
    ) -> None:
        try:
            spans = _OpenTelemetrySpans(tracer_provider, logger_provider)
            self._metrics = _Metrics(meter_provider)
        except ImportError as error:
            raise AfnioError(
                f"OpenTelemetry is not installed ({error}); pip install 'afnio[opentelemetry]'"
            ) from error
        self._tree: SpanTree[Span] = SpanTree(spans, name, content=content)
        super().__init__(process_wide=process_wide)

    def take(self, moments: Sequence[Moment]) -> None:
        for moment in moments:
            self._tree.take(moment)
            if isinstance(moment.event, CallEnded):
                self._metrics.add(moment.event)

    def end(self) -> None:
        self._tree.finish()


class _OpenTelemetrySpans:
    """Creates OpenTelemetry's spans."""

    def __init__(
        self, tracer_provider: TracerProvider | None, logger_provider: LoggerProvider | None
    ) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE, None, tracer_provider, None, ABOUT)
        self._logger = (
            None if logger_provider is None else logger_provider.get_logger(SCOPE, None, None, ABOUT)
        )
        self._outer = context.get_current()

    def open(self, kind: Kind, name: str, parent: Span | None, start: int, attributes: Attributes) -> Span:
        # Only a call leaves the process. Its attempts are inner spans, or a backend would count each of them as a call.
        span_kind = self._trace.SpanKind.CLIENT if kind == "call" else self._trace.SpanKind.INTERNAL
        return self._tracer.start_span(name, self._inside(parent), span_kind, attributes, start_time=start)

    def note(self, span: Span, name: str, time: int, attributes: Attributes) -> None:
        if self._logger is None:
            span.add_event(name, attributes, time)
        else:
            self._logger.emit(
                timestamp=time, context=self._inside(span), attributes=attributes, event_name=name
            )

    def _inside(self, span: Span | None) -> Context:
        return self._outer if span is None else self._trace.set_span_in_context(span, self._outer)

    def close(self, span: Span, end: int, attributes: Attributes, error: str | None) -> None:
        trace: Any = self._trace
        span.set_attributes(attributes)
        if error is not None:
            if (name := error.partition(":")[0]).isidentifier():
                span.set_attribute(_gen_ai.ERROR_TYPE, name)
            span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        span.end(end)


class _Metrics:
    """The metrics of calls that were sent, with their failures. A replayed call isn't counted again."""

    def __init__(self, meter_provider: MeterProvider | None) -> None:
        from opentelemetry import metrics

        meter = metrics.get_meter(SCOPE, "", meter_provider, None, ABOUT)

        def histogram(name: str, unit: str, bounds: Sequence[float]) -> Any:
            return meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=bounds)

        self._inference = histogram(_gen_ai.DURATION, "s", _gen_ai.SECONDS)
        self._embedding = histogram(_gen_ai.EMBEDDING_DURATION, "s", _gen_ai.SECONDS)
        self._spent = {
            attribute: meter.create_counter(name, "{token}") for attribute, name in _gen_ai.SPENT.items()
        }
        self._sizes = {
            attribute: histogram(name, "{token}", _gen_ai.TOKENS) for attribute, name in _gen_ai.SIZES.items()
        }

    def add(self, event: CallEnded) -> None:
        """Count a call."""
        attributes = _gen_ai.of_call(event, content=False)
        about: dict[str, Any] = {name: attributes[name] for name in _gen_ai.DIMENSIONS if name in attributes}
        if attributes[_gen_ai.OPERATION] == _gen_ai.EMBEDDINGS:
            self._embedding.record(event.seconds, about)
            return
        self._inference.record(event.seconds, about)
        for attribute, counter in self._spent.items():
            if attribute in attributes:
                counter.add(attributes[attribute], about)
        for attribute, histogram in self._sizes.items():
            if attribute in attributes:
                histogram.record(attributes[attribute], about)


# The tree of spans.

# How many sample and node spans may be open. Beyond that, the oldest are closed at the time of their last
# event.
KEPT_OPEN: Final = 10_000
# How many launches are remembered. Calls of older ones have ended long ago.
KEPT_LAUNCHES: Final = 50_000

Kind = Literal["run", "scope", "sample", "node", "call", "replay", "attempt"]
S = TypeVar("S")


class Spans(Protocol[S]):
    """Creates and ends spans in some system. Times are in nanoseconds since 1970 UTC."""

    def open(self, kind: Kind, name: str, parent: S | None, start: int, attributes: Attributes) -> S: ...
    def close(self, span: S, end: int, attributes: Attributes, error: str | None) -> None: ...
    def note(self, span: S, name: str, time: int, attributes: Attributes) -> None:
        """Add an event to a span."""


@final
@dataclass(slots=True, eq=False)
class _Open(Generic[S]):
    """A span that hasn't ended; `last` is the time of its last event."""

    span: S
    parent: _Open[S] | None
    scope: str
    last: int
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None


class _Launched(NamedTuple):
    """A launch: its op, its batch (by the address of the batch's first launch) and its start.

    A backward pass has a part for each op that it goes through; `parts` has the op and the batch of each.
    """

    name: str
    group: str
    start: int
    parts: tuple[tuple[str, str], ...] = ()


@final
class SpanTree(Generic[S]):
    """Turns events into spans.

    Args:
        spans: creates the spans.
        name: the name of the outermost span.
        content: put prompts and replies into the spans of calls.
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
        """Open, update or end the spans that an event is about."""
        time, event = moment
        if isinstance(event, RunStarted):
            self._outermost(time).attributes |= {_gen_ai.RUN: event.run_id, _gen_ai.RUN_NAME: event.name}
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
        """End all spans, inner ones first, each at the time of its last event."""
        for key in reversed(list(self._open)):
            self._close(key)
        if self._root is not None:
            root, self._root = self._root, None
            self._spans.close(root.span, root.last, root.attributes, root.error)

    # One method for each kind of event.

    def _launch(self, event: NodeLaunched, time: int) -> None:
        group = event.address
        parts: tuple[tuple[str, str], ...] = ()
        if event.kind == "backward":
            producers = [self._launches.get(entry.producer or "") for entry in event.inputs]
            parts = tuple((one.name, one.group) if one else ("", event.address) for one in producers)
        elif event.lanes is not None:
            group = self._group(event)
        self._launches[event.address] = _Launched(event.name, group, time, parts)
        if len(self._launches) > KEPT_LAUNCHES:
            self._launches.popitem(last=False)

    def _group(self, event: NodeLaunched) -> str:
        """Return the batch that a launch works on: its producers' one, or the one with the same input values."""
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
        attributes = _gen_ai.of_call(event, content=self._content)
        kind: Kind = "replay" if isinstance(event, CallReplayed) else "call"
        name = f"{attributes[_gen_ai.OPERATION]} {event.model}"
        span = self._spans.open(kind, name, node.span, time - lasted, attributes)
        error = None if isinstance(event, CallReplayed) else event.error
        failed = self._failed.pop(event.address, [])
        if isinstance(event, CallEnded) and failed:
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
        attributes = {_gen_ai.ATTEMPT: number}
        span = self._spans.open("attempt", f"attempt {number}", parent, start, attributes)
        self._spans.close(span, end, {}, error)

    def _score(self, event: SampleScored, time: int) -> None:
        node = self._node(event.node, "", event.lane, "evaluator", time)
        about = node if event.lane is None or node.parent is None else node.parent
        if isinstance(event.score, int | float):
            about.attributes[_gen_ai.SCORE] = float(event.score)
        about.attributes[_gen_ai.SUCCESS] = event.success
        launched = self._launches.get(event.node)
        attributes = _gen_ai.of_score(event, launched.name if launched else "score", content=self._content)
        self._spans.note(node.span, _gen_ai.EVALUATION, time, attributes)
        _touch(node, time)

    def _step(self, event: StepEnded, time: int) -> None:
        node = self._node(event.address, "", None, "step", time)
        node.attributes |= {_gen_ai.OPTIMIZER: event.optimizer, _gen_ai.UPDATES: len(event.changes)}
        node.error = event.error
        _touch(node, time)
        self._close((event.address, "", None))
        # Don't carry samples over to the next step, even if the texts are the same.
        self._batches = {}

    def _end_scope(self, path: str) -> None:
        inside = f"{path}/"
        for key, entry in reversed(list(self._open.items())):
            if f"{entry.scope}/".startswith(inside):
                self._close(key)
        for address in [address for address in self._launches if address.startswith(inside)]:
            del self._launches[address]

    # Finding or opening the span of an address.

    def _node(self, address: str, part: str, lane: int | None, purpose: str, start: int) -> _Open[S]:
        """Return the span of one lane of a launch. If no event announced the launch, its lanes share one span."""
        launched = self._launches.get(address)
        if launched is None:
            launched, part = _Launched(purpose, address, start), ""
        key = (address, part, lane)
        opened = self._open.get(key)
        if opened is not None:
            return opened
        name, group = launched.name, launched.group
        number = part.removeprefix("node ")
        if number.isdecimal() and int(number) < len(launched.parts):
            forward, group = launched.parts[int(number)]
            name = f"{forward} backward".strip()
        scope = address.rpartition("/")[0]
        start = min(start, launched.start)
        parent = self._place(scope, start)
        attributes: Attributes = {_gen_ai.ADDRESS: f"{address}/{part}" if part else address}
        if lane is not None:
            attributes[_gen_ai.LANE] = lane
            parent = self._opened(
                (scope, group, lane), "sample", f"sample {lane}", parent, scope, start, {_gen_ai.LANE: lane}
            )
        return self._opened(key, "node", name, parent, scope, start, attributes)

    def _place(self, path: str, start: int) -> _Open[S]:
        """Return the parent of a launch in the scope `path`: the scope's span, or that of a node that launched it."""
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
            path, "scope", tail, self._place(head, start), path, start, {_gen_ai.ADDRESS: path}
        )

    def _opened(
        self,
        key: Hashable,
        kind: Kind,
        name: str,
        parent: _Open[S],
        scope: str,
        start: int,
        attributes: Attributes,
    ) -> _Open[S]:
        opened = self._open.get(key)
        if opened is None:
            if len(self._open) >= KEPT_OPEN:
                self._close(next(iter(self._open)))
            span = self._spans.open(kind, name, parent.span, start, attributes)
            opened = self._open[key] = _Open(span, parent, scope, start)
        return opened

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
