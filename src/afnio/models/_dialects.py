"""Dialects: what differs between the APIs whose raw requests and replies pass through the engine.

The bridge and the gateway carry bodies without changing them. The engine needs to know a few things about them all the
same: which model and how many tokens a request asks for, whether it streams, what a reply used, and for a stream, which
events carry content, which one is an error, and which one is the last. A `Dialect` reads that from the JSON:

    Chat         OpenAI's chat completions, and everything compatible
    Responses    OpenAI's Responses API
    Embeddings   OpenAI's embeddings
    Anthropic    Anthropic's messages
    Gemini       Google's generateContent and streamGenerateContent
    Registered   another path, with the user's function for its usage

A dialect also puts the events of a stream together into the reply that isn't streamed (for traces), shows requests and
replies as chat messages (for events and the studio), and makes up replies (for rehearsals).

Everything here is read with suspicion: bodies come from servers and from other people's code. A field of the wrong type
counts as missing.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, final

from afnio.models._messages import ChatResponse, ToolCall
from afnio.models._trace import CHAT_PATH
from afnio.runtime.events import Usage

Json = Mapping[str, Any]
Events = Iterable[dict[str, Any]]

IMAGE_TOKENS: Final = 1_000
"""Counted for an image or a file inside a request. By its bytes one of 1 MB would count as 350,000 tokens."""
_PER_MESSAGE: Final = 4
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/_=-]{1000,}")
"""A long text of these characters alone is base64."""


class Dialect(ABC):
    """One API.

    Attributes:
        name: its path, as traces show it.
        prompt: the fields of a request that hold text for the model.
        main: the fields of a reply of which it has at least one, unless it is an error.
    """

    name: ClassVar[str]
    prompt: ClassVar[tuple[str, ...]] = ("messages", "tools")
    main: ClassVar[tuple[str, ...]] = ()

    # Requests

    def model(self, path: str, body: Json) -> str:
        """Return the model's name, "" if there is none."""
        return text(body.get("model"))

    def streams(self, path: str, body: Json) -> bool:
        return body.get("stream") is True

    def prompt_tokens(self, body: Json) -> int:
        """Return an estimate: a token for four bytes of text, and a flat sum for each image or file."""
        return sum(count_tokens(body.get(name)) for name in self.prompt)

    @abstractmethod
    def max_output(self, body: Json) -> int | None:
        """Return the most tokens of all the replies that the request asks for, or None without a limit."""

    def temperature(self, body: Json) -> Any:
        return body.get("temperature")

    @abstractmethod
    def messages(self, body: Json) -> list[dict[str, Any]]:
        """Return the request's messages in the form of a chat completion."""

    def params(self, body: Json) -> dict[str, Any]:
        """Return the other parameters."""
        return {name: value for name, value in body.items() if name not in (*self.prompt, "model")}

    def schema(self, body: Json) -> Json | None:
        """Return the JSON schema that the reply must have, or None."""
        return None

    # Replies

    @abstractmethod
    def usage(self, reply: Json) -> Usage | None:
        """Return the tokens that a reply counts, or None if it counts none."""

    @abstractmethod
    def response(self, reply: Json) -> ChatResponse:
        """Return a reply in the form of a chat completion."""

    def is_complete(self, reply: Json) -> bool:
        """Return False if the reply was cut off by a limit or filtered."""
        return self.response(reply).complete

    def is_reply(self, parsed: Any) -> bool:
        return isinstance(parsed, Mapping) and (
            not self.main or any(parsed.get(name) is not None for name in self.main)
        )

    @abstractmethod
    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        """Return a reply's JSON body with the text and the usage of `response`."""

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        """Return the events of a stream with the text of `response`: each its name, or "", and its data."""
        return [("", self.made_up(response))]

    # Streams

    def error_in(self, event: Json) -> Json | None:
        """Return the error that an event of a stream reports, or None."""
        error = event.get("error")
        return error if isinstance(error, Mapping) else None

    def has_content(self, event: Json) -> bool:
        """Return True if an event carries a part of the answer. From the first one on, the call isn't retried."""
        return True

    def written(self, event: Json) -> int:
        """Return how many characters of the answer an event carries."""
        return _size(event.get("delta"))

    def is_last(self, event: Json) -> bool:
        """Return True if no content can follow the event."""
        return False

    @abstractmethod
    def joined(self, events: Events) -> dict[str, Any]:
        """Return the reply that the events of a stream make up, also of one that was cut off."""


