"""OpenTelemetry's conventions for generative AI: the attributes of a call, its texts, and a score.

Source: https://github.com/open-telemetry/semantic-conventions-genai. The conventions are still changing and have no
release of their own yet, so their names are only written here, and `CONVENTIONS` says which state they follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from afnio.runtime.events import CallEnded, CallReplayed, SampleScored

# The last release in the old repository, and the commit in the new one. Sent with the instrumentation scope.
CONVENTIONS: Final = "1.41.0+32c328e"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING: Final = "gen_ai.usage.reasoning.output_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
TOOLS: Final = "gen_ai.tool.definitions"
OUTPUT_TYPE: Final = "gen_ai.output.type"
SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
PARAMETERS: Final = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "reasoning_effort": "gen_ai.request.reasoning.level",
    "seed": "gen_ai.request.seed",
    "stop": "gen_ai.request.stop_sequences",
}

EVALUATION: Final = "gen_ai.evaluation.result"
EVALUATION_NAME: Final = "gen_ai.evaluation.name"
SCORE_VALUE: Final = "gen_ai.evaluation.score.value"
SCORE_LABEL: Final = "gen_ai.evaluation.score.label"
EXPLANATION: Final = "gen_ai.evaluation.explanation"

DURATION: Final = "gen_ai.client.inference.duration"
EMBEDDING_DURATION: Final = "gen_ai.client.operation.duration"
# The bounds of the buckets of durations.
SECONDS: Final = tuple(0.01 * 2**power for power in range(14))
# The counters of tokens, by the attribute with the number.
SPENT: Final = {
    INPUT_TOKENS: "gen_ai.client.inference.usage.input_tokens",
    OUTPUT_TOKENS: "gen_ai.client.inference.usage.output_tokens",
    CACHE_READ: "gen_ai.client.inference.usage.cache_read.input_tokens",
    CACHE_WRITE: "gen_ai.client.inference.usage.cache_write.input_tokens",
    REASONING: "gen_ai.client.inference.usage.reasoning.output_tokens",
}
# The histograms of tokens, by the attribute with the number.
SIZES: Final = {
    INPUT_TOKENS: "gen_ai.client.inference.operation.input_tokens",
    OUTPUT_TOKENS: "gen_ai.client.inference.operation.output_tokens",
}
# The bounds of the buckets of tokens.
TOKENS: Final = tuple(4**power for power in range(14))
# The attributes of a call that its metrics have too.
DIMENSIONS: Final = (
    OPERATION, PROVIDER, REQUEST_MODEL, RESPONSE_MODEL, SERVER_ADDRESS, SERVER_PORT, ERROR_TYPE,
)  # fmt: skip

# Afnio's own attributes
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

EMBEDDINGS: Final = "embeddings"
# The operation of a replayed call: a reply is read again, nothing is inferred, and no tokens are used.
FETCH: Final = "fetch_response"
_OPERATIONS: Final = {"embeddings": EMBEDDINGS, "generateContent": "generate_content"}
_PORTS: Final = {"http": 80, "https": 443}


def of_call(event: CallEnded | CallReplayed, *, content: bool) -> Attributes:
    """Return the attributes of a call's span, with prompt, reply and tools if `content` is set."""
    url = urlsplit(event.account)
    dialect = getattr(getattr(event.request, "dialect", None), "name", "")
    replayed = isinstance(event, CallReplayed)
    attributes: Attributes = {
        OPERATION: FETCH if replayed else _OPERATIONS.get(dialect, "chat"),
        PROVIDER: provider_of(url.hostname or "", dialect),
        REQUEST_MODEL: event.model,
        SERVER_ADDRESS: url.hostname or "",
        ADDRESS: event.address,
        PURPOSE: event.purpose,
    }
    port = url.port or _PORTS.get(url.scheme)
    if port is not None:
        attributes[SERVER_PORT] = port
    if event.lane is not None:
        attributes[LANE] = event.lane
    params = getattr(event.request, "params", {})
    attributes |= {PARAMETERS[name]: value for name, value in params.items() if name in PARAMETERS}
    if isinstance(params.get("stop"), str):
        attributes[PARAMETERS["stop"]] = [params["stop"]]
    if params.get("response_format"):
        attributes[OUTPUT_TYPE] = "json"
    attributes |= _of_reply(event.reply)
    if isinstance(event, CallReplayed):
        attributes[REPLAYED] = True
    else:
        attributes |= _of_usage(event)
        attributes |= {ATTEMPTS: event.attempts, WAITED: event.waited}
        attributes |= {} if event.cost is None else {COST: float(event.cost)}
        attributes |= {} if event.error is None else {ERROR_TYPE: event.error.partition(":")[0]}
    return attributes | (_content(event) if content else {})


