"""Traces: what an app was asked, read from an export, as rows for `afnio.evaluate` and `afnio.optimize`.

    rows, left_out = traces.read("export.jsonl")

Most apps have no labelled data, but a log of real inputs. A row has the inputs, and what the model said as `observed`.
That is never `expected`: a model must not be trained to repeat its own mistakes. Only what people wrote is `expected`,
namely Langfuse's corrections and dataset items, and a chat file that you vouch for with `checked=True`.

One input is one row. Of nested spans the outermost with an input counts: those inside of it are its steps. What is left
out is counted by reason, never dropped in silence.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

__all__ = ["read"]


def read(
    path: str | os.PathLike[str], *, field: str | None = None, checked: bool = False
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return the rows of an export, and how many records were left out, by reason.

    A row is a dict with "inputs", "observed" (what the model said, or None), "id", and "expected" if a person wrote
    what it should have said. The inputs are a text if the user wrote one message; a conversation is the list of its
    messages without system prompts, up to the answer; anything else is as it was recorded.

    | export | of |
    |---|---|
    | OpenAI | chats as JSON lines: `{"messages": …}`, requests with their responses, stored completions |
    | OpenTelemetry | spans with `gen_ai.*` attributes, as JSON or JSON lines of OTLP |
    | Langfuse | traces, observations and dataset items, as JSON or JSON lines |
    | Phoenix | spans, as its REST API or a data frame's `to_json` has them |

    Args:
        path: a file of JSON, or of JSON lines.
        field: the key of the input, if the app was called with a dict such as `{"message": "…", "user": "…"}`.
        checked: people wrote or checked the last answer of each chat in this file, as for fine-tuning.

    Raises:
        ValueError: if there is no record of a known form.
        OSError: if the file can't be read.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
    ...     _ = file.write('{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}')
    ...     file.flush()
    ...     read(file.name)
    ([{'inputs': 'Hi', 'observed': 'Yes', 'id': '1'}], {})
    """
    left_out: Counter[str] = Counter()
    records: list[Recorded] = []
    keys: set[str] = set()
    for number, item in enumerate(_unwrapped(_items(Path(path), left_out)), 1):
        if not isinstance(item, dict):
            left_out["it is no JSON object"] += 1
            continue
        try:
            found = _records(item, str(number), checked)
        except RecursionError:
            left_out["it is nested too deeply"] += 1
            continue
        keys |= set() if found else {*map(str, item)}
        left_out["its form is unknown"] += not found
        records += found
    if not records:
        shown = ", ".join(sorted(keys)[:8]) or "nothing"
        raise ValueError(
            f"{path} must be JSON or JSON lines of OpenAI chats, OTLP, Langfuse or Phoenix (got {shown}); export it "
            "again, or make rows of it yourself"
        )
    rows = _rows(records, field, left_out)
    return rows, {reason: count for reason, count in left_out.most_common() if count}


@final
@dataclass(slots=True)
class Recorded:
    """A call of an app or of a model, as any export has it.

    Attributes:
        kind: of a span, in lower case, such as "tool"; "" for others.
        inputs: as recorded; None or empty without content.
        expected: what a person wrote, or None.
    """

    id: str
    parent: str | None = None
    kind: str = ""
    inputs: Any = None
    observed: Any = None
    expected: Any = None


