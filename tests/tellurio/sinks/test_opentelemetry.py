"""Spans read back from an in-memory exporter: parents, times, attributes, under many calls side by side."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

import anyio
import pytest

pytest.importorskip("opentelemetry.sdk", reason="afnio[opentelemetry] is not installed")

from kit.roles import comment, play
from kit.together import Together
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import afnio
import afnio.cognitive as cog
from afnio.errors import TransientModelError
from afnio.models import ChatRequest
from afnio.tellurio.sinks.opentelemetry import OpenTelemetrySink
from afnio.testing import ScriptedClient


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
        draft = cog.chat_completion(client, _user(self.draft), {"text": text}, model="m", temperature=0.5)
        return cog.chat_completion(client, _user(self.final), {"text": draft}, model="m")


def _user(prompt: afnio.Variable) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [prompt]}]


async def test_a_step_under_two_hundred_concurrent_calls(spans: Spans) -> None:
    """run → step → sample → node → call → attempt for 100 samples in each of two steps side by side."""
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
            _, explanation = await cog.exact_match_evaluator(pred, ["x"] * 100)
            await explanation.backward()
            await optimizer.step()

    with OpenTelemetrySink(spans.provider, content=True):
        async with afnio.scope(name="run", rooted=True), anyio.create_task_group() as tasks:
            tasks.start_soon(step, 1)
            tasks.start_soon(step, 2)
    assert client.peak >= 200
    paths = Counter(spans.path(span) for span in spans.named("attempt"))
    expected = {"run > step 1 > step > chat optimizer > attempt 1": 2}
    for lane in range(100):
        sample = f"run > step 1 > sample {lane}"
        expected[f"{sample} > ChatCompletion > chat m > attempt 1"] = 2
        expected[f"{sample} > ChatCompletion backward > chat critic > attempt 1"] = 2
    assert {
        path.replace("step 1 ", f"step {number} ", 1): n for number in (1, 2) for path, n in expected.items()
    } == dict(paths)
    # Each call is under the sample whose text it carries.
    for span in spans.named("chat m"):
        step_name, sample = spans.path(span).split(" > ")[1:3]
        wanted = f"{step_name.split()[1]}-{int(sample.split()[1]):02}"
        assert wanted in span.attributes["gen_ai.input.messages"]
    asked = {span.context.span_id: span for span in spans.all}
    assert 802 + 2 == len(spans.named("chat"))
    for span in spans.all:
        parent = asked.get(span.parent.span_id) if span.parent else None
        if parent is not None:
            assert span.start_time >= parent.start_time - 50_000_000
            assert span.end_time <= parent.end_time
    assert 1 == len({span.context.trace_id for span in spans.all})


async def test_attributes_of_a_call(spans: Spans) -> None:
    """The GenAI names; texts only where they are wanted; the score is the sample's."""
    client = ScriptedClient("good")
    messages = [{"role": "user", "content": [afnio.Variable("Rate {text}")]}]
    for content in (False, True):
        with OpenTelemetrySink(spans.provider, name="trial", content=content):
            pred = cog.chat_completion(client, messages, {"text": ["a"]}, model="m", temperature=0.5, seed=3)
            await cog.exact_match_evaluator(pred, ["good"])
    plain, told = spans.named("chat")
    expected = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "m",
        "gen_ai.response.model": "m", "gen_ai.request.temperature": 0.5, "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": 2, "gen_ai.usage.output_tokens": 1, "gen_ai.response.finish_reasons": ("stop",),
        "afnio.purpose": "forward", "afnio.lane": 0, "afnio.attempts": 1,
    }  # fmt: skip
    assert expected.items() <= dict(plain.attributes).items()
    assert "gen_ai.input.messages" not in plain.attributes
    assert [{"role": "user", "parts": [{"type": "text", "content": "Rate a"}]}] == json.loads(
        told.attributes["gen_ai.input.messages"]
    )
    sample = spans.named("sample")[0]
    assert (1.0, True) == (sample.attributes["afnio.score"], sample.attributes["afnio.success"])
    assert {"trial"} == {span.name for span in spans.all if span.parent is None}


async def test_retries_and_failures(spans: Spans) -> None:
    """An attempt each, with its error; the call that failed for good is an error too."""
    client = ScriptedClient([TransientModelError("busy"), "ok", ValueError("broken")])
    ask = {"messages": [{"role": "user", "content": "hi"}], "model": "m"}
    with OpenTelemetrySink(spans.provider):
        await client.achat(**ask)
        with pytest.raises(ValueError, match="broken"):
            await client.achat(**ask)
    first, second = spans.named("chat m")
    assert (StatusCode.UNSET, StatusCode.ERROR) == (first.status.status_code, second.status.status_code)
    assert ("ValueError", 2) == (second.attributes["error.type"], first.attributes["afnio.attempts"])
    attempts = [(s.name, s.status.description) for s in spans.named("attempt")]
    assert [("attempt 1", "busy"), ("attempt 2", None), ("attempt 1", "ValueError: broken")] == attempts


async def test_nested_launches_are_under_their_node(spans: Spans) -> None:
    """What a callable of a node launches belongs to that node's lane; batches of one scope are kept apart."""
    client = ScriptedClient("x")

    async def ask(text: str) -> str:
        return (await client.achat(messages=[{"role": "user", "content": text}], model="m")).content or ""

    with OpenTelemetrySink(spans.provider):
        for texts in (["a", "b"], ["c", "d"]):
            await afnio.Variable(texts).map(ask)
    expected = [f"run > sample {lane} > Map > chat > chat m" for lane in (0, 0, 1, 1)]
    assert expected == sorted(spans.path(span) for span in spans.named("chat m"))
    assert 4 == len(spans.named("sample"))


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
        assert [] == spans.named("run")
        assert 1 == len(spans.named("part"))
    assert "request > run > part > chat > chat m" == spans.path(spans.named("chat m")[0])


def test_memory_is_bounded(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scopes the oldest spans of samples end when there are many."""
    from afnio.tellurio.sinks import opentelemetry

    monkeypatch.setattr(opentelemetry, "KEPT_OPEN", 10)
    with OpenTelemetrySink(spans.provider) as sink:
        client, messages = ScriptedClient("x"), [{"role": "user", "content": [afnio.Variable("{text}")]}]
        cog.chat_completion(client, messages, {"text": [f"{n}" for n in range(50)]}, model="m").data
        sink.flush()
        assert 80 < len(spans.named("sample")) + len(spans.named("ChatCompletion")) < 100
    assert 50 == len({spans.path(span) for span in spans.named("chat m")})
