"""Exports of other tools become rows: inputs, what a model said, and only from people what it should have said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import afnio
from afnio import traces


@pytest.fixture
def export(tmp_path: Path) -> Any:
    """Write records to a file of JSON lines, or a document to one of JSON, and return its path."""

    def written(*records: Any, indent: int | None = None) -> Path:
        path = tmp_path / "export.jsonl"
        path.write_text("\n".join(json.dumps(one, indent=indent) for one in records))
        return path

    return written


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


SYSTEM = said("system", "You are a bank.")
CHAT = [SYSTEM, said("user", "Where is my card?"), said("assistant", "Under way.")]


# OpenAI


def test_a_chat_is_a_question_and_what_the_model_said(export: Any) -> None:
    """The answer isn't what is expected; only the caller can say that it is."""
    path = export({"messages": CHAT})
    row = {"inputs": "Where is my card?", "observed": "Under way.", "id": "1"}
    assert traces.read(path) == ([row], {})
    assert traces.read(path, checked=True) == ([row | {"expected": "Under way."}], {})


def test_a_conversation_stays_a_list_of_messages(export: Any) -> None:
    """Without its system prompt, up to the answer; so does a message with more than text."""
    picture = said("user", [{"type": "image_url", "image_url": {"url": "data:"}}])
    texts = said("user", [{"type": "text", "text": "Two"}, {"type": "text", "text": "parts"}])
    rows, _ = traces.read(
        export({"messages": [*CHAT, said("user", "When?"), said("assistant", "Soon.")]},
               {"messages": [picture]}, {"messages": [texts]})
    )  # fmt: skip
    assert [row["inputs"] for row in rows] == [[*CHAT[1:], said("user", "When?")], [picture], "Two\nparts"]
    assert [row["observed"] for row in rows] == ["Soon.", None, None]


def test_requests_with_their_responses(export: Any) -> None:
    """As a proxy logs them, as the batch API has them, and as a completion is stored."""
    answer = {"choices": [{"message": said("assistant", "Under way.")}]}
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "track", "arguments": "{}"}}],
    }
    rows, left_out = traces.read(
        export(
            {"id": "a", "request": {"model": "m", "messages": CHAT[:2]}, "response": answer},
            {"custom_id": "b", "body": {"messages": [said("user", "b")]}, "response": {"body": answer}},
            {"id": "c", "messages": [said("user", "c")], "choices": [{"message": call}]},
            {"id": "d", "object": "chat.completion", **answer},
        )
    )
    assert [(row["id"], row["inputs"], row["observed"]) for row in rows] == [
        ("a", "Where is my card?", "Under way."), ("b", "b", "Under way."), ("c", "c", call),
    ]  # fmt: skip
    assert left_out == {"it has no input": 1}


# OpenTelemetry


def span(name: str, parent: str = "", events: Any = (), **attributes: Any) -> dict[str, Any]:
    kinds = {str: "stringValue", int: "intValue"}
    return {
        "spanId": name, "parentSpanId": parent, "events": list(events),
        "attributes": [
            {"key": key.replace("__", "."), "value": {kinds[type(value)]: value}} for key, value in attributes.items()
        ],
    }  # fmt: skip


def otlp(*spans: Any) -> dict[str, Any]:
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": list(spans)}]}]}


