"""Sinks: send a run's events to other systems.

`te.init(..., sinks=[...])` calls each sink with each event of the run, on the thread where the event happened. A sink
is any function of one event and must return quickly, so these put the event into a queue and work it off in a thread.
`flush()` waits until the queue is empty, `close()` ends the sink. Without a run, use a sink as a context manager: it
gets the events of what is launched in the block, or with `process_wide=True` those of the whole process.

`Sink` is the base class of a sink of your own: it has the queue and the thread, and you write `take`. Three exist:

* `afnio.tellurio.sinks.JsonlSink`: one JSON object for each event, in a file.
* `afnio.tellurio.sinks.opentelemetry.OpenTelemetrySink`: spans, with `afnio[opentelemetry]`.
* `afnio.tellurio.sinks.mlflow.MlflowSink`: metrics and traces of an MLflow run, with `afnio[mlflow]`.
"""

from __future__ import annotations

from afnio._public import show_in
from afnio.tellurio.sinks._sink import JsonlSink, Moment, Sink

__all__ = [
    "JsonlSink",
    "Moment",
    "Sink",
]

show_in(__name__, globals(), __all__)
