"""The sink for OpenTelemetry: a run as a tree of spans. Needs `afnio[opentelemetry]`.

The tree is run → scope (epoch, step, …) → sample → node → call → attempt. Events carry no spans, only addresses such
as `run/epoch 1/step 3/7/12/forward`. `SpanTree` works out the tree from these: the scopes are the address's
beginning, then comes the launch and the part. So the tree is right, though thousands of calls run at the same time in
any order.

`SpanTree` doesn't know OpenTelemetry. It creates spans through the protocol `Spans`, so that MLflow's sink can use it
too. The attributes of calls follow OpenTelemetry's conventions for generative AI.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, Protocol, TypeVar, final
from urllib.parse import urlsplit

from afnio.errors import AfnioError
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    NodeLaunched,
    SampleScored,
    ScopeEnded,
    StepEnded,
)
from afnio.tellurio.sinks._sink import Moment, RunEnded, RunStarted, Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


SCOPE: Final = "afnio"
"""The name of the instrumentation scope."""


@final
class OpenTelemetrySink(Sink):
    """Sends spans (run → scope → sample → node → call → attempt) to an OpenTelemetry tracer.

    If there is a current span when the sink is created, it becomes the parent of the outermost span. Spans of samples
    and nodes end with their scope, or with the sink.

    Args:
        tracer_provider: by default the process's.
        name: the name of the outermost span.
        content: put prompts and replies into the spans of calls.
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
    ['attempt 1', 'chat m', 'chat', 'run']
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        *,
        name: str = "run",
        content: bool = False,
        process_wide: bool = False,
    ) -> None:
        try:
            spans = _OpenTelemetrySpans(tracer_provider)
        except ImportError as error:
            raise AfnioError(
                f"OpenTelemetry is not installed ({error}); pip install 'afnio[opentelemetry]'"
            ) from error
        self._tree: SpanTree[Span] = SpanTree(spans, name, content=content)
        super().__init__(process_wide=process_wide)

    def take(self, moments: Sequence[Moment]) -> None:
        for moment in moments:
            self._tree.take(moment)

    def end(self) -> None:
        self._tree.finish()


class _OpenTelemetrySpans:
    """Creates OpenTelemetry's spans."""

    def __init__(self, tracer_provider: TracerProvider | None) -> None:
        from opentelemetry import context, trace

        self._trace = trace
        self._tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._outer = context.get_current()

    def open(self, kind: Kind, name: str, parent: Span | None, start: int, attributes: Attributes) -> Span:
        trace = self._trace
        context = self._outer if parent is None else trace.set_span_in_context(parent, self._outer)
        outgoing = kind in ("call", "attempt")
        span_kind = trace.SpanKind.CLIENT if outgoing else trace.SpanKind.INTERNAL
        return self._tracer.start_span(name, context, span_kind, attributes, start_time=start)

    def close(self, span: Span, end: int, attributes: Attributes, error: str | None) -> None:
        trace: Any = self._trace
        span.set_attributes(attributes)
        if error is not None:
            if (name := error.partition(":")[0]).isidentifier():
                span.set_attribute(ERROR_TYPE, name)
            span.set_status(trace.Status(trace.StatusCode.ERROR, error))
        span.end(end)


# The tree of spans.

KEPT_OPEN: Final = 10_000
"""How many sample and node spans may be open. Beyond that, the oldest are closed at the time of their last event."""
KEPT_LAUNCHES: Final = 50_000
"""How many launches are remembered. Calls of older ones have ended long ago."""

Kind = Literal["run", "scope", "sample", "node", "call", "attempt"]
S = TypeVar("S")


