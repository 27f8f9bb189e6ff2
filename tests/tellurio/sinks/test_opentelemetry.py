"""Spans read back from an in-memory exporter: parents, times, attributes, under many calls side by side."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

pytest.importorskip("opentelemetry.sdk", reason="afnio[opentelemetry] is not installed")

from kit.roles import comment, play
from kit.together import Together
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import afnio
import afnio.cognitive as cog
from afnio.errors import TransientModelError
from afnio.models import ChatRequest, ChatResponse, ToolCall
from afnio.models.openai import AsyncOpenAI
from afnio.tellurio.sinks.opentelemetry import OpenTelemetrySink
from afnio.testing import Provider, ScriptedClient


class Spans:
    """What an exporter was given, by span id."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def path(self, span: ReadableSpan) -> str:
        """The names from the outermost span to this one."""
        by_id = {s.context.span_id: s for s in self.all}
        names = [span.name]
        while span.parent is not None and span.parent.span_id in by_id:
            span = by_id[span.parent.span_id]
            names.append(span.name)
        return " > ".join(reversed(names))

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name.startswith(start)]


@pytest.fixture
def spans() -> Spans:
    return Spans()


class Agent(cog.Module):
    """Two stages, so that a sample has two forward nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.draft = cog.Parameter("Draft: {text}", role="draft prompt")
        self.final = cog.Parameter("Final: {text}", role="final prompt")

    def forward(self, client: Any, text: Any) -> cog.Completion:
        draft = cog.functional.chat_completion(
            client, _user(self.draft), {"text": text}, model="m", temperature=0.5
        )
        return cog.functional.chat_completion(client, _user(self.final), {"text": draft}, model="m")


def _user(prompt: afnio.Variable) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [prompt]}]


async def test_a_step_under_two_hundred_concurrent_calls(spans: Spans) -> None:
    """run → step → sample → node → call for 100 samples in each of two steps side by side."""
    together = Together(200)

    async def student(request: ChatRequest) -> str:
        await together()
        return str(request.messages[-1]["content"])[-4:]

    play_all = play(
        student=student,
        critic=comment("better"),
        optimizer={"value": "New: {text}"},
    )
    client = ScriptedClient(play_all, limits=afnio.Limits(max_in_flight=400))
    afnio.set_backward_model_client(client, completion_args={"model": "critic"})

    async def step(number: int) -> None:
        agent = Agent()
        optimizer = afnio.optim.TGD(agent.parameters(), client, model="optimizer")
        async with afnio.scope(name=f"step {number}"):
            pred = agent(client, [f"{number}-{lane:02}" for lane in range(100)])
            _, explanation = await cog.functional.exact_match_evaluator(pred, ["x"] * 100)
            await explanation.backward()
            await optimizer.step()

    with OpenTelemetrySink(spans.provider, content=True):
        async with afnio.scope(name="run", rooted=True), anyio.create_task_group() as tasks:
            tasks.start_soon(step, 1)
            tasks.start_soon(step, 2)
    assert client.peak >= 200
    paths = Counter(spans.path(span) for span in spans.named("chat"))
    expected = {"run > step 1 > step > chat optimizer": 2}
    for lane in range(100):
        sample = f"run > step 1 > sample {lane}"
        expected[f"{sample} > ChatCompletion > chat m"] = 2
        expected[f"{sample} > ChatCompletion backward > chat critic"] = 2
    assert {
        path.replace("step 1 ", f"step {number} ", 1): n for number in (1, 2) for path, n in expected.items()
    } == dict(paths)
    # Each call is under the sample whose text it carries.
    for span in spans.named("chat m"):
        step_name, sample = spans.path(span).split(" > ")[1:3]
        wanted = f"{step_name.split()[1]}-{int(sample.split()[1]):02}"
        assert wanted in span.attributes["gen_ai.input.messages"]
    asked = {span.context.span_id: span for span in spans.all}
    assert len(spans.named("chat")) == 802 + 2
    for span in spans.all:
        parent = asked.get(span.parent.span_id) if span.parent else None
        if parent is not None:
            assert span.start_time >= parent.start_time - 500_000_000
            assert span.end_time <= parent.end_time
    assert len({span.context.trace_id for span in spans.all}) == 1


async def test_attributes_of_a_call(spans: Spans) -> None:
    """The GenAI names; texts only where they are wanted; the score is the sample's."""
    client = ScriptedClient("good")
    messages = [{"role": "user", "content": [afnio.Variable("Rate {text}")]}]
    for content in (False, True):
        with OpenTelemetrySink(spans.provider, name="trial", content=content):
            pred = cog.functional.chat_completion(
                client, messages, {"text": ["a"]}, model="m", temperature=0.5, seed=3
            )
            await cog.functional.exact_match_evaluator(pred, ["good"])
    plain, told = spans.named("chat")
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "gen_ai.response.model": "m", "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": 2, "gen_ai.usage.output_tokens": 1, "gen_ai.response.finish_reasons": ("stop",),
        "afnio.purpose": "forward", "afnio.lane": 0, "afnio.attempts": 1,
    }  # fmt: skip
    assert expected.items() <= dict(plain.attributes).items()
    assert "gen_ai.input.messages" not in plain.attributes
    assert json.loads(told.attributes["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Rate a"}]}
    ]
    sample = spans.named("sample")[0]
    assert (sample.attributes["afnio.score"], sample.attributes["afnio.success"]) == (1.0, True)
    assert {span.name for span in spans.all if span.parent is None} == {"trial"}