def parts(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def test_spans_of_generative_ai(export: Any) -> None:
    """The outermost span with an input is the row; steps, tools and spans of other kinds are counted."""
    asked, answered = json.dumps([parts("user", "Hi")]), json.dumps([parts("assistant", "Hello")])
    chat = {
        "gen_ai__operation__name": "chat",
        "gen_ai__input__messages": asked,
        "gen_ai__output__messages": answered,
    }
    rows, left_out = traces.read(
        export(
            otlp(
                span("http", http__method="GET"),
                span("agent", "http", **chat | {"gen_ai__operation__name": "invoke_agent"}),
                span(
                    "call",
                    "agent",
                    **chat | {"gen_ai__input__messages": json.dumps([parts("user", "inner")])},
                ),
                span("tool", "agent", gen_ai__operation__name="execute_tool"),
            ),
            otlp(span("again", **chat)),
        )
    )
    assert rows == [{"inputs": "Hi", "observed": "Hello", "id": "agent"}]
    assert left_out == {
        "it has no input": 1, "it is a step of another record": 1, "it is a span of kind tool": 1,
        "its input is another record's": 1,
    }  # fmt: skip


def test_spans_of_earlier_conventions(export: Any) -> None:
    """Numbered attributes, and content in events."""
    numbered = {
        "gen_ai__prompt__0__role": "system", "gen_ai__prompt__0__content": "You are a bank.",
        "gen_ai__prompt__1__role": "user", "gen_ai__prompt__1__content": "Hi",
        "gen_ai__completion__0__role": "assistant", "gen_ai__completion__0__content": "Hello",
    }  # fmt: skip
    event = {
        "name": "gen_ai.content.prompt",
        "attributes": [{"key": "gen_ai.prompt", "value": {"stringValue": json.dumps(CHAT[:2])}}],
    }
    rows, _ = traces.read(export(otlp(span("a", **numbered)), otlp(span("b", events=[event]))))
    assert [(row["inputs"], row["observed"]) for row in rows] == [
        ("Hi", "Hello"),
        ("Where is my card?", None),
    ]


# Langfuse


def test_a_trace_of_langfuse(export: Any) -> None:
    """Its observations are its steps; a correction is what a person wrote."""
    scores = [
        {"name": "quality", "dataType": "NUMERIC", "value": 0.2},
        {
            "name": "output",
            "dataType": "CORRECTION",
            "longStringValue": "It arrives on Monday.",
            "observationId": None,
        },
    ]
    observations = [
        {"id": "g", "type": "GENERATION", "input": CHAT[:2], "output": said("assistant", "Under way.")},
        {"id": "t", "type": "TOOL", "input": {"card": 1}, "output": "{}"},
    ]
    trace = {"id": "t1", "input": {"message": "Where is my card?", "user": "ann"}, "output": "Under way.",
             "scores": scores}  # fmt: skip
    row = {
        "inputs": "Where is my card?",
        "observed": "Under way.",
        "id": "t1",
        "expected": "It arrives on Monday.",
    }
    counted = {"it is a step of another record": 1, "it is a span of kind tool": 1}
    for record in (trace | {"observations": observations}, {"trace": trace, "observations": observations}):
        assert traces.read(export(record), field="message") == ([row], counted)
    whole, _ = traces.read(export(trace))
    assert whole[0]["inputs"] == trace["input"]
    assert traces.read(export(trace), field="text") == ([], {"its input has no 'text'": 1})
    both = {"id": "t2", "input": {"messages": CHAT, "question": "Hi"}, "output": "Hello"}
    assert traces.read(export(both), field="question")[0] == [
        {"inputs": "Hi", "observed": "Hello", "id": "t2"}
    ]


def test_observations_and_items_of_langfuse(export: Any) -> None:
    """A page of the API, over several lines; a dataset's expected output is a person's."""
    page = {
        "data": [
            {
                "id": "a",
                "traceId": "t",
                "type": "GENERATION",
                "input": json.dumps(CHAT[:2]),
                "output": '"Under way."',
            },
            {"id": "b", "traceId": "t", "parentObservationId": "a", "type": "SPAN", "input": "inner"},
            {"id": "c", "traceId": "t", "type": "EVALUATOR", "input": "judge this"},
            {
                "id": "d",
                "traceId": "t",
                "parentObservationId": "c",
                "type": "GENERATION",
                "input": "grade it",
            },
        ],
        "meta": {"page": 1},
    }
    rows, left_out = traces.read(export(page, indent=1))
    assert rows == [{"inputs": "Where is my card?", "observed": "Under way.", "id": "a"}]
    assert left_out == {"it is a step of another record": 2, "it is a span of kind evaluator": 1}
    items = export({"id": "i", "input": {"question": "Hi"}, "expectedOutput": "Hello", "metadata": None})
    assert traces.read(items, field="question")[0] == [
        {"inputs": "Hi", "observed": None, "id": "i", "expected": "Hello"}
    ]


# Phoenix


def test_spans_of_phoenix(export: Any) -> None:
    """As its REST API has them, and as a data frame's JSON does."""
    llm = {
        "llm.input_messages.0.message.role": "user", "llm.input_messages.0.message.content": "Hi",
        "llm.output_messages.0.message.role": "assistant", "llm.output_messages.0.message.content": "Hello",
        "input.value": "{}", "input.mime_type": "application/json",
    }  # fmt: skip
    chain = {
        "input.value": '{"message": "Where?"}',
        "input.mime_type": "application/json",
        "output.value": "Here.",
    }
    page = {
        "data": [
            {"id": "1", "context": {"trace_id": "t", "span_id": "a"}, "span_kind": "LLM", "parent_id": None,
             "attributes": llm},
            {"id": "2", "context": {"trace_id": "t", "span_id": "b"}, "span_kind": "RETRIEVER", "attributes": chain},
        ],
    }  # fmt: skip
    rows, left_out = traces.read(export(page))
    assert rows == [{"inputs": "Hi", "observed": "Hello", "id": "a"}]
    assert left_out == {"it is a span of kind retriever": 1}
    frame = [
        {"name": "run", "span_kind": "CHAIN", "parent_id": None, "context.span_id": "c",
         **{f"attributes.{key}": value for key, value in chain.items()}},
        {"name": "call", "span_kind": "LLM", "parent_id": "c", "context.span_id": "d",
         "attributes.llm.input_messages": [{"message.role": "user", "message.content": "inner"}]},
    ]  # fmt: skip
    assert traces.read(export(frame), field="message") == (
        [{"inputs": "Where?", "observed": "Here.", "id": "c"}], {"it is a step of another record": 1},
    )  # fmt: skip


# Any


def test_a_label_wins_over_an_equal_input_without_one(export: Any) -> None:
    rows, left_out = traces.read(
        export(
            {"id": "a", "input": "Hi", "output": "x"}, {"id": "b", "input": "Hi", "expectedOutput": "Hello"}
        )
    )
    assert rows == [{"inputs": "Hi", "observed": None, "id": "b", "expected": "Hello"}]
    assert left_out == {"its input is another record's": 1}


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    """A torn line, a number, half a character, bytes that are no UTF-8, and depth without end."""
    path = tmp_path / "log.jsonl"
    deep = '{"input": "x", "output": ' + "[" * 100_000 + "]" * 100_000 + "}"
    far = json.dumps({"attributes": {"llm.input_messages." + "9" * 5_000 + ".message.role": "user"}})
    lines = ['{"input": "torn', "7", far, '{"input": "\\ud800"}', deep, '{"input": "good"}', ""]
    path.write_bytes("\n".join(lines).encode() + b'{"input": "\xff"}')
    rows, left_out = traces.read(path)
    assert [row["inputs"] for row in rows] == ["good"]
    assert left_out == {
        "it is no JSON": 2,
        "UTF-8 can't express its text": 2,
        "it is no JSON object": 1,
        "it has no input": 1,
    }


def test_another_form_is_one_sentence(export: Any, tmp_path: Path) -> None:
    for record, shown in (({"question": "Hi", "answer": "x"}, "answer, question"), ([], "nothing")):
        with pytest.raises(ValueError, match=f"must be JSON or JSON lines of OpenAI chats, .* .got {shown}."):
            traces.read(export(record))
    with pytest.raises(FileNotFoundError):
        traces.read(tmp_path / "missing")


KEYS = (
    "id", "input", "output", "messages", "role", "content", "attributes", "context", "span_kind", "scores", "key",
    "observations", "resourceSpans", "scopeSpans", "spans", "value", "data", "request", "response", "choices",
    "message", "parts", "trace", "type",
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(JSON, min_size=1, max_size=3))
def test_no_export_breaks_the_reader(export: Any, records: list[Any]) -> None:
    """Whatever stands where."""
    path = export(*records, {"input": "one that is known"})
    rows, left_out = traces.read(path)
    assert all(row["inputs"] not in (None, "", [], {}) for row in rows)
    assert all(isinstance(count, int) and count > 0 for count in left_out.values())


def test_rows_are_those_of_an_evaluation(export: Any, tmp_path: Path) -> None:
    """A judge reads inputs and output; no label is needed."""

    async def agent(text: str, system: str) -> str:
        return text.upper()

    rows, _ = traces.read(export(*({"messages": [said("user", f"row {n}")]} for n in range(4))))
    result = afnio.evaluate(
        agent, rows, lambda output, inputs: output == inputs.upper(), prompts={"system": "x"}, dir=tmp_path
    )
    assert result.score.mean == 1.0
