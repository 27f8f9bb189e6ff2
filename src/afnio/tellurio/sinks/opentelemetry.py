"""OpenTelemetrySink: what a run does as OpenTelemetry spans. Needs `afnio[opentelemetry]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, final

from afnio.errors import AfnioError
from afnio.tellurio.sinks.gen_ai import ERROR_TYPE, Attributes
from afnio.tellurio.sinks.sink import Moment, Sink
from afnio.tellurio.sinks.span_tree import Kind, SpanTree

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
