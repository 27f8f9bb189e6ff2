"""An endpoint with the APIs of OpenAI, Anthropic, Google and Bedrock, which stream, fail and wait as a test wants.

A reply repeats the last text of the request in capitals. In streams it comes word by word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


@dataclass
class Asked:
    """A request that arrived."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    query: dict[str, str]


@dataclass
class Endpoint:
    """Attributes:
    latency: seconds before each reply.
    pace: awaited before each event of a stream with its number.
    fail: returns a response instead of the reply for the n-th request, from 0, or None.
    event_of: replaces the n-th event of a stream, or None to leave it.
    asked: the requests so far.
    peak: the most at the same time.
    gone: how many requests ended because their client had closed the connection.
    """

    latency: float = 0.0
    pace: Callable[[int], Awaitable[object]] | None = None
    fail: Callable[[int, Asked], web.Response | None] | None = None
    break_after: int | None = None
    event_of: Callable[[int, int], bytes | None] | None = None
    asked: list[Asked] = field(default_factory=list)
    peak: int = 0
    gone: int = 0
    _now: int = 0
    _runner: web.AppRunner | None = None
    url: str = ""

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/{path:.*}", self._serve)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            connection.force_close()
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": "x"}]}
        )

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked = Asked(request.path, body, headers, dict(request.query))
        number = len(self.asked)
        self.asked.append(asked)
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            if self.latency:
                await asyncio.sleep(self.latency)
            failed = self.fail(number, asked) if self.fail is not None else None
            if failed is not None:
                return failed
            if body.get("stream") or "stream" in asked.path:
                return await self._stream(request, asked, number)
            return web.json_response(reply(asked), headers={"x-request-id": f"r{number}"})
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self._now -= 1

    async def _stream(self, request: web.Request, asked: Asked, number: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for n, event in enumerate(events(asked)):
            if self.pace is not None:
                await self.pace(n)
            if n == self.break_after:
                assert request.transport is not None
                request.transport.abort()
                return response
            replaced = self.event_of(number, n) if self.event_of is not None else None
            await response.write(event if replaced is None else replaced)
            if replaced is not None:
                return response
        await response.write_eof()
        return response


def last_text(asked: Asked) -> str:
    body = asked.body
    if "contents" in body:
        return str(body["contents"][-1]["parts"][-1].get("text", ""))
    given = body.get("messages") or body.get("input")
    if isinstance(given, str):
        return given
    last = given[-1]
    content = (last.get("content") or last.get("output")) if isinstance(last, dict) else last
    return content if isinstance(content, str) else str(content[-1].get("text", ""))


def tools_to_call(asked: Asked) -> list[str]:
    """Return the names of the request's tools, until it has their results."""
    if any("tool" in str(entry.get("role")) or "call" in str(entry.get("type")) for entry in entries(asked)):
        return []
    return [(tool.get("function") or tool)["name"] for tool in asked.body.get("tools") or ()]


def entries(asked: Asked) -> list[dict[str, Any]]:
    given = asked.body.get("messages") or asked.body.get("input") or []
    return [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []


def reply(asked: Asked) -> dict[str, Any]:
    text = last_text(asked).upper()
    path = asked.path
    names = tools_to_call(asked)
    if names and path.endswith("/chat/completions"):
        question = json.dumps({"question": text.lower()})
        calls = [
            {"id": f"call_{n}", "type": "function", "function": {"name": name, "arguments": question}}
            for n, name in enumerate(names)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": choices,
            "usage": USAGE,
        }
    if names and path.endswith("/responses"):
        items = [
            {"type": "function_call", "id": f"fc_{n}", "call_id": f"call_{n}", "name": name, "status": "completed",
             "arguments": json.dumps({"question": text.lower()})}
            for n, name in enumerate(names)
        ]  # fmt: skip
        return {**response_of(""), "output": items}
    if path.endswith("/chat/completions"):
        choices = [
            {"index": n, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            for n in range(asked.body.get("n") or 1)
        ]
        return {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": choices,
            "usage": USAGE,
        }
    if path.endswith("/responses"):
        return response_of(text)
    if path.endswith("/embeddings"):
        data = [{"object": "embedding", "index": 0, "embedding": [1.0]}]
        return {
            "object": "list",
            "model": "m",
            "data": data,
            "usage": {"prompt_tokens": 7, "total_tokens": 7},
        }
    if path.endswith("/messages/count_tokens"):
        return {"input_tokens": 7}
    if path.endswith("/messages"):
        return message_of([{"type": "text", "text": text}], "end_turn")
    if path.endswith("/converse"):
        return {
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": "end_turn",
            "usage": {"inputTokens": 7, "outputTokens": 3, "totalTokens": 10},
            "metrics": {"latencyMs": 1},
        }
    if "generateContent" in path:
        return gemini_of(text, "STOP")
    return {"echo": text, "in": 7, "out": 3}


def response_of(text: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "i", "status": "completed", "role": "assistant", "content": content}
    usage = {
        "input_tokens": 7, "output_tokens": 3, "total_tokens": 10,
        "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
    }  # fmt: skip
    return {
        "id": "r", "object": "response", "created_at": 0, "status": "completed", "model": "m", "output": [item],
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "usage": usage,
    }  # fmt: skip


def message_of(content: list[dict[str, Any]], stop: str | None) -> dict[str, Any]:
    return {
        "id": "a", "type": "message", "role": "assistant", "model": "m", "content": content, "stop_reason": stop,
        "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 3 if stop else 0},
    }  # fmt: skip


def gemini_of(text: str, stop: str | None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if stop:
        candidate["finishReason"] = stop
    usage = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}


def events(asked: Asked) -> list[bytes]:
    words = last_text(asked).upper().split()
    words = [word + " " for word in words[:-1]] + words[-1:]
    path = asked.path
    if path.endswith("/responses"):
        return [named(event["type"], event) for event in response_events(words)]
    if path.endswith("/messages"):
        return [named(event["type"], event) for event in message_events(words)]
    if "GenerateContent" in path:
        return [
            data(gemini_of(word, "STOP" if n == len(words) - 1 else None)) for n, word in enumerate(words)
        ]
    chunks = [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"content": word}) for word in words),
        chunk({}, "stop"),
    ]
    if (asked.body.get("stream_options") or {}).get("include_usage"):
        chunks.append({**chunk({}), "choices": [], "usage": USAGE})
    return [*map(data, chunks), b"data: [DONE]\n\n"]


def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}


def response_events(words: list[str]) -> list[dict[str, Any]]:
    whole = response_of("".join(words))
    item = whole["output"][0]
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": "i", "output_index": 0, "content_index": 0}
    found: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {**item, "content": [], "status": "in_progress"},
        },
        {"type": "response.content_part.added", **at, "part": part},
        *({"type": "response.output_text.delta", **at, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **at, "text": "".join(words), "logprobs": []},
        {"type": "response.content_part.done", **at, "part": item["content"][0]},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [{**event, "sequence_number": n} for n, event in enumerate(found)]


def message_events(words: list[str]) -> list[dict[str, Any]]:
    return [
        {"type": "message_start", "message": message_of([], None)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            for word in words
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 3},
        },
        {"type": "message_stop"},
    ]


def data(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def named(name: str, event: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + data(event)


async def first_of(found: AsyncIterator[Any]) -> Any:
    return await anext(found)