class Spans(Protocol[S]):
    """Creates and ends spans in some system. Times are in nanoseconds since 1970 UTC."""

    def open(self, kind: Kind, name: str, parent: S | None, start: int, attributes: Attributes) -> S: ...
    def close(self, span: S, end: int, attributes: Attributes, error: str | None) -> None: ...


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
            self._outermost(time).attributes |= {RUN: event.run_id, RUN_NAME: event.name}
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
            known = [self._launches.get(entry.producer or "") for entry in event.inputs]
            parts = tuple((one.name, one.group) if one else ("", event.address) for one in known)
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
        attributes = of_call(event, content=self._content)
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
        attributes = {ATTEMPT: number}
        span = self._spans.open("attempt", f"attempt {number}", parent, start, attributes)
        self._spans.close(span, end, {}, error)

    def _score(self, event: SampleScored, time: int) -> None:
        node = self._node(event.node, "", event.lane, "evaluator", time)
        about = node if event.lane is None or node.parent is None else node.parent
        if isinstance(event.score, int | float):
            about.attributes[SCORE] = float(event.score)
        about.attributes[SUCCESS] = event.success
        _touch(node, time)

    def _step(self, event: StepEnded, time: int) -> None:
        node = self._node(event.address, "", None, "step", time)
        node.attributes |= {OPTIMIZER: event.optimizer, UPDATES: len(event.changes)}
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
        attributes: Attributes = {ADDRESS: f"{address}/{part}" if part else address}
        if lane is not None:
            attributes[LANE] = lane
            parent = self._opened(
                (scope, group, lane), "sample", f"sample {lane}", parent, scope, start, {LANE: lane}
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
        return self._opened(path, "scope", tail, self._place(head, start), path, start, {ADDRESS: path})

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


# The attributes of spans: OpenTelemetry's for generative AI, then Afnio's own.
#
# Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/. The conventions are still changing, so their names
# are only written here.

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
OUTPUT_TYPE: Final = "gen_ai.output.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
PARAMETERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}

RUN: Final = "afnio.run"
RUN_NAME: Final = "afnio.run.name"
ADDRESS: Final = "afnio.address"
PURPOSE: Final = "afnio.purpose"
LANE: Final = "afnio.lane"
ATTEMPT: Final = "afnio.attempt"
ATTEMPTS: Final = "afnio.attempts"
WAITED: Final = "afnio.waited"
COST: Final = "afnio.cost"
REPLAYED: Final = "afnio.replayed"
SCORE: Final = "afnio.score"
SUCCESS: Final = "afnio.success"
OPTIMIZER: Final = "afnio.optimizer"
UPDATES: Final = "afnio.updates"

Attributes = dict[str, Any]


def of_call(event: CallEnded | CallReplayed, *, content: bool) -> Attributes:
    """Return the attributes of a call's span, with prompt and reply if `content` is set."""
    url = urlsplit(event.account)
    found: Attributes = {
        OPERATION: "chat",
        PROVIDER: _provider(url.hostname or ""),
        REQUEST_MODEL: event.model,
        SERVER_ADDRESS: url.hostname or "",
        ADDRESS: event.address,
        PURPOSE: event.purpose,
    }
    if url.port is not None:
        found[SERVER_PORT] = url.port
    if event.lane is not None:
        found[LANE] = event.lane
    params = getattr(event.request, "params", {})
    found |= {PARAMETERS[name]: value for name, value in params.items() if name in PARAMETERS}
    if params.get("response_format"):
        found[OUTPUT_TYPE] = "json"
    found |= _of_reply(event.reply)
    if isinstance(event, CallReplayed):
        found[REPLAYED] = True
    else:
        found |= {ATTEMPTS: event.attempts, WAITED: event.waited}
        found |= {} if event.cost is None else {COST: float(event.cost)}
        found |= {} if event.error is None else {ERROR_TYPE: event.error.partition(":")[0]}
    return found | (_content(event) if content else {})


def _of_reply(reply: Any) -> Attributes:
    if reply is None:
        return {}
    usage = reply.usage
    return {
        RESPONSE_MODEL: reply.model,
        FINISH_REASONS: [reply.finish_reason] if reply.finish_reason else [],
        INPUT_TOKENS: usage.prompt_tokens,
        OUTPUT_TOKENS: usage.completion_tokens,
        CACHED_TOKENS: usage.cached_tokens,
        REASONING_TOKENS: usage.reasoning_tokens,
    }


def _content(event: CallEnded | CallReplayed) -> Attributes:
    found: Attributes = {}
    if event.request is not None:
        found[INPUT_MESSAGES] = _dumped([_message(message) for message in event.request.messages])
    if event.reply is not None:
        reason = event.reply.finish_reason
        answer = {"role": "assistant", "parts": _parts(event.reply.content or ""), "finish_reason": reason}
        found[OUTPUT_MESSAGES] = _dumped([answer])
    return found


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message["role"], "parts": _parts(message.get("content") or "")}


def _parts(content: Any) -> list[dict[str, Any]]:
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return [{"type": "text", "content": text} for text in texts]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _provider(host: str) -> str:
    """Return the convention's name for the provider at `host`. OpenAI-compatible endpoints count as OpenAI."""
    return "azure.ai.openai" if host.endswith(".openai.azure.com") else "openai"