# OpenAI


class Chat(Dialect):
    """Source: https://platform.openai.com/docs/api-reference/chat"""

    name = CHAT_PATH
    main: ClassVar[tuple[str, ...]] = ("choices",)

    def max_output(self, body: Json) -> int | None:
        most = whole(body.get("max_completion_tokens")) or whole(body.get("max_tokens"))
        return most * max(1, whole(body.get("n"))) if most else None

    def messages(self, body: Json) -> list[dict[str, Any]]:
        return [_message(message) for message in dicts(body.get("messages"))]

    def schema(self, body: Json) -> Json | None:
        return mapping(mapping(mapping(body.get("response_format")).get("json_schema")).get("schema")) or None

    def usage(self, reply: Json) -> Usage | None:
        counted = reply.get("usage")
        if not isinstance(counted, Mapping):
            return None
        return Usage(
            whole(counted.get("prompt_tokens")),
            whole(counted.get("completion_tokens")),
            whole(mapping(counted.get("prompt_tokens_details")).get("cached_tokens")),
            whole(mapping(counted.get("completion_tokens_details")).get("reasoning_tokens")),
        )

    def response(self, reply: Json) -> ChatResponse:
        choice = next(iter(dicts(reply.get("choices"))), {})
        message = mapping(choice.get("message"))
        calls = []
        for call in dicts(message.get("tool_calls")):
            function = mapping(call.get("function"))
            calls.append(tool_call(call.get("id"), function.get("name"), function.get("arguments")))
        content = message.get("content")
        return ChatResponse(
            content=text_of(message.get("refusal") if content is None else content),
            tool_calls=tuple(calls),
            finish_reason=choice.get("finish_reason") or None,
            model=text(reply.get("model")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        return {"id": "chatcmpl-rehearsal", "created": 0, **response.body}

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        whole_reply = self.made_up(response)
        delta = whole_reply["choices"][0].pop("message")
        for number, call in enumerate(delta.get("tool_calls", ())):
            call["index"] = number
        whole_reply["choices"][0]["delta"] = delta
        return [("", {**whole_reply, "object": "chat.completion.chunk"}), ("", "[DONE]")]

    def has_content(self, event: Json) -> bool:
        return any(
            choice.get("finish_reason")
            or any(value for name, value in mapping(choice.get("delta")).items() if name != "role")
            for choice in dicts(event.get("choices"))
        )

    def written(self, event: Json) -> int:
        deltas = [mapping(choice.get("delta")) for choice in dicts(event.get("choices"))]
        return sum(_size(delta) for delta in deltas)

    def is_usage(self, event: Json) -> bool:
        """Return True for the event that carries nothing but the usage."""
        return event.get("choices") == [] and isinstance(event.get("usage"), Mapping)

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {"object": "chat.completion"}
        choices: dict[int, dict[str, Any]] = {}
        for event in events:
            reply |= {
                name: event[name]
                for name in ("id", "created", "model", "usage", "system_fingerprint")
                if event.get(name) is not None
            }
            for part in dicts(event.get("choices")):
                number = whole(part.get("index"))
                choice = choices.setdefault(
                    number, {"index": number, "message": {"role": "assistant", "content": None}}
                )
                _merge(choice["message"], mapping(part.get("delta")))
                if part.get("finish_reason") is not None:
                    choice["finish_reason"] = part["finish_reason"]
        return {**reply, "choices": [choices[number] for number in sorted(choices)]}


def _merge(message: dict[str, Any], delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", [])
            for part in dicts(value):
                _merge_call(calls, part)
        elif name != "role" and isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def _merge_call(calls: list[dict[str, Any]], part: Json) -> None:
    number = whole(part.get("index", len(calls)))
    while len(calls) <= min(number, 1000):
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[min(number, len(calls) - 1)]
    function = mapping(part.get("function"))
    call["id"] = call["id"] or text(part.get("id"))
    call["function"]["name"] += text(function.get("name"))
    call["function"]["arguments"] += text(function.get("arguments"))


class Embeddings(Chat):
    """Source: https://platform.openai.com/docs/api-reference/embeddings"""

    name = "embeddings"
    prompt = ("input",)
    main = ("data",)

    def streams(self, path: str, body: Json) -> bool:
        return False

    def max_output(self, body: Json) -> int | None:
        return 0

    def temperature(self, body: Json) -> Any:
        return 0  # equal texts have equal embeddings

    def messages(self, body: Json) -> list[dict[str, Any]]:
        given = body.get("input")
        texts = given if isinstance(given, list) else [given]
        return [
            {"role": "user", "content": one if isinstance(one, str) else json.dumps(one)} for one in texts
        ]

    def schema(self, body: Json) -> Json | None:
        return None

    def response(self, reply: Json) -> ChatResponse:
        data = dicts(reply.get("data"))
        return ChatResponse(
            content=f"{len(data)} embeddings",
            model=text(reply.get("model")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        tokens = response.usage.prompt_tokens
        return {
            "object": "list",
            "model": response.model,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.0]}],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


class Responses(Dialect):
    """Source: https://platform.openai.com/docs/api-reference/responses"""

    name = "responses"
    prompt = ("instructions", "input", "tools")
    main = ("output", "status")

    def max_output(self, body: Json) -> int | None:
        return whole(body.get("max_output_tokens")) or None

    def messages(self, body: Json) -> list[dict[str, Any]]:
        found = []
        if isinstance(body.get("instructions"), str):
            found.append({"role": "system", "content": body["instructions"]})
        given = body.get("input")
        if isinstance(given, str):
            return [*found, {"role": "user", "content": given}]
        return [*found, *(_item(item) for item in dicts(given))]

    def schema(self, body: Json) -> Json | None:
        return mapping(mapping(mapping(body.get("text")).get("format")).get("schema")) or None

    def usage(self, reply: Json) -> Usage | None:
        counted = reply.get("usage")
        if not isinstance(counted, Mapping):
            return None
        return Usage(
            whole(counted.get("input_tokens")),
            whole(counted.get("output_tokens")),
            whole(mapping(counted.get("input_tokens_details")).get("cached_tokens")),
            whole(mapping(counted.get("output_tokens_details")).get("reasoning_tokens")),
        )

    def response(self, reply: Json) -> ChatResponse:
        output = dicts(reply.get("output"))
        texts = [text_of(item.get("content")) for item in output if item.get("type") == "message"]
        status = reply.get("status")
        reason = mapping(reply.get("incomplete_details")).get("reason") if status == "incomplete" else None
        return ChatResponse(
            content="".join(part or "" for part in texts) or None,
            tool_calls=tuple(
                tool_call(item.get("call_id"), item.get("name"), item.get("arguments"))
                for item in output
                if item.get("type") == "function_call"
            ),
            finish_reason="stop" if status == "completed" else _CUT_OFF.get(text(reason), "length"),
            model=text(reply.get("model")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        content = [{"type": "output_text", "text": response.content or "", "annotations": []}]
        usage = response.usage
        items = [
            {
                "type": "function_call",
                "id": call.id,
                "call_id": call.id,
                "name": call.name,
                "arguments": call.arguments,
                "status": "completed",
            }
            for call in response.tool_calls
        ]
        message = {
            "type": "message",
            "id": "msg_rehearsal",
            "status": "completed",
            "role": "assistant",
            "content": content,
        }
        return {
            "id": "resp_rehearsal",
            "object": "response",
            "created_at": 0,
            "status": "completed",
            "model": response.model,
            "output": items or [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "total_tokens": usage.total_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        ends = "response.completed"
        return [(ends, {"type": ends, "sequence_number": 0, "response": self.made_up(response)})]

    def error_in(self, event: Json) -> Json | None:
        if event.get("type") == "response.failed":
            return mapping(mapping(event.get("response")).get("error")) or {"message": "the response failed"}
        if event.get("type") == "error":
            return mapping(event.get("error")) or event
        return None

    def has_content(self, event: Json) -> bool:
        return event.get("type") not in _BEFORE_CONTENT

    def is_last(self, event: Json) -> bool:
        return event.get("type") in ("response.completed", "response.incomplete", "response.failed")

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {"object": "response", "output": []}
        items: dict[int, dict[str, Any]] = {}
        for event in events:
            kind, number = event.get("type"), whole(event.get("output_index"))
            if isinstance(event.get("response"), Mapping):
                reply = dict(event["response"])
            elif kind in ("response.output_item.added", "response.output_item.done"):
                items[number] = dict(mapping(event.get("item")))
            elif kind == "response.output_text.delta":
                item = items.setdefault(number, {"type": "message", "role": "assistant"})
                content = dicts(item.get("content"))
                written = "".join(text(part.get("text")) for part in content) + text(event.get("delta"))
                item["content"] = [{"type": "output_text", "text": written}]
            elif kind == "response.function_call_arguments.delta":
                item = items.setdefault(number, {"type": "function_call"})
                item["arguments"] = text(item.get("arguments")) + text(event.get("delta"))
        if not reply.get("output"):
            reply["output"] = [items[number] for number in sorted(items)]
        return reply


_BEFORE_CONTENT: Final = frozenset({"response.created", "response.in_progress", "response.queued"})
_CUT_OFF: Final = {"content_filter": "content_filter"}


def _item(item: Json) -> dict[str, Any]:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        calls = [{"id": item.get("call_id"), "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls}
    if kind == "function_call_output":
        return {
            "role": "tool",
            "tool_call_id": item.get("call_id"),
            "content": text_of(item.get("output")) or "",
        }
    if "role" in item:
        return {"role": item["role"], "content": text_of(item.get("content")) or ""}
    return {"role": "assistant", "content": f"[{kind}]"}


# Anthropic


class Anthropic(Dialect):
    """Source: https://docs.anthropic.com/en/api/messages"""

    name = "messages"
    prompt = ("system", "messages", "tools")
    main = ("content", "stop_reason")

    def max_output(self, body: Json) -> int | None:
        return whole(body.get("max_tokens")) or None

    def messages(self, body: Json) -> list[dict[str, Any]]:
        found = []
        if body.get("system"):
            found.append({"role": "system", "content": text_of(body["system"]) or ""})
        for message in dicts(body.get("messages")):
            found += _from_blocks(message)
        return found

    def schema(self, body: Json) -> Json | None:
        given = mapping(mapping(body.get("output_config")).get("format")) or mapping(
            body.get("output_format")
        )
        return mapping(given.get("schema")) or None

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
                block["input"] = _json_or(written)
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

    def temperature(self, body: Json) -> Any:
        return self._settings(body).get("temperature")

    def messages(self, body: Json) -> list[dict[str, Any]]:
        system = mapping(body.get("systemInstruction") or body.get("system_instruction"))
        found = [{"role": "system", "content": _parts_text(system)}] if system else []
        for content in dicts(body.get("contents")):
            found += _from_parts(content)
        return found

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
        return sum(_size(candidate.get("content")) for candidate in dicts(event.get("candidates")))

    def is_last(self, event: Json) -> bool:
        return any(candidate.get("finishReason") for candidate in dicts(event.get("candidates")))

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {}
        candidates: dict[int, dict[str, Any]] = {}
        for event in events:
            reply |= {name: value for name, value in event.items() if name != "candidates"}
            for part in dicts(event.get("candidates")):
                number = whole(part.get("index"))
                known = candidates.setdefault(number, {"content": {"role": "model", "parts": []}})
                known["content"]["parts"] += dicts(mapping(part.get("content")).get("parts"))
                known |= {name: value for name, value in part.items() if name != "content"}
        for candidate in candidates.values():
            candidate["content"]["parts"] = _joined_parts(candidate["content"]["parts"])
        return {**reply, "candidates": [candidates[number] for number in sorted(candidates)]}

    def _settings(self, body: Json) -> Json:
        return mapping(body.get("generationConfig") or body.get("generation_config"))


def _parts_text(content: Json) -> str:
    return "".join(_part_text(part) for part in dicts(content.get("parts")) if not part.get("thought"))


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
        given = next((body[name] for name in self.prompt if body.get(name)), "")
        return [
            {"role": "user", "content": given if isinstance(given, str) else json.dumps(given, default=str)}
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
        return _size(event)

    def joined(self, events: Events) -> dict[str, Any]:
        found = list(events)
        if any(event.get("choices") for event in found):
            return super().joined(found)
        return {**(found[-1] if found else {}), "events": found}


CHAT: Final = Chat()
EMBEDDINGS: Final = Embeddings()
RESPONSES: Final = Responses()
ANTHROPIC: Final = Anthropic()
GEMINI: Final = Gemini()
_BY_NAME: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (CHAT, EMBEDDINGS, RESPONSES, ANTHROPIC, GEMINI)
}
_registered: Final[dict[str, Registered]] = {}


def register(path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
    _registered[path] = Registered(path, usage)


def may_be_known(path: str) -> bool:
    """Return True if a request to `path` may be one for a model. Cheap: the bridge asks it for every request."""
    return path.endswith(_ENDINGS) or any(path.endswith(f"/{known}") for known in _registered)


_ENDINGS: Final = (
    "/chat/completions",
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
    for known, registered in _registered.items():
        if path.endswith(f"/{known}"):
            return registered, path.removesuffix(f"/{known}")
    head, _, last = path.rpartition("/")
    if last.endswith((":generateContent", ":streamGenerateContent")):
        return (GEMINI, head.removesuffix("/models")) if "contents" in body else None
    named = isinstance(body.get("model"), str) or "/deployments/" in path
    if not named:
        return None
    if last == "completions" and head.endswith("/chat"):
        return CHAT, head.removesuffix("/chat")
    if last == "messages" and "anthropic-version" in headers:
        return ANTHROPIC, head
    found = {"embeddings": EMBEDDINGS, "responses": RESPONSES}.get(last)
    return None if found is None else (found, head)


def dialect_named(name: str) -> Dialect:
    """Return the dialect of a trace's call."""
    return _registered.get(name) or _BY_NAME.get(name, CHAT)


# JSON from elsewhere


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def whole(value: Any) -> int:
    """Return a count as an int, rounded up; 0 if it isn't a number of 0 or more."""
    if type(value) is int:
        return max(0, value)
    try:
        return max(0, math.ceil(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def text_of(content: Any) -> str | None:
    """Return the text of a message's content: a string, or parts with text. An image is a placeholder."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return None
    parts = [part if isinstance(part, str) else mapping(part) for part in content]
    return "".join(part if isinstance(part, str) else _part_text(part) for part in parts)


def _part_text(part: Json) -> str:
    if isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    data = mapping(part.get("inlineData") or part.get("inline_data") or part.get("fileData"))
    kind = f"{text(part.get('type'))} {text(data.get('mimeType') or data.get('mime_type'))}"
    medium = next((name for name in _MEDIA if name in kind), "file" if data else "")
    return f"[{medium}]" if medium else ""


_MEDIA: Final = ("image", "audio", "video", "document", "file")


def tool_call(identifier: Any, name: Any, arguments: Any) -> ToolCall:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=text(identifier), name=text(name), arguments=written)


def count_tokens(value: Any) -> int:
    """Return an estimate of the tokens of JSON: those of its texts, and a flat sum for a picture or a file.

    >>> count_tokens([{"role": "user", "content": "Good morning"}])
    7
    >>> count_tokens({"url": "data:image/png;base64," + 400_000 * "A"})
    1000
    """
    if isinstance(value, str):
        if value.startswith("data:") or (len(value) >= 1000 and _ENCODED.fullmatch(value)):
            return IMAGE_TOKENS
        size = len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
        return -(-size // 4)
    if isinstance(value, Mapping):
        own = _PER_MESSAGE if "role" in value else 0
        return own + sum(count_tokens(entry) for name, entry in value.items() if name not in _NO_TEXT)
    if isinstance(value, list):
        if value and type(value[0]) is int:  # a text that is given as tokens
            return len(value)
        return sum(map(count_tokens, value))
    return 0


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_size(entry) for name, entry in value.items() if name not in _NO_TEXT)
    return sum(map(_size, value)) if isinstance(value, list) else 0


_NO_TEXT: Final = frozenset({"role", "type", "id", "tool_call_id", "call_id", "tool_use_id", "cache_control"})


def _message(message: dict[str, Any]) -> dict[str, Any]:
    return message if "role" in message else {"role": "user", **message}


def _json_or(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written
