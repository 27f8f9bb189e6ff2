"""The sink for MLflow: a run with its metrics and texts, and a trace for each sample. Needs `afnio[mlflow]`.

MLflow keeps a trace in memory until its outermost span ends, and shows it on one page. One trace for a whole run
would be too large for both. So each sample in each batch has its own trace (sample → node → call), and the
trace's tag `afnio.scope` is the step that it belongs to. The spans come from the same `SpanTree` as OpenTelemetry's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final

from afnio.errors import AfnioError
from afnio.runtime.events import MetricLogged, RunEnded, RunStarted, TableLogged, TextLogged
from afnio.tellurio.sinks import _gen_ai
from afnio.tellurio.sinks._sink import Moment, Sink
from afnio.tellurio.sinks.opentelemetry import Kind, SpanTree

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.entities.span import LiveSpan

STATUSES: Final = {"COMPLETED": "FINISHED", "FAILED": "FAILED", "CRASHED": "KILLED"}
RUN_TAG: Final = "afnio.run"
SCOPE_TAG: Final = "afnio.scope"
TYPES: Final[Mapping[Kind, str]] = {
    "sample": "AGENT",
    "node": "CHAIN",
    "call": "CHAT_MODEL",
    "replay": "TASK",
    "attempt": "TASK",
}
# The most metrics that MLflow accepts in one request.
METRICS: Final = 1_000


@final
class MlflowSink(Sink):
    """Sends metrics, config, texts and traces to MLflow in batches.

    `te.init("me", "project", sinks=[MlflowSink("sqlite:///mlflow.db")])` creates an MLflow run of the same
    name. If the run is a continued one, its MLflow run is continued too.

    Args:
        tracking_uri: MLflow's tracking URI; by default the one that MLflow is set to. It is set for the whole process,
            because MLflow's traces have no other way to get it.
        experiment: MLflow's experiment; by default MLFLOW_EXPERIMENT_NAME, or else the run's project.
        traces: trace samples.
        content: put prompts and replies into the traces.
        process_wide: see `afnio.tellurio.sinks._sink.Sink`.

    Raises:
        AfnioError: if MLflow is not installed.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        *,
        experiment: str | None = None,
        traces: bool = True,
        content: bool = False,
        process_wide: bool = False,
    ) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise AfnioError(f"MLflow is not installed ({error}); pip install 'afnio[mlflow]'") from error
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        self._record = _MlflowRun(mlflow.MlflowClient(tracking_uri), experiment)
        spans = _MlflowSpans(self._record, content=content)
        self._tree: SpanTree[_Place] | None = SpanTree(spans, "run", content=content) if traces else None
        super().__init__(process_wide=process_wide)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the first event."""
        return self._record.run_id

    def take(self, moments: Sequence[Moment]) -> None:
        for moment in moments:
            if not self._record.take(moment) and self._tree is not None:
                self._tree.take(moment)
        self._record.flush()

    def end(self) -> None:
        self._record.end()  # first: MLflow may need minutes for the traces, and the program may not wait for them
        if self._tree is not None:
            self._tree.finish()
            import mlflow

            mlflow.flush_trace_async_logging()


class _MlflowRun:
    """The MLflow run. It is created with the first event."""

    def __init__(self, client: Any, experiment: str | None) -> None:
        self._client = client
        self._experiment = experiment
        self._metrics: list[Metric] = []
        self._steps: dict[str, int] = {}
        self._status = "FINISHED"
        self.run_id: str | None = None
        self.experiment_id = ""
        self._takers: dict[type, Callable[[Any, int], None]] = {
            RunStarted: self._start,
            MetricLogged: self._metric,
            TextLogged: self._text,
            TableLogged: self._table,
            RunEnded: self._note_status,
        }

    def take(self, moment: Moment) -> bool:
        """Send an event if it is about the run itself. Return True if it was."""
        taker = self._takers.get(type(moment.event))
        if taker is not None:
            taker(moment.event, moment.time // 1_000_000)
        elif self.run_id is None:
            self._make("afnio", None, moment.time // 1_000_000, {})
        return taker is not None

    def flush(self) -> None:
        """Send the metrics collected since the last flush."""
        metrics, self._metrics = self._metrics, []
        for start in range(0, len(metrics), METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + METRICS])

    def end(self) -> None:
        if self.run_id is not None:
            self._client.set_terminated(self.run_id, self._status)

    def _make(self, project: str, name: str | None, start: int, tags: Mapping[str, str]) -> None:
        wanted = self._wanted(project)
        experiment = self._client.get_experiment_by_name(wanted)
        self.experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(wanted)
        )
        run = self._client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name)
        self.run_id = run.info.run_id

    def _wanted(self, project: str) -> str:
        return self._experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or project

    def _start(self, event: RunStarted, time: int) -> None:
        if event.continued and self._find(event):
            return
        tags = {RUN_TAG: event.run_id, "afnio.namespace": event.namespace}
        tags |= {"mlflow.note.content": event.description} if event.description else {}
        self._make(event.project, event.name, int(event.date * 1000), tags)
        from mlflow.entities import Param

        values = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in event.config.items()
        }
        params = [Param(name, value[:6000]) for name, value in values.items()]  # MLflow's limit
        self._client.log_batch(self.run_id, params=params)

    def _find(self, event: RunStarted) -> bool:
        """Find and continue the MLflow run of an earlier process. Return True if there is one."""
        experiment = self._client.get_experiment_by_name(self._wanted(event.project))
        if experiment is None:
            return False
        wanted = f"tags.`{RUN_TAG}` = '{event.run_id}'"
        runs = self._client.search_runs([experiment.experiment_id], wanted, max_results=1)
        if not runs:
            return False
        self.experiment_id, self.run_id = experiment.experiment_id, runs[0].info.run_id
        self._client.update_run(self.run_id, status="RUNNING")
        return True

    def _metric(self, event: MetricLogged, time: int) -> None:
        from mlflow.entities import Metric

        step = event.step if event.step is not None else self._steps.get(event.name, 0)
        self._steps[event.name] = step + 1
        if isinstance(event.value, int | float):
            self._metrics.append(Metric(event.name, float(event.value), time, step))
        else:
            self._text(TextLogged(event.name, json.dumps(event.value), step), time)

    def _text(self, event: TextLogged, time: int) -> None:
        number = "" if event.step is None else f"-{event.step}"
        self._client.log_text(self.run_id, event.text, f"{event.name}{number}.txt")

    def _table(self, event: TableLogged, time: int) -> None:
        number = "" if event.step is None else f"-{event.step}"
        table = {"columns": list(event.columns), "data": [list(row) for row in event.rows]}
        self._client.log_dict(self.run_id, table, f"{event.name}{number}.json")

    def _note_status(self, event: RunEnded, time: int) -> None:
        self._status = STATUSES.get(event.status, "FINISHED")


class _Place(NamedTuple):
    """A span; or a scope, which has none, because traces begin below it."""

    scope: str
    span: LiveSpan | None


class _MlflowSpans:
    """Creates MLflow's spans."""

    def __init__(self, run: _MlflowRun, *, content: bool) -> None:
        self._run = run
        self._content = content

    def open(
        self, kind: Kind, name: str, parent: _Place | None, start: int, attributes: _gen_ai.Attributes
    ) -> _Place:
        scope = parent.scope if parent is not None else ""
        if kind in ("run", "scope"):
            return _Place(attributes.get(_gen_ai.ADDRESS, scope), None)
        import mlflow

        above = None if parent is None else parent.span
        about: dict[str, Any] = {}
        if above is None:
            metadata = {"mlflow.sourceRun": self._run.run_id}
            about = {
                "tags": {SCOPE_TAG: scope},
                "metadata": metadata,
                "experiment_id": self._run.experiment_id,
            }
        asked, answered = (
            attributes.pop(_gen_ai.INPUT_MESSAGES, None),
            attributes.pop(_gen_ai.OUTPUT_MESSAGES, None),
        )
        span = mlflow.start_span_no_context(
            name,
            span_type=TYPES[kind],
            parent_span=above,
            inputs=None if asked is None else json.loads(asked),
            attributes=attributes,
            start_time_ns=start,
            **about,
        )
        if answered is not None:
            span.set_outputs(json.loads(answered))
        return _Place(scope, span)

    def close(self, place: _Place, end: int, attributes: _gen_ai.Attributes, error: str | None) -> None:
        span = place.span
        if span is None:
            return
        span.set_attributes(attributes)
        if error is not None:
            span.set_attribute("error", error)
        span.end(status="OK" if error is None else "ERROR", end_time_ns=end)

    def note(self, place: _Place, name: str, time: int, attributes: _gen_ai.Attributes) -> None:
        from mlflow.entities import SpanEvent

        if place.span is not None:
            place.span.add_event(SpanEvent(name, time, attributes))  # type: ignore[abstract]  # it has the method
