"""Dialects: which API a raw request is for, and the APIs of Anthropic and Google.

Chat         OpenAI's chat completions, and everything compatible (`_apis_of_openai.py`)
Completions  OpenAI's completions, the API before chats
Embeddings   OpenAI's embeddings
Responses    OpenAI's Responses API
Anthropic    Anthropic's messages
Gemini       Google's generateContent and streamGenerateContent
Registered   another path, with the user's function for its usage
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, final

from afnio.models._apis_of_openai import Chat, Completions, Embeddings, Responses
from afnio.models._dialect import (
    Dialect,
    Events,
    Json,
    dicts,
    json_or,
    mapping,
    part_text,
    size_of,
    text,
    text_of,
    tool_call,
    whole,
)
from afnio.models._messages import ChatResponse
from afnio.runtime.events import Usage


class Anthropic(Dialect):
    """Source: https://docs.anthropic.com/en/api/messages"""

    name = "messages"
    prompt = ("system", "messages", "tools")
    main = ("content", "stop_reason")

    def max_output(self, body: Json) -> int | None:
        return whole(body.get("max_tokens")) or None

    def messages(self, body: Json) -> list[dict[str, Any]]:
        read = []
        if body.get("system"):
            read.append({"role": "system", "content": text_of(body["system"]) or ""})
        for message in dicts(body.get("messages")):
            read += _from_blocks(message)
        return read

    def schema(self, body: Json) -> Json | None:
        declared = mapping(mapping(body.get("output_config")).get("format")) or mapping(
            body.get("output_format")
        )
        return mapping(declared.get("schema")) or None

    def usage(self, reply: Json) -> Usage | None:
        counted = reply.get("usage")
        if not isinstance(counted, Mapping):
            return None
        cached = whole(counted.get("cache_read_input_tokens"))
        written = whole(counted.get("cache_creation_input_tokens"))
        prompt = whole(counted.get("input_tokens")) + cached + written
        return Usage(prompt, whole(counted.get("output_tokens")), cached)

    def response(self, reply: Json) -> ChatResponse:
        blocks = dicts(reply.get("content"))
        reason = text(reply.get("stop_reason"))
        return ChatResponse(
            content="".join(text(block.get("text")) for block in blocks if block.get("type") == "text")
            or None,
            tool_calls=tuple(
                tool_call(block.get("id"), block.get("name"), block.get("input"))
                for block in blocks
                if block.get("type") == "tool_use"
            ),
            finish_reason=_STOPS.get(reason, reason) or None,
            model=text(reply.get("model")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        blocks = [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            for call in response.tool_calls
        ]
        return {
            "id": "msg_rehearsal",
            "type": "message",
            "role": "assistant",
            "model": response.model,
            "content": blocks or [{"type": "text", "text": response.content or ""}],
            "stop_reason": "tool_use" if blocks else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": response.usage.prompt_tokens,
                "output_tokens": response.usage.completion_tokens,
            },
        }

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        reply = self.made_up(response)
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**reply, "content": [], "stop_reason": None}}
        ]
        for number, block in enumerate(reply["content"]):
            if block["type"] == "text":
                start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
            else:
                start = {**block, "input": {}}
                delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
            events += [
                {"type": "content_block_start", "index": number, "content_block": start},
                {"type": "content_block_delta", "index": number, "delta": delta},
                {"type": "content_block_stop", "index": number},
            ]
        ends = {"stop_reason": reply["stop_reason"], "stop_sequence": None}
        events += [
            {"type": "message_delta", "delta": ends, "usage": reply["usage"]},
            {"type": "message_stop"},
        ]
        return [(event["type"], event) for event in events]

    def has_content(self, event: Json) -> bool:
        return event.get("type") not in ("message_start", "ping")

    def is_last(self, event: Json) -> bool:
        return event.get("type") == "message_stop"

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {"type": "message", "role": "assistant"}
        blocks: dict[int, dict[str, Any]] = {}
        for event in events:
            kind, number = event.get("type"), whole(event.get("index"))
            delta = mapping(event.get("delta"))
            if kind == "message_start":
                reply |= mapping(event.get("message"))
            elif kind == "content_block_start":
                blocks[number] = dict(mapping(event.get("content_block")))
            elif kind == "content_block_delta":
                block = blocks.setdefault(number, {"type": "text"})
                for name, part in (("text", "text"), ("thinking", "thinking"), ("_json", "partial_json")):
                    if isinstance(delta.get(part), str):
                        block[name] = text(block.get(name)) + delta[part]
            elif kind == "message_delta":
                reply |= {name: value for name, value in delta.items() if value is not None}
                reply["usage"] = {**mapping(reply.get("usage")), **mapping(event.get("usage"))}
        for block in blocks.values():
            written = block.pop("_json", "")
            if written:
                block["input"] = json_or(written)
        return {**reply, "content": [blocks[number] for number in sorted(blocks)]}


_STOPS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
    "model_context_window_exceeded": "length",
}


