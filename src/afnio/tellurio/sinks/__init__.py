"""Sinks: plain callables on the event stream that tell other systems what a run does.

`te.init(..., sinks=[...])` gives a run's events to sinks. A sink takes one event at a time, on whichever
thread it happens, and returns at once; these hand it to a thread of their own. `flush()` waits until all of
it is told, `close()` ends the sink. As a block a sink hears what is launched in the block, or with
`process_wide=True` all that the process launches meanwhile, and closes at its end.

* `afnio.tellurio.sinks.jsonl.JsonlSink`: one JSON object for each event, in a file.
* `afnio.tellurio.sinks.opentelemetry.OpenTelemetrySink`: spans, with `afnio[opentelemetry]`.
* `afnio.tellurio.sinks.mlflow.MlflowSink`: metrics and traces of an MLflow run, with `afnio[mlflow]`.
"""

from __future__ import annotations

from afnio._public import show_in
from afnio.tellurio.sinks._sink import JsonlSink

__all__ = [
    "JsonlSink",
]

show_in(__name__, globals(), __all__)