async def test_retries_and_failures(spans: Spans) -> None:
    """Each attempt of a call that was sent twice has a span, but only the call is a client's."""
    client = ScriptedClient([TransientModelError("busy"), "ok", ValueError("broken")])
    ask = {"messages": [{"role": "user", "content": "hi"}], "model": "m"}
    with OpenTelemetrySink(spans.provider):
        await client.achat(**ask)
        with pytest.raises(ValueError, match="broken"):
            await client.achat(**ask)
    first, second = spans.named("chat m")
    assert (first.status.status_code, second.status.status_code) == (StatusCode.UNSET, StatusCode.ERROR)
    assert (second.attributes["error.type"], first.attributes["afnio.attempts"]) == ("ValueError", 2)
    attempts = [(s.name, s.status.description) for s in spans.named("attempt")]
    assert attempts == [("attempt 1", "busy"), ("attempt 2", None)]
    clients = [span.name for span in spans.all if span.kind is SpanKind.CLIENT]
    assert clients == ["chat m", "chat m"]


async def test_a_replayed_call_uses_nothing(spans: Spans, tmp_path: Path) -> None:
    """A dashboard that sums tokens and counts calls shows the same after a resume."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    for _ in range(2):
        with OpenTelemetrySink(spans.provider, meter_provider=meters):
            async with afnio.journal(tmp_path / "calls"):
                await ScriptedClient("one two").achat(messages=[{"role": "user", "content": "hi"}], model="m")
    sent, replayed = (*spans.named("chat m"), *spans.named("fetch_response m"))
    tokens = [span.attributes.get("gen_ai.usage.output_tokens", 0) for span in spans.all]
    assert sum(tokens) == sent.attributes["gen_ai.usage.output_tokens"] == 2
    assert (sent.kind, replayed.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert replayed.attributes["afnio.replayed"] is True
    assert replayed.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    (duration,) = points(reader, "gen_ai.client.inference.duration")
    assert duration.count == 1


def points(reader: InMemoryMetricReader, name: str) -> list[Any]:
    """Return the data points of a metric."""
    found = []
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else ():
        for scope in resource.scope_metrics:
            found += [point for one in scope.metrics if one.name == name for point in one.data.data_points]
    return found


async def test_metrics_of_calls() -> None:
    """Durations, tokens as counters and as sizes, by model and server; failures by their type."""
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    client = ScriptedClient(["one two", "three", ValueError("broken")])
    with OpenTelemetrySink(TracerProvider(shutdown_on_exit=False), meter_provider=meters):
        replies = [await client.achat(messages=SAY, model="m") for _ in range(2)]
        with pytest.raises(ValueError, match="broken"):
            await client.achat(messages=[{"role": "user", "content": "hi"}], model="m")
    good, failed = sorted(points(reader, "gen_ai.client.inference.duration"), key=lambda point: -point.count)
    assert (good.count, failed.count) == (2, 1)
    about = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "gen_ai.response.model": "m", "server.address": "model",
    }  # fmt: skip
    assert dict(good.attributes) == about
    assert failed.attributes["error.type"] == "ValueError"
    (spent,) = points(reader, "gen_ai.client.inference.usage.output_tokens")
    assert spent.value == sum(reply.usage.completion_tokens for reply in replies)
    (sizes,) = points(reader, "gen_ai.client.inference.operation.output_tokens")
    assert (sizes.count, sizes.sum) == (2, spent.value)
    assert points(reader, "gen_ai.client.inference.usage.cache_write.input_tokens") == []


async def test_tool_calls_and_their_results(spans: Spans) -> None:
    """They are parts of the messages, with arguments as JSON; the tools are there with the texts."""
    call = ToolCall(id="c1", name="weather", arguments='{"city": "Paris"}')
    client = ScriptedClient(ChatResponse(content=None, tool_calls=(call,), finish_reason="tool_calls"))
    asked = {"id": "c0", "type": "function", "function": {"name": "now", "arguments": "{broken"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "tool_call_id": "c0", "content": "noon"},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    for content in (False, True):
        with OpenTelemetrySink(spans.provider, content=content):
            await client.achat(messages=messages, model="m", tools=tools)
    without, span = spans.named("chat m")
    assert not {"gen_ai.tool.definitions", "gen_ai.output.messages"} & {*without.attributes}
    part = {"type": "tool_call", "id": "c1", "name": "weather", "arguments": {"city": "Paris"}}
    answer = {"role": "assistant", "parts": [part], "finish_reason": "tool_calls"}
    assert texts(span, "gen_ai.output.messages") == [answer]
    assert texts(span, "gen_ai.input.messages")[1:] == [
        {
            "role": "assistant",
            "parts": [{"type": "tool_call", "id": "c0", "name": "now", "arguments": "{broken"}],
        },
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c0", "response": "noon"}]},
    ]
    assert texts(span, "gen_ai.tool.definitions") == [
        {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    ]


def texts(span: ReadableSpan, name: str) -> Any:
    """Return an attribute that holds JSON."""
    return json.loads(span.attributes[name])


ANTHROPIC = {
    "id": "msg_1", "model": "claude-1", "stop_reason": "end_turn", "content": [{"type": "text", "text": "Hi"}],
    "usage": {"input_tokens": 5, "output_tokens": 2, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 1},
}  # fmt: skip
GEMINI = {
    "responseId": "r-1", "modelVersion": "gemini-1",
    "candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2},
}  # fmt: skip
OPENAI = {
    "id": "chatcmpl-1", "model": "m-1", "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}  # fmt: skip
SAY = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("url", "body", "reply", "wanted"),
    [
        (
            "https://api.anthropic.com/v1/messages",
            {"model": "m", "max_tokens": 9, "messages": SAY},
            ANTHROPIC,
            ("anthropic", "chat", "msg_1", 443, 13, 7),
        ),
        (
            "http://proxy.test:81/v1/messages",
            {"model": "m", "max_tokens": 9, "messages": SAY},
            ANTHROPIC,
            ("anthropic", "chat", "msg_1", 81, 13, 7),
        ),
        (
            "https://generativelanguage.googleapis.com/v1beta/models/m:generateContent",
            {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
            GEMINI,
            ("gcp.gemini", "generate_content", "r-1", 443, 3, None),
        ),
        (
            "https://api.mistral.ai/v1/chat/completions",
            {"model": "m", "messages": SAY},
            OPENAI,
            ("mistral_ai", "chat", "chatcmpl-1", 443, 3, None),
        ),
    ],
)
async def test_the_provider_of_a_bridged_call(
    spans: Spans, url: str, body: dict[str, Any], reply: dict[str, Any], wanted: tuple[Any, ...]
) -> None:
    """By its host, or by the API that it speaks; with the reply's id and what was written to a cache."""
    inner = httpx.MockTransport(lambda request: httpx.Response(200, json=reply))
    with OpenTelemetrySink(spans.provider):
        async with httpx.AsyncClient(transport=afnio.bridge.transport("httpx", inner)) as client:
            assert (await client.post(url, json=body, headers={"anthropic-version": "1"})).json() == reply
    (span,) = (span for span in spans.all if "gen_ai.provider.name" in span.attributes)
    names = (
        "gen_ai.provider.name", "gen_ai.operation.name", "gen_ai.response.id", "server.port",
        "gen_ai.usage.input_tokens", "gen_ai.usage.cache_write.input_tokens",
    )  # fmt: skip
    assert tuple(span.attributes.get(name) for name in names) == wanted
    assert span.name == f"{wanted[1]} m"