def _rows(records: Sequence[Recorded], field: str | None, left_out: Counter[str]) -> list[dict[str, Any]]:
    by_id = {one.id: one for one in records}
    rows: dict[str, dict[str, Any]] = {}
    for one in records:
        inputs, said = _asked(one.inputs)
        if one.kind in STEPS:
            left_out[f"it is a span of kind {one.kind}"] += 1
        elif inputs in (None, "", [], {}):
            left_out["it has no input"] += 1
        elif _is_inside(one, by_id):
            left_out["it is a step of another record"] += 1
        elif field is not None and not (isinstance(one.inputs, Mapping) and field in one.inputs):
            left_out[f"its input has no {field!r}"] += 1
        else:
            if field is not None:
                inputs, said = _asked(one.inputs[field])
            observed = _answer(one.observed)
            row = {"inputs": inputs, "observed": said if observed is None else observed, "id": one.id}
            if one.expected is not None:
                row["expected"] = _answer(one.expected)
            try:
                key = json.dumps(inputs, sort_keys=True)
                json.dumps(row, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                left_out["UTF-8 can't express its text"] += 1
                continue
            if key in rows:
                left_out["its input is another record's"] += 1
            if key not in rows or ("expected" in row and "expected" not in rows[key]):
                rows[key] = row
    return list(rows.values())


# Kinds of spans that are no call of an app.
STEPS: Final = frozenset({"tool", "retriever", "embedding", "reranker", "evaluator", "guardrail", "event"})


def _is_inside(one: Recorded, by_id: Mapping[str, Recorded]) -> bool:
    """Return True if a record around this one is a row, or a step such as a tool or a judge."""
    seen = {one.id}
    while one.parent is not None and one.parent in by_id and one.parent not in seen:
        one = by_id[one.parent]
        seen.add(one.id)
        if one.kind in STEPS or _asked(one.inputs)[0] not in (None, "", [], {}):
            return True
    return False


# Inputs and answers


def _asked(value: Any) -> tuple[Any, Any]:
    """Return an input without system prompts and answer, and the answer at its end, or None."""
    if isinstance(value, Mapping) and _is_chat(value.get("messages")):
        value = value["messages"]
    if not _is_chat(value):
        return value, None
    messages = [one for one in value if one["role"] not in ("system", "developer")]
    said = _answer(messages.pop()) if messages and messages[-1]["role"] in ("assistant", "model") else None
    text = _text(messages[0].get("content")) if len(messages) == 1 else None
    return (messages if text is None else text), said


def _text(content: Any) -> str | None:
    """Return the text of a message, or None if it is more than text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [one for one in parts if isinstance(one, dict) and one.get("type") == "text"]
    if not texts or len(texts) < len(parts):
        return None
    return "\n".join(str(one.get("text", one.get("content", ""))) for one in texts)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and "role" in one for one in value)
    )


def _answer(value: Any) -> Any:
    """Return the text of an answer, or all of it if it is no text, such as a call of a tool."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Mapping):
        choices = value.get("choices")
        if isinstance(choices, list) and choices and isinstance(choices[0], dict):
            return _answer(choices[0].get("message"))
        if "role" in value and not value.get("tool_calls"):
            text = _text(value.get("content"))
            return value if text is None else text
    return value


# Reading


def _items(path: Path, left_out: Counter[str]) -> Iterator[Any]:
    """Yield the JSON values of a file: one, or one a line."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        if _loaded(file.readline()) is NOT_JSON:  # one value over several lines, or a line that is damaged
            file.seek(0)
            whole = _loaded(file.read())
            if whole is not NOT_JSON:
                yield whole
                return
        file.seek(0)
        for line in file:
            value = _loaded(line)
            if value is not NOT_JSON:
                yield value
            elif line.strip():
                left_out["it is no JSON"] += 1


NOT_JSON: Final = object()


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NOT_JSON


CONTAINERS: Final = ("data", "traces", "observations", "spans", "items", "examples")


def _unwrapped(items: Iterable[Any], depth: int = 0) -> Iterator[Any]:
    """Yield the records that are in lists, and in the pages of an API."""
    for item in items:
        inner = item if isinstance(item, list) else None
        if isinstance(item, dict) and not {"input", "messages", "attributes", "trace"} & item.keys():
            inner = next((item[key] for key in CONTAINERS if isinstance(item.get(key), list)), None)
        if inner is None or depth > 3:
            yield item
        else:
            yield from _unwrapped(inner, depth + 1)


def _records(item: dict[str, Any], number: str, checked: bool) -> list[Recorded]:
    """Return the records in an item of an export; none if its form is unknown."""
    if "resourceSpans" in item or "resource_spans" in item:
        return [_otlp(span) for span in _otlp_spans(item)]
    if "attributes" in item or any(key.startswith("attributes.") for key in item):
        return _phoenix(item, number)
    if {"messages", "choices", "request", "body", "response"} & item.keys() and "observations" not in item:
        return _openai(item, number, checked)
    if isinstance(item.get("trace"), dict):
        return _langfuse({"observations": item.get("observations")} | item["trace"], number)
    if {"input", "output", "expectedOutput"} & item.keys():
        return _langfuse(item, number)
    return []


# The forms


def _openai(item: dict[str, Any], number: str, checked: bool) -> list[Recorded]:
    """A chat, a request with its response, or a stored completion with its messages."""
    request = next((item[key] for key in ("request", "body") if isinstance(item.get(key), dict)), item)
    asked = request.get("messages")
    answered = item.get("response", item if "choices" in item else None)
    if isinstance(answered, dict) and isinstance(answered.get("body"), dict):  # of the batch API
        answered = answered["body"]
    name = str(item.get("custom_id") or item.get("id") or number)
    record = Recorded(name, inputs=asked, observed=answered)
    if checked:
        answer = _answer(answered)
        record.expected = _asked(asked)[1] if answer is None else answer
    return [record]


def _langfuse(item: dict[str, Any], number: str) -> list[Recorded]:
    """A trace with its observations, an observation, or an item of a dataset."""
    name = str(item.get("id") or number)
    parent = item.get("parentObservationId") or item.get("traceId")
    scores = item.get("scores")
    corrections = [
        next((one[key] for key in ("longStringValue", "stringValue", "value") if one.get(key)), None)
        for one in (scores if isinstance(scores, list) else [])
        if isinstance(one, dict)
        and one.get("dataType") == "CORRECTION"
        and one.get("observationId") in (None, name)
    ]
    expected = next((one for one in corrections if one is not None), _parsed(item.get("expectedOutput")))
    record = Recorded(
        name,
        str(parent) if parent else None,
        str(item.get("type") or "").lower(),
        _parsed(item.get("input")),
        _parsed(item.get("output")),
        expected,
    )
    inner = item.get("observations")
    parts = [one for one in (inner if isinstance(inner, list) else []) if isinstance(one, dict)]
    return [
        record,
        *(
            record
            for place, one in enumerate(parts, 1)
            for record in _langfuse({"traceId": name} | one, f"{name}/{place}")
        ),
    ]


def _phoenix(item: dict[str, Any], number: str) -> list[Recorded]:
    """A span with OpenInference's attributes."""
    nested = item.get("attributes")
    attributes = dict(_flat(nested)) if isinstance(nested, dict) else {}
    attributes |= dict(_flat({k[11:]: v for k, v in item.items() if k.startswith("attributes.")}))
    context = item.get("context")
    context = (
        context
        if isinstance(context, dict)
        else {key[8:]: item[key] for key in item if key[:8] == "context."}
    )
    values = [
        _parsed(attributes[f"{side}.value"])
        if "json" in str(attributes.get(f"{side}.mime_type", ""))
        else attributes.get(f"{side}.value")
        for side in ("input", "output")
    ]
    chats = [_numbered(attributes, f"llm.{side}_messages.", "message.") for side in ("input", "output")]
    kind = item.get("span_kind") or attributes.get("openinference.span.kind") or ""
    parent = item.get("parent_id")
    return [
        Recorded(
            str(context.get("span_id") or item.get("id") or number),
            str(parent) if parent else None,
            str(kind).lower(),
            chats[0] or values[0],
            chats[1] or values[1],
        )
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts and lists of dicts by dotted name."""
    for key, one in value.items():
        if isinstance(one, dict):
            yield from _flat(one, f"{prefix}{key}.")
        elif isinstance(one, list) and one and all(isinstance(part, dict) for part in one):
            yield from _flat({str(place): part for place, part in enumerate(one)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", one


def _numbered(attributes: Mapping[str, Any], prefix: str, inner: str = "") -> list[dict[str, Any]]:
    """Return the messages that attributes have as PREFIX.0.role, PREFIX.0.content, and so on."""
    messages: dict[int, dict[str, Any]] = {}
    for key, value in attributes.items():
        place, _, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and place.isdecimal() and len(place) < 10:
            messages.setdefault(int(place), {})[rest.removeprefix(inner)] = value
    return [messages[place] for place in sorted(messages)]


def _otlp_spans(item: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in _list(item, "resourceSpans", "resource_spans"):
        for scope in _list(resource, "scopeSpans", "scope_spans"):
            yield from _list(scope, "spans")


def _list(item: Mapping[str, Any], *keys: str) -> list[dict[str, Any]]:
    value = next((item[key] for key in keys if key in item), None)
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _otlp(span: dict[str, Any]) -> Recorded:
    """A span with attributes `gen_ai.*`, of the conventions since 1.37, or as earlier instrumentations wrote them."""
    attributes = _attributes(span)
    for event in _list(span, "events"):  # content was in events once
        name = str(event.get("name", ""))
        if name.startswith(("gen_ai.content.", "gen_ai.client.inference.operation.details")):
            attributes |= _attributes(event)
    parent = span.get("parentSpanId") or span.get("parent_span_id")
    name = str(span.get("spanId") or span.get("span_id") or id(span))
    if "openinference.span.kind" in attributes:
        return _phoenix({"id": name, "parent_id": parent, "attributes": attributes}, name)[0]
    operation = str(attributes.get("gen_ai.operation.name", ""))
    sides = [
        [_message(one) for one in _parsed_list(attributes.get(f"gen_ai.{new}.messages"))]
        or _numbered(attributes, f"gen_ai.{old}.")
        or _parsed(attributes.get(f"gen_ai.{old}"))
        for new, old in (("input", "prompt"), ("output", "completion"))
    ]
    kind = {"execute_tool": "tool", "embeddings": "embedding", "retrieval": "retriever"}.get(
        operation, operation
    )
    return Recorded(name, str(parent) if parent else None, kind, *sides)


def _attributes(holder: Mapping[str, Any]) -> dict[str, Any]:
    return {str(one.get("key")): _value(one.get("value")) for one in _list(holder, "attributes")}


def _value(value: Any) -> Any:
    """Return a value of OTLP's JSON, which names its type."""
    match value:
        case {"arrayValue": {"values": list(values)}}:
            return [_value(one) for one in values]
        case {"kvlistValue": {"values": list(values)}}:
            return {str(one.get("key")): _value(one.get("value")) for one in values if isinstance(one, dict)}
        case dict() if len(value) == 1:
            return next(iter(value.values()))
    return value


def _message(message: Any) -> Any:
    """Return a message of the conventions, whose content is in parts, as chats have it."""
    if not isinstance(message, dict) or not isinstance(message.get("parts"), list):
        return message
    return {"role": message.get("role"), "content": message["parts"]}


def _parsed_list(value: Any) -> list[Any]:
    items = _parsed(value)
    return items if isinstance(items, list) else []


def _parsed(value: Any) -> Any:
    """Return the JSON in a text, or the value as it is."""
    loaded = _loaded(value) if isinstance(value, str) and value[:1] in ("{", "[", '"') else NOT_JSON
    return value if loaded is NOT_JSON else loaded
