"""The APIs of OpenAI: chat completions, and everything compatible with them; embeddings; Responses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from afnio.models._dialect import (
    Dialect,
    Events,
    Json,
    dicts,
    mapping,
    size_of,
    text,
    text_of,
    tool_call,
    whole,
)
from afnio.models._messages import ChatResponse
from afnio.models._trace import CHAT_PATH
from afnio.runtime.events import Usage


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
            finish_reason=text(choice.get("finish_reason")) or None,
            model=text(reply.get("model")),
            id=text(reply.get("id")),
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
        return sum(size_of(delta) for delta in deltas)

    def is_usage(self, event: Json) -> bool:
        """Return True for the event that carries nothing but the usage."""
        return event.get("choices") == [] and isinstance(event.get("usage"), Mapping)

    def joined(self, events: Events) -> dict[str, Any]:
        reply: dict[str, Any] = {"object": "chat.completion"}
        choices: dict[int, dict[str, Any]] = {}
        for event in events:
            reply |= {
                name: event[name]
                for name in ("id", "created", "model", "usage", "service_tier", "system_fingerprint")
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
            message[name] = text(message.get(name)) + value
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


class Completions(Chat):
    """Source: https://platform.openai.com/docs/api-reference/completions (the API before chats)"""

    name = "completions"
    prompt = ("prompt", "suffix")

    def max_output(self, body: Json) -> int | None:
        prompts = body.get("prompt")
        many = (
            len(prompts)
            if isinstance(prompts, list) and not all(isinstance(part, int) for part in prompts)
            else 1
        )
        each = max(1, whole(body.get("n")), whole(body.get("best_of")))
        return (whole(body.get("max_tokens")) or 16) * many * each

    def messages(self, body: Json) -> list[dict[str, Any]]:
        prompt = body.get("prompt")
        return [{"role": "user", "content": prompt if isinstance(prompt, str) else json.dumps(prompt)}]

    def schema(self, body: Json) -> Json | None:
        return None

    def response(self, reply: Json) -> ChatResponse:
        choice = next(iter(dicts(reply.get("choices"))), {})
        return ChatResponse(
            content=text(choice.get("text")),
            finish_reason=text(choice.get("finish_reason")) or None,
            model=text(reply.get("model")),
            usage=self.usage(reply) or Usage(),
        )

    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        made = super().made_up(response)
        choice = {"index": 0, "text": response.content or "", "finish_reason": "stop"}
        return {**made, "object": "text_completion", "choices": [choice]}

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        return [("", self.made_up(response)), ("", "[DONE]")]

    def has_content(self, event: Json) -> bool:
        return any(
            choice.get("finish_reason") or choice.get("text") for choice in dicts(event.get("choices"))
        )

    def written(self, event: Json) -> int:
        return sum(len(text(choice.get("text"))) for choice in dicts(event.get("choices")))

    def joined(self, events: Events) -> dict[str, Any]:
        parts = list(events)
        reply = super().joined(parts)
        for choice in reply["choices"]:
            del choice["message"]
            choice["text"] = "".join(
                text(part.get("text"))
                for event in parts
                for part in dicts(event.get("choices"))
                if whole(part.get("index")) == choice["index"]
            )
        return {**reply, "object": "text_completion"}


class Embeddings(Chat):
    """Source: https://platform.openai.com/docs/api-reference/embeddings"""

    name = "embeddings"
    prompt = ("input",)
    main = ("data",)

    def streams(self, path: str, body: Json) -> bool:
        return False

    def max_output(self, body: Json) -> int | None:
        return 0

    def messages(self, body: Json) -> list[dict[str, Any]]:
        asked = body.get("input")
        texts = asked if isinstance(asked, list) else [asked]
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
        read = []
        if isinstance(body.get("instructions"), str):
            read.append({"role": "system", "content": body["instructions"]})
        asked = body.get("input")
        if isinstance(asked, str):
            return [*read, {"role": "user", "content": asked}]
        return [*read, *(_item(item) for item in dicts(asked))]

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
        return text(event.get("type")) not in _BEFORE_CONTENT

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


def _message(message: dict[str, Any]) -> dict[str, Any]:
    return message if "role" in message else {"role": "user", **message}