def test_the_id_of_a_reply(spans: Spans, tmp_path: Path) -> None:
    """The provider's, also when the journal answers."""
    ids = []
    with Provider.process() as provider:
        for _ in range(2):
            client = AsyncOpenAI(base_url=provider.base_url, api_key="k")
            with OpenTelemetrySink(spans.provider), afnio.journal(tmp_path / "calls"):
                ids.append(client.chat(messages=SAY, model="m").id)
    (sent,), (replayed,) = spans.named("chat m"), spans.named("fetch_response m")
    assert ids[0].startswith("chatcmpl-")
    assert [span.attributes["gen_ai.response.id"] for span in (sent, replayed)] == ids == [ids[0]] * 2


async def test_scores_are_evaluation_results(spans: Spans) -> None:
    """Events of the evaluator's span, or log records in its context; the explanation only with the texts."""
    exporter, logs = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    logs.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    for options in ({}, {"content": True}, {"logger_provider": logs}):
        with OpenTelemetrySink(spans.provider, **options):  # type: ignore[arg-type]
            await cog.functional.exact_match_evaluator(afnio.Variable(["good", "bad"]), ["good", "good"])
    evaluators = spans.named("ExactMatch")
    events = [event for span in evaluators for event in span.events]
    assert {event.name for event in events} == {"gen_ai.evaluation.result"}
    # Spans end in reverse order.
    bad, good = (dict(event.attributes or {}) for event in events[:2])
    named = {"gen_ai.evaluation.name": "ExactMatch"}
    assert good == {**named, "gen_ai.evaluation.score.label": "pass", "gen_ai.evaluation.score.value": 1.0}
    assert bad == {**named, "gen_ai.evaluation.score.label": "fail", "gen_ai.evaluation.score.value": 0.0}
    explained = [
        dict(event.attributes or {}).get("gen_ai.evaluation.explanation", "") for event in events[2:]
    ]
    assert all(explained)
    records = [one.log_record for one in exporter.get_finished_logs()]
    assert [record.event_name for record in records] == ["gen_ai.evaluation.result"] * 2
    assert [dict(record.attributes or {}) for record in records] == [good, bad]
    assert [record.span_id for record in records] == [span.context.span_id for span in evaluators[:3:-1]]


