"""OpenTelemetrySink: what a run does as OpenTelemetry spans. Needs `afnio[opentelemetry]`."""

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
from afnio.tellurio._recording import RunEnded, RunStarted
from afnio.tellurio.sinks._sink import Moment, Sink

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


SCOPE: Final = "afnio"
"""The instrumentation scope of the spans."""


@final
class OpenTelemetrySink(Sink):
    """Spans: run → scope (epoch, step, …) → sample → node → call → attempt, with the GenAI attributes.

    The outermost span is a child of the span that is current where the sink is made, if there is one.
    Spans of samples and nodes end with their scope, at the latest with the sink.

    Args:
        tracer_provider: whose tracer is used; by default the process's.
        name: of the outermost span.
        content: whether the spans of calls carry prompts and replies.
        process_wide: as a block, hear the whole process.

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
    """Makes spans with a tracer."""

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


# SpanTree: spans from the event stream, nested by the addresses that the events carry.
#
# run → scope (epoch, step, …) → sample → node → call → attempt. Nothing but addresses says what belongs
# where, so it is right however many calls are under way side by side.


KEPT_OPEN: Final = 10_000
"""Samples and nodes whose spans are open at once, at most; beyond, the oldest end where they last did something."""
KEPT_LAUNCHES: Final = 50_000
"""Launches that are remembered; what belongs to older ones has long been told."""

Kind = Literal["run", "scope", "sample", "node", "call", "attempt"]
S = TypeVar("S")


class Spans(Protocol[S]):
    """What makes spans somewhere; times in nanoseconds since 1970."""

    def open(self, kind: Kind, name: str, parent: S | None, start: int, attributes: Attributes) -> S: ...
    def close(self, span: S, end: int, attributes: Attributes, error: str | None) -> None: ...


@final
@dataclass(slots=True, eq=False)
class _Open(Generic[S]):
    """A span that has not ended, and when something last happened in it."""

    span: S
    parent: _Open[S] | None
    scope: str
    last: int
    attributes: Attributes = field(default_factory=dict)
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
        attributes: Attributes = {ADDRESS: f"{address}/{part}" if part else address}
        if lane is not None:
            attributes[LANE] = lane
            parent = self._opened(
                (scope, group, lane), "sample", f"sample {lane}", parent, scope, start, {LANE: lane}
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


# The names of attributes on spans: OpenTelemetry's for generative AI, and Afnio's own.
#
# Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (in development there, so all of its names are
# here and nowhere else).


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
    """Return the attributes of a call's span; what was asked and answered only if `content` is wanted."""
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
    """Return the name that the convention has for who serves at `host`; endpoints like OpenAI's count as it."""
    return "azure.ai.openai" if host.endswith(".openai.azure.com") else "openai"
