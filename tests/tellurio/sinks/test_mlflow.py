"""An MLflow run read back from MLflow's own store: metrics, config, traces, under many calls side by side."""

from __future__ import annotations

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import pytest
from kit.roles import comment, play
from kit.together import Together

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.models import ChatRequest
from afnio.tellurio.sinks.mlflow import MlflowSink
from afnio.testing import ScriptedClient

pytestmark = [
    # Imported by the first test, as that takes seconds: each worker imports this file, and one runs it.
    pytest.mark.skipif(find_spec("mlflow") is None, reason="afnio[mlflow] is not installed"),
    pytest.mark.skipif(find_spec("sqlalchemy") is None, reason="MLflow's SQLite store needs sqlalchemy"),
    # Warnings of MLflow's and its libraries' own code.
    pytest.mark.filterwarnings(
        "ignore::Warning:mlflow", "ignore::Warning:sqlalchemy", "ignore::Warning:alembic"
    ),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SQLite store of MLflow's, made once, as that takes seconds."""
    import mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_MODEL_CATALOG_URI", "")  # prices, which it would fetch for the first trace
        folder = tmp_path_factory.mktemp("mlflow")
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        client.search_experiments()
        yield client
        mlflow.set_tracking_uri(before)


@pytest.fixture
def store(database: Any, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """That store, with an experiment of the test's own."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    return database


def experiment(store: Any, request: pytest.FixtureRequest) -> str:
    return str(store.get_experiment_by_name(request.node.name).experiment_id)


def paths(trace: Any) -> list[str]:
    """The names from a trace's outermost span to each of its innermost ones."""
    by_id = {span.span_id: span for span in trace.data.spans}
    parents = {span.parent_id for span in trace.data.spans}
    found = []
    for span in trace.data.spans:
        if span.span_id in parents:
            continue
        names = [span.name]
        while span.parent_id is not None:
            span = by_id[span.parent_id]
            names.append(span.name)
        found.append(" > ".join(reversed(names)))
    return sorted(found)


async def train(client: ScriptedClient, samples: int, branches: int) -> None:
    prompts = [
        cog.Parameter(f"Branch {number}: {{text}}", role=f"prompt {number}") for number in range(branches)
    ]
    optimizer = afnio.optim.TGD(prompts, client, model="optimizer")
    async with afnio.scope(name="step 1"):
        texts = afnio.Variable([f"text {number:03}" for number in range(samples)], role="text")
        replies = [
            cog.functional.chat_completion(
                client, [{"role": "user", "content": [prompt]}], {"text": texts}, model="m"
            )
            for prompt in prompts
        ]
        _, explanation = await cog.functional.exact_match_evaluator(
            cog.functional.sum(replies), ["x"] * samples
        )
        await explanation.backward()
        await optimizer.step()


@pytest.mark.parametrize(("samples", "branches"), [(4, 5), pytest.param(10, 20, marks=pytest.mark.nightly)])
async def test_a_run_of_many_concurrent_calls(
    store: Any, samples: int, branches: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Config, metrics and texts of the run; a trace for each sample with its own texts and right parents."""
    together = Together(samples * branches)

    async def student(request: ChatRequest) -> str:
        await together()
        return str(request.messages[-1]["content"])[-3:]

    script = play(
        student=student,
        critic=comment("better"),
        optimizer={"value": "New: {text}"},
    )
    client = ScriptedClient(script, limits=afnio.Limits(max_in_flight=400))
    afnio.set_backward_model_client(client, completion_args={"model": "critic"})
    sink = MlflowSink(store.tracking_uri, content=True)
    config = {"lr": 3, "model": "m"}
    async with te.init("me", "emails", name="first", config=config, dir=tmp_path, sinks=[sink], resume=False):
        te.log("accuracy", 0.25)
        te.log("accuracy", 0.5)
        te.log("note", "be brief")
        await train(client, samples, branches)
    sink.close()  # the run waits 30 seconds for it, which a busy machine may exceed
    assert client.peak >= samples * branches
    number = experiment(store, request)
    (run,) = store.search_runs([number])
    assert ("first", "FINISHED", sink.run_id) == (run.info.run_name, run.info.status, run.info.run_id)
    assert run.data.params == {"lr": "3", "model": "m"}
    history = [(m.step, m.value) for m in store.get_metric_history(run.info.run_id, "accuracy")]
    assert history == [(0, 0.25), (1, 0.5)]
    assert [artifact.path for artifact in store.list_artifacts(run.info.run_id)] == ["note-0.txt"]
    traces = store.search_traces(locations=[number], run_id=run.info.run_id, max_results=100)
    by_name = {trace.data.spans[0].name: trace for trace in traces}
    assert sorted(by_name, key=lambda n: (n != "step", n)) == [
        "step",
        *sorted(f"sample {lane}" for lane in range(samples)),
    ]
    assert len(traces) == samples + 1
    for lane in range(samples):
        trace = by_name[f"sample {lane}"]
        assert trace.info.tags["afnio.scope"] == "run/step 1"
        assert {
            f"sample {lane} > ChatCompletion > chat m": 1,
            f"sample {lane} > ChatCompletion backward > chat critic": 1,
        }.keys() <= set(paths(trace))
        calls = [span for span in trace.data.spans if span.name == "chat m"]
        assert len({span.parent_id for span in calls}) == len(calls) == branches
        for span in calls:
            assert f"text {lane:03}" in json.dumps(span.inputs)
            assert f"{lane:03}" in json.dumps(span.outputs)
    assert paths(by_name["step"]) == ["step > chat optimizer"] * branches


def test_a_run_that_is_continued_goes_on_in_the_same_mlflow_run(
    store: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A failed run is FAILED there; going on, its metrics are added and it ends well."""
    with (
        pytest.raises(ZeroDivisionError),
        te.init("me", "emails", dir=tmp_path, sinks=[MlflowSink(store.tracking_uri)], resume=False) as run,
    ):
        te.log("loss", 1)
        raise ZeroDivisionError
    (found,) = store.search_runs([experiment(store, request)])
    assert found.info.status == "FAILED"
    with te.init("me", "emails", dir=tmp_path, sinks=[MlflowSink(store.tracking_uri)], resume=run.id):
        te.log("loss", 2, step=1)
    (found,) = store.search_runs([experiment(store, request)])
    assert (found.info.status, found.data.metrics["loss"]) == ("FINISHED", 2.0)


def test_a_store_that_is_out_of_reach_costs_a_warning(
    tmp_path: Path, store: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sink = MlflowSink("http://127.0.0.1:9")
    with te.init("me", "emails", dir=tmp_path, sinks=[sink], resume=False) as run:
        te.log("loss", 1)
    assert run.status == "COMPLETED"
    assert sum("MlflowSink has lost events" in record.message for record in caplog.records) == 1


async def test_without_a_run_the_calls_of_a_block(store: Any, request: pytest.FixtureRequest) -> None:
    """As a block the sink makes a run of its own; texts stay out unless they are wanted."""
    with MlflowSink(store.tracking_uri) as sink:
        await ScriptedClient("x").achat(messages=[{"role": "user", "content": "hi"}], model="m")
        await anyio.to_thread.run_sync(sink.flush)
    (trace,) = store.search_traces(locations=[experiment(store, request)])
    assert paths(trace) == ["chat > chat m"]
    assert list({json.dumps(span.inputs) if span.inputs else None for span in trace.data.spans}) == [None]
    assert Counter({"CHAIN": 1, "CHAT_MODEL": 1}) == Counter(s.span_type for s in trace.data.spans)