async def test_nested_launches_are_under_their_node(spans: Spans) -> None:
    """What a callable of a node launches belongs to that node's lane; batches of one scope are kept apart."""
    client = ScriptedClient("x")

    async def ask(text: str) -> str:
        return (await client.achat(messages=[{"role": "user", "content": text}], model="m")).content or ""

    with OpenTelemetrySink(spans.provider):
        for texts in (["a", "b"], ["c", "d"]):
            await afnio.Variable(texts).map(ask)
    expected = [f"run > sample {lane} > Map > chat m" for lane in (0, 0, 1, 1)]
    assert sorted(spans.path(span) for span in spans.named("chat m")) == expected
    assert len(spans.named("sample")) == 4


async def test_spans_end_with_their_scope_and_are_children_of_the_callers(spans: Spans) -> None:
    """Before the sink closes; under the span that is current where the sink is made."""
    ended = threading.Event()

    class Watch(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            if span.name == "part":
                ended.set()

    spans.provider.add_span_processor(Watch())
    tracer = spans.provider.get_tracer("user")
    with tracer.start_as_current_span("request"), OpenTelemetrySink(spans.provider):
        async with afnio.scope(name="part"):
            await ScriptedClient("x").achat(messages=[{"role": "user", "content": "hi"}], model="m")
        assert await anyio.to_thread.run_sync(ended.wait, 10)
        assert spans.named("run") == []
        assert len(spans.named("part")) == 1
    assert spans.path(spans.named("chat m")[0]) == "request > run > part > chat > chat m"


def test_memory_is_bounded(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scopes the oldest spans of samples end when there are many."""
    from afnio.tellurio.sinks import opentelemetry

    monkeypatch.setattr(opentelemetry, "KEPT_OPEN", 10)
    with OpenTelemetrySink(spans.provider) as sink:
        client, messages = ScriptedClient("x"), [{"role": "user", "content": [afnio.Variable("{text}")]}]
        cog.functional.chat_completion(
            client, messages, {"text": [f"{n}" for n in range(50)]}, model="m"
        ).data
        sink.flush()
        assert 80 < len(spans.named("sample")) + len(spans.named("ChatCompletion")) < 100
    assert len({spans.path(span) for span in spans.named("chat m")}) == 50
