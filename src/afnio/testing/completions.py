"""The bodies of the chat completions API: requests, replies, errors."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from afnio.testing.simulated.conversation import text_of

if TYPE_CHECKING:
    from collections.abc import Collection


class ApiError(Exception):
    """An error as the API reports it: `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()


def count_tokens(text: str) -> int:
    """Return the number of tokens by this kit's rule: a quarter of the UTF-8 bytes, rounded up.

    >>> count_tokens("abcde")
    2
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // 4)


def prompt_tokens(request: dict[str, Any]) -> int:
    """Return the tokens of all message texts of a checked request."""
    return sum(count_tokens(text_of(message)) for message in request["messages"])


def read_request(body: bytes, models: Collection[str] | None) -> dict[str, Any]:
    """Return the request in `body`, or raise the ApiError that the API would answer."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON; send one JSON object.") from None
    if not isinstance(request, dict):
        raise ApiError(400, f"The body is a JSON [{type(request).__name__}]; send an object.")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "The request has no [messages]; send a list of at least one message.")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise ApiError(400, "An entry of [messages] has no role; send objects with role and content.")
    if request.get("stream"):
        raise ApiError(400, "This provider cannot stream; leave out [stream] or set it to false.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "The request has no [model]; name one.")
    if models is not None and model not in models:
        raise ApiError(404, f"The model [{model}] does not exist.", code="model_not_found")
    return request


def reply_limit(request: dict[str, Any]) -> int:
    """Return the most tokens that the reply may have; 0 where the request sets no limit."""
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    return limit if isinstance(limit, int) and limit > 0 else 0


def completion(
    request: dict[str, Any], reply: str | dict[str, Any], index: int, asked: int
) -> tuple[dict[str, Any], int]:
    """Return the reply's body and its tokens; a dict is sent as its JSON.

    Args:
        asked: the request's `prompt_tokens`.
    """
    text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
    reason, limit = "stop", reply_limit(request)
    if limit and count_tokens(text) > limit:
        text, reason = text.encode()[: limit * 4].decode("utf-8", "ignore"), "length"
    given = count_tokens(text)
    body = {
        "id": f"chatcmpl-simulated-{index}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": given,
            "total_tokens": asked + given,
        },
    }
    return body, given
