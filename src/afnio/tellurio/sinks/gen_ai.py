"""The names of attributes on spans: OpenTelemetry's for generative AI, and Afnio's own.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (in development there, so all of its names are
here and nowhere else).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from afnio.runtime.events import CallEnded, CallReplayed

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
OUTPUT_TYPE: Final = "gen_ai.output.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
PARAMETERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
}

RUN: Final = "afnio.run"
RUN_NAME: Final = "afnio.run.name"
ADDRESS: Final = "afnio.address"
PURPOSE: Final = "afnio.purpose"
LANE: Final = "afnio.lane"
ATTEMPT: Final = "afnio.attempt"
ATTEMPTS: Final = "afnio.attempts"
WAITED: Final = "afnio.waited"
COST: Final = "afnio.cost"
REPLAYED: Final = "afnio.replayed"
SCORE: Final = "afnio.score"
SUCCESS: Final = "afnio.success"
OPTIMIZER: Final = "afnio.optimizer"
UPDATES: Final = "afnio.updates"

Attributes = dict[str, Any]


def of_call(event: CallEnded | CallReplayed, *, content: bool) -> Attributes:
    """Return the attributes of a call's span; what was asked and answered only if `content` is wanted."""
    url = urlsplit(event.account)
    found: Attributes = {
        OPERATION: "chat",
        PROVIDER: _provider(url.hostname or ""),
        REQUEST_MODEL: event.model,
        SERVER_ADDRESS: url.hostname or "",
        ADDRESS: event.address,
        PURPOSE: event.purpose,
    }
    if url.port is not None:
        found[SERVER_PORT] = url.port
    if event.lane is not None:
        found[LANE] = event.lane
    params = getattr(event.request, "params", {})
    found |= {PARAMETERS[name]: value for name, value in params.items() if name in PARAMETERS}
    if params.get("response_format"):
        found[OUTPUT_TYPE] = "json"
    found |= _of_reply(event.reply)
    if isinstance(event, CallReplayed):
        found[REPLAYED] = True
    else:
        found |= {ATTEMPTS: event.attempts, WAITED: event.waited}
        found |= {} if event.cost is None else {COST: float(event.cost)}
        found |= {} if event.error is None else {ERROR_TYPE: event.error.partition(":")[0]}
    return found | (_content(event) if content else {})


def _of_reply(reply: Any) -> Attributes:
    if reply is None:
        return {}
    usage = reply.usage
    return {
        RESPONSE_MODEL: reply.model,
        FINISH_REASONS: [reply.finish_reason] if reply.finish_reason else [],
        INPUT_TOKENS: usage.prompt_tokens,
        OUTPUT_TOKENS: usage.completion_tokens,
        CACHED_TOKENS: usage.cached_tokens,
        REASONING_TOKENS: usage.reasoning_tokens,
    }


def _content(event: CallEnded | CallReplayed) -> Attributes:
    found: Attributes = {}
    if event.request is not None:
        found[INPUT_MESSAGES] = _dumped([_message(message) for message in event.request.messages])
    if event.reply is not None:
        reason = event.reply.finish_reason
        answer = {"role": "assistant", "parts": _parts(event.reply.content or ""), "finish_reason": reason}
        found[OUTPUT_MESSAGES] = _dumped([answer])
    return found


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message["role"], "parts": _parts(message.get("content") or "")}


def _parts(content: Any) -> list[dict[str, Any]]:
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return [{"type": "text", "content": text} for text in texts]


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _provider(host: str) -> str:
    """Return the name that the convention has for who serves at `host`; endpoints like OpenAI's count as it."""
    return "azure.ai.openai" if host.endswith(".openai.azure.com") else "openai"
