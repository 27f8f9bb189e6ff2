"""The gateway's figures, in the text form of Prometheus. They count the engine's events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from afnio.errors import GatewayError
from afnio.runtime.events import CallEnded, CallReplayed, CallRetried

if TYPE_CHECKING:
    from afnio.runtime._budget import Budget

_MOST_MODELS: Final = 100
"""Models with figures of their own; clients may send any name."""


@final
class Metrics:
    """The figures of one gateway.

    Raises:
        GatewayError: if prometheus-client isn't installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import (
                CollectorRegistry,
                Counter,
                Gauge,
                Histogram,
                ProcessCollector,
                disable_created_metrics,
            )
            from prometheus_client.exposition import CONTENT_TYPE_LATEST
        except ImportError as error:
            raise GatewayError(
                "the gateway needs prometheus-client, which is not installed; run pip install 'afnio[gateway]'"
            ) from error

        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each figure, of no use here

        self.content_type = CONTENT_TYPE_LATEST
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._models: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"afnio_gateway_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str) -> Any:
            return Gauge(f"afnio_gateway_{name}", text, registry=self._registry)

        def histogram(name: str, text: str) -> Any:
            buckets = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
            return Histogram(f"afnio_gateway_{name}", text, registry=self._registry, buckets=buckets)

        self._calls = counter("calls", "Calls that ended.", "model", "outcome")
        self._retries = counter("retries", "Attempts that failed and were repeated.")
        self._tokens = counter("tokens", "Tokens as providers counted them.", "model", "kind")
        self._cost = counter("cost_dollars", "Dollars, for models with a known price.", "model")
        self._waited = histogram("wait_seconds", "Time of a call in the queue and between attempts.")
        self._seconds = histogram("upstream_seconds", "Time of a call on the wire.")
        self._open = gauge("open_calls", "Calls that haven't ended.")
        self._on_wire = gauge("in_flight", "Calls on the wire.")
        self._spent = gauge("budget_spent_dollars", "What counts against --budget.")

    def update(self, event: Any) -> None:
        """Count an event of the engine."""
        if isinstance(event, CallEnded):
            model = self._model(event.model)
            self._calls.labels(model, "answered" if event.error is None else "failed").inc()
            self._waited.observe(max(0.0, event.waited))
            self._seconds.observe(max(0.0, event.seconds))
            for kind, tokens in (
                ("input", event.usage.prompt_tokens),
                ("output", event.usage.completion_tokens),
                ("cached", event.usage.cached_tokens),
            ):
                if tokens:
                    self._tokens.labels(model, kind).inc(tokens)
            if event.cost is not None:
                self._cost.labels(model).inc(float(event.cost))
        elif isinstance(event, CallReplayed):
            self._calls.labels(self._model(event.model), "replayed").inc()
        elif isinstance(event, CallRetried):
            self._retries.inc()

    def measure(self, open_calls: int, on_wire: int, budget: Budget | None) -> None:
        self._open.set(open_calls)
        self._on_wire.set(on_wire)
        if budget is not None:
            self._spent.set(float(budget.ledger.total.cost or 0))

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _MOST_MODELS:
                return "other"
            self._models.add(name)
        return name