def _from_blocks(message: Json) -> Iterator[dict[str, Any]]:
    """Yield an Anthropic message as chat messages: results of tools are messages of their own."""
    content = message.get("content")
    calls = []
    if isinstance(content, list):
        for block in dicts(content):
            if block.get("type") == "tool_result":
                result = text_of(block.get("content")) or ""
                yield {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": result}
            elif block.get("type") == "tool_use":
                function = {"name": block.get("name"), "arguments": json.dumps(block.get("input"))}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
        if all(block.get("type") == "tool_result" for block in dicts(content)) and content:
            return
    shown: dict[str, Any] = {"role": text(message.get("role")) or "user", "content": text_of(content) or ""}
    yield {**shown, "tool_calls": calls} if calls else shown


# Gemini


class Gemini(Dialect):
    """Source: https://ai.google.dev/api/generate-content"""

    name = "generateContent"
    prompt = ("systemInstruction", "system_instruction", "contents", "tools")
    main = ("candidates", "promptFeedback")

    def model(self, path: str, body: Json) -> str:
        return path.rpartition("/")[2].partition(":")[0]

    def streams(self, path: str, body: Json) -> bool:
        return path.endswith(":streamGenerateContent")

    def max_output(self, body: Json) -> int | None:
        settings = self._settings(body)
        most = whole(settings.get("maxOutputTokens"))
        return most * max(1, whole(settings.get("candidateCount"))) if most else None

    def messages(self, body: Json) -> list[dict[str, Any]]:
        system = mapping(body.get("systemInstruction") or body.get("system_instruction"))
        read = [{"role": "system", "content": _parts_text(system)}] if system else []
        for content in dicts(body.get("contents")):
            read += _from_parts(content)
        return read

    def params(self, body: Json) -> dict[str, Any]:
        return {**super().params(body), **{k: v for k, v in self._settings(body).items() if k != "model"}}

    def schema(self, body: Json) -> Json | None:
        settings = self._settings(body)
        return mapping(settings.get("responseJsonSchema") or settings.get("responseSchema")) or None

    def usage(self, reply: Json) -> Usage | None:
        counted = reply.get("usageMetadata")
        if not isinstance(counted, Mapping):
            return None
        thoughts = whole(counted.get("thoughtsTokenCount"))
        return Usage(
            whole(counted.get("promptTokenCount")) + whole(counted.get("toolUsePromptTokenCount")),
            whole(counted.get("candidatesTokenCount")) + thoughts,
            whole(counted.get("cachedContentTokenCount")),
            thoughts,
        )

    def response(self, reply: Json) -> ChatResponse:
        candidate: Json = next(iter(dicts(reply.get("candidates"))), {})
        parts = dicts(mapping(candidate.get("content")).get("parts"))
        calls = [mapping(part.get("functionCall")) for part in parts if "functionCall" in part]
        reason = text(candidate.get("finishReason"))
        return ChatResponse(
            content=_parts_text(mapping(candidate.get("content"))) or None,
            tool_calls=tuple(tool_call(call.get("id"), call.get("name"), call.get("args")) for call in calls),
            finish_reason={"STOP": "stop", "MAX_TOKENS": "length"}.get(reason, "content_filter"),
            model=text(reply.get("modelVersion")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        usage = response.usage
        parts: list[dict[str, Any]] = [
            {"functionCall": {"name": call.name, "args": json.loads(call.arguments)}}
            for call in response.tool_calls
        ]
        return {
            "candidates": [
                {
                    "content": {"role": "model", "parts": parts or [{"text": response.content or ""}]},
                    "finishReason": "STOP",
                    "index": 0,
                }
            ],
            "usageMetadata": {
                "promptTokenCount": usage.prompt_tokens,
                "candidatesTokenCount": usage.completion_tokens,
                "totalTokenCount": usage.total_tokens,
            },
            "modelVersion": response.model,
        }

    def has_content(self, event: Json) -> bool:
        return bool(event.get("candidates") or event.get("promptFeedback"))

    def written(self, event: Json) -> int:
        return sum(size_of(candidate.get("content")) for candidate in dicts(event.get("candidates")))

    def is_last(self, event: Json) -> bool:
        return any(candidate.get("finishReason") for candidate in dicts(event.get("candidates")))

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        candidates: dict[int, dict[str, Any]] = {}
        for event in events:
            reply |= {name: value for name, value in event.items() if name != "candidates"}
            for part in dicts(event.get("candidates")):
                number = whole(part.get("index"))
                entry = candidates.setdefault(number, {"content": {"role": "model", "parts": []}})
                entry["content"]["parts"] += dicts(mapping(part.get("content")).get("parts"))
                entry |= {name: value for name, value in part.items() if name != "content"}
        for candidate in candidates.values():
            candidate["content"]["parts"] = _joined_parts(candidate["content"]["parts"])
        return {**reply, "candidates": [candidates[number] for number in sorted(candidates)]}

    def _settings(self, body: Json) -> Json:
        return mapping(body.get("generationConfig") or body.get("generation_config"))


def _parts_text(content: Json) -> str:
    return "".join(part_text(part) for part in dicts(content.get("parts")) if not part.get("thought"))


def _from_parts(content: Json) -> Iterator[dict[str, Any]]:
    calls = []
    for part in dicts(content.get("parts")):
        if "functionResponse" in part:
            result = mapping(part["functionResponse"])
            shown = json.dumps(result.get("response"), ensure_ascii=False, default=str)
            yield {"role": "tool", "tool_call_id": result.get("id") or result.get("name"), "content": shown}
        elif "functionCall" in part:
            call = mapping(part["functionCall"])
            function = {"name": call.get("name"), "arguments": json.dumps(call.get("args"))}
            calls.append({"id": call.get("id"), "type": "function", "function": function})
    written = _parts_text(content)
    if written or calls:
        role = "assistant" if content.get("role") == "model" else "user"
        shown_message: dict[str, Any] = {"role": role, "content": written}
        yield {**shown_message, "tool_calls": calls} if calls else shown_message


def _joined_parts(parts: list[Json]) -> list[Json]:
    """Join neighbouring parts of text. Others, such as function calls, stay as they are."""
    joined: list[Json] = []
    for part in parts:
        before = joined[-1] if joined else {}
        if set(part) == set(before) and set(part) <= {"text", "thought"} and "text" in part:
            joined[-1] = {**before, "text": text(before["text"]) + text(part["text"])}
        else:
            joined.append(part)
    return joined


CHAT: Final = Chat()
COMPLETIONS: Final = Completions()
EMBEDDINGS: Final = Embeddings()
RESPONSES: Final = Responses()
ANTHROPIC: Final = Anthropic()
GEMINI: Final = Gemini()
_BY_NAME: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, ANTHROPIC, GEMINI)
}
_registered: Final[dict[str, Registered]] = {}


# Paths of users


@final
class Registered(Chat):
    """A path that a user registered.

    Args:
        path: the end of its URLs.
        usage: returns the tokens of a reply's JSON.
    """

    prompt = ("system", "prompt", "messages", "input", "inputs", "instructions", "contents", "tools")
    main = ()

    def __init__(self, path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
        self.name = path  # type: ignore[misc]
        self._usage = usage

    def messages(self, body: Json) -> list[dict[str, Any]]:
        if isinstance(body.get("messages"), list):
            return super().messages(body)
        prompt = next((body[name] for name in self.prompt if body.get(name)), "")
        return [
            {
                "role": "user",
                "content": prompt if isinstance(prompt, str) else json.dumps(prompt, default=str),
            }
        ]

    def usage(self, reply: Json) -> Usage | None:
        counted = self._usage(dict(reply))
        if counted is None or isinstance(counted, Usage):
            return counted
        prompt, output = counted
        return Usage(whole(prompt), whole(output))

    def response(self, reply: Json) -> ChatResponse:
        if reply.get("choices"):
            return super().response(reply)
        return ChatResponse(content=json.dumps(reply, ensure_ascii=False, default=str), finish_reason="stop")

    def has_content(self, event: Json) -> bool:
        return True

    def written(self, event: Json) -> int:
        return size_of(event)

    def joined(self, events: Events) -> dict[str, Any]:
        pieces = list(events)
        if any(event.get("choices") for event in pieces):
            return super().joined(pieces)
        return {**(pieces[-1] if pieces else {}), "events": pieces}


# Lookup


def register(path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
    _registered[path] = Registered(path, usage)


def may_be_known(path: str) -> bool:
    """Return True if a request to `path` may be one for a model. Cheap: the bridge asks it for every request."""
    path = path.rstrip("/")
    return path.endswith(_ENDINGS) or any(path.endswith(f"/{registered}") for registered in _registered)


_ENDINGS: Final = (
    "/completions",
    "/responses",
    "/embeddings",
    "/messages",
    ":generateContent",
    ":streamGenerateContent",
)


def dialect_of(path: str, headers: Mapping[str, str], body: Json) -> tuple[Dialect, str] | None:
    """Return the dialect of a request, and the part of its path that belongs to the account. None if it has none.

    Other services have paths such as `/messages`, too. A request must look like one for a model: it names one, and
    Anthropic's has the header that its API demands.

    >>> dialect, base = dialect_of("/v1/chat/completions", {}, {"model": "m"})
    >>> dialect.name, base
    ('chat/completions', '/v1')
    """
    path = path.rstrip("/")
    for ending, registered in _registered.items():
        if path.endswith(f"/{ending}"):
            return registered, path.removesuffix(f"/{ending}")
    head, _, last = path.rpartition("/")
    if last.endswith((":generateContent", ":streamGenerateContent")):
        return (GEMINI, head.removesuffix("/models")) if "contents" in body else None
    named = isinstance(body.get("model"), str) or "/deployments/" in path
    if not named:
        return None
    if last == "completions":
        return (CHAT, head.removesuffix("/chat")) if head.endswith("/chat") else (COMPLETIONS, head)
    if last == "messages" and "anthropic-version" in headers:
        return ANTHROPIC, head
    dialect = {"embeddings": EMBEDDINGS, "responses": RESPONSES}.get(last)
    return None if dialect is None else (dialect, head)


def dialect_named(name: str) -> Dialect:
    """Return the dialect of a trace's call."""
    return _registered.get(name) or _BY_NAME.get(name, CHAT)