_HOSTS: Final = {
    ".openai.azure.com": "azure.ai.openai",
    ".services.ai.azure.com": "azure.ai.inference",
    ".models.ai.azure.com": "azure.ai.inference",
    ".amazonaws.com": "aws.bedrock",
    "api.anthropic.com": "anthropic",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.openai.com": "openai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "generativelanguage.googleapis.com": "gcp.gemini",
}


def provider_of(host: str, dialect: str = "") -> str:
    """Return the convention's name for the provider at `host`. Unknown hosts are named by the API that they speak.

    >>> provider_of("eu-aiplatform.googleapis.com"), provider_of("127.0.0.1"), provider_of("proxy", "messages")
    ('gcp.vertex_ai', 'openai', 'anthropic')
    """
    named = next((name for end, name in _HOSTS.items() if host.endswith(end)), None)
    return named or {"messages": "anthropic", "generateContent": "gcp.gemini"}.get(dialect, "openai")


def _of_reply(reply: Any) -> Attributes:
    if reply is None:
        return {}
    attributes: Attributes = {RESPONSE_MODEL: reply.model}
    if reply.finish_reason:
        attributes[FINISH_REASONS] = [reply.finish_reason]
    if name := getattr(reply, "id", ""):
        attributes[RESPONSE_ID] = name
    return attributes


def _of_usage(event: CallEnded) -> Attributes:
    """Return the tokens of a call, over all attempts. A provider that counts none gives none."""
    usage = event.usage
    # Only Anthropic's replies count what they write to a cache.
    counted = getattr(event.reply, "json", {}).get("usage")
    written = counted.get("cache_creation_input_tokens") if isinstance(counted, Mapping) else None
    details = {
        CACHE_READ: usage.cached_tokens,
        CACHE_WRITE: written if isinstance(written, int) else 0,
        REASONING: usage.reasoning_tokens,
    }
    if not usage.total_tokens:
        return {}
    return {
        INPUT_TOKENS: usage.prompt_tokens,
        OUTPUT_TOKENS: usage.completion_tokens,
        **{name: tokens for name, tokens in details.items() if tokens},
    }


def of_score(event: SampleScored, evaluator: str, *, content: bool) -> Attributes:
    """Return the attributes of the event `EVALUATION`; the explanation, which quotes the sample, with `content`."""
    attributes: Attributes = {EVALUATION_NAME: evaluator, SCORE_LABEL: "pass" if event.success else "fail"}
    if isinstance(event.score, int | float):
        attributes[SCORE_VALUE] = float(event.score)
    if content and event.explanation:
        attributes[EXPLANATION] = event.explanation
    return attributes


# Texts


def _content(event: CallEnded | CallReplayed) -> Attributes:
    attributes: Attributes = {}
    if event.request is not None:
        attributes[INPUT_MESSAGES] = _dumped([_message(message) for message in event.request.messages])
        body = getattr(event.request, "json", None) or event.request.params
        if tools := _tools(body.get("tools")):
            attributes[TOOLS] = _dumped(tools)
    if event.reply is not None:
        calls = [_tool_call(call.id, call.name, call.arguments) for call in event.reply.tool_calls]
        answer = {"role": "assistant", "parts": [*_parts(event.reply.content), *calls]}
        # Deprecated, but readers such as Phoenix drop a message without it.
        reason = {"finish_reason": event.reply.finish_reason or ""}
        attributes[OUTPUT_MESSAGES] = _dumped([answer | reason])
    return attributes


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message of OpenAI's chat completions, in whose form all requests show theirs."""
    if message.get("role") == "tool":
        response = {"type": "tool_call_response", "id": message.get("tool_call_id")}
        return {"role": "tool", "parts": [{**response, "response": message.get("content")}]}
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        calls.append(_tool_call(call.get("id"), function.get("name"), function.get("arguments")))
    return {"role": message.get("role", "user"), "parts": [*_parts(message.get("content")), *calls]}


def _parts(content: Any) -> list[dict[str, Any]]:
    """Return text parts; of other parts, such as images, only their type."""
    if not content:
        return []
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [
        {"type": "text", "content": part["text"]} if "text" in part else {"type": part.get("type", "other")}
        for part in content
    ]


def _tool_call(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:  # a model may write anything
        parsed = arguments
    return {"type": "tool_call", "id": call_id, "name": name or "", "arguments": parsed}


def _tools(tools: Any) -> list[dict[str, Any]]:
    """Return tools in one form, whether an OpenAI, Anthropic or Gemini API describes them."""
    definitions = []
    for tool in tools if isinstance(tools, Sequence) else ():
        for one in tool.get("functionDeclarations") or (tool.get("function") or tool,):
            parameters = one.get("parameters") or one.get("input_schema") or one.get("parametersJsonSchema")
            definition = {
                "type": tool.get("type", "function"),
                "name": one.get("name", ""),
                "description": one.get("description"),
                "parameters": parameters,
            }
            definitions.append({name: value for name, value in definition.items() if value is not None})
    return definitions


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
