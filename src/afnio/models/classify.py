"""Classify: what a reply means, a response or an error worth another attempt or not.

Covers what OpenAI-compatible providers really do, errors behind status 200 included.
"""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError
from afnio.models.header_times import DAY, seconds_ahead
from afnio.models.response import ChatBody, ChatResponse
from afnio.runtime.told import tell_once

TRANSIENT: Final = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
LONGEST_WAIT: Final = 600.0
"""Seconds that a provider is left alone at its own wish, at most."""
OUT_OF_MONEY: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


def read_reply(status: int, headers: Mapping[str, str], body: bytes, url: str) -> ChatResponse:
    """Return the response that `body` holds.

    Raises:
        RateLimitedError: status 429 with quota left.
        TransientModelError: 5xx, a body that is no completion.
        FinalModelError: everything that another attempt would not change.
    """
    if status != 200:
        raise status_error(status, headers, _json(body), body, url)
    try:
        parsed = ChatBody.model_validate_json(body)
    except ValidationError as error:
        raise TransientModelError(
            f"{url} answered 200 with a body that is no chat completion ({_start(body)})", status=status
        ) from error
    if not parsed.choices:
        if parsed.error is not None:
            raise status_error(_status_in(parsed.error), headers, {"error": parsed.error}, body, url)
        raise TransientModelError(f"{url} answered 200 with no choices ({_start(body)})", status=status)
    return _usable(parsed.response(), url)


def status_error(status: int, headers: Mapping[str, str], parsed: Any, body: bytes, url: str) -> ModelError:
    """Return the error that an HTTP status and its body stand for."""
    error = parsed.get("error", parsed) if isinstance(parsed, Mapping) else None
    fields = error if isinstance(error, Mapping) else {}
    code = fields.get("code") or fields.get("type")
    said = str(fields.get("message") or (error if isinstance(error, str) else _start(body)))
    message = f"{url} answered {status}: {said}"
    wait = retry_after(headers, url)
    if status == 429:
        if code in OUT_OF_MONEY or fields.get("type") in OUT_OF_MONEY:
            return FinalModelError(
                f"{message} (the account is out of quota: check its billing)", status=status
            )
        return RateLimitedError(message, status=status, retry_after=wait)
    if status in TRANSIENT or status >= 500:
        return TransientModelError(message, status=status, retry_after=wait)
    if status == 401:
        message += " (check api_key or OPENAI_API_KEY)"
    return FinalModelError(message, status=status)


def retry_after(headers: Mapping[str, str], url: str = "the provider") -> float | None:
    """Return the seconds that the provider asks to wait: `retry-after-ms`, seconds, or an HTTP date.

    At most ten minutes, as one refused request more does no harm and a wrong header must not stop the
    account; None for more than a day, which can't be meant. Both are told once for each URL.

    >>> retry_after({"retry-after-ms": "1500"})
    1.5
    """
    for name, in_a_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        text = headers.get(name)
        asked = _seconds(text, in_a_second)
        if asked is None:
            continue
        seconds = seconds_ahead(asked)
        if seconds is None:
            told = "%s says %s: %.40s, which is more than a day and is ignored"
            tell_once(url, f"{name}, ignored", told, name, text)
        elif seconds > LONGEST_WAIT:
            told = "%s says %s: %.40s, which is long; it is asked again after %.0f s"
            tell_once(url, name, told, name, text, LONGEST_WAIT)
            return LONGEST_WAIT
        else:
            return seconds
    return None


def _seconds(text: str | None, in_a_second: int) -> float | None:
    number = _number(text)
    if number is not None:
        return max(0.0, number / in_a_second)
    try:
        date = email.utils.parsedate_to_datetime(text or "")
        seconds = date.timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if seconds <= DAY else math.inf


def _usable(response: ChatResponse, url: str) -> ChatResponse:
    if response.content or response.tool_calls:
        return response
    if response.finish_reason == "length":
        raise FinalModelError(
            f"{url} used up its output tokens before the first word ({response.usage.completion_tokens} "
            "tokens); raise max_completion_tokens or lower reasoning_effort",
            status=200,
        )
    if response.finish_reason == "content_filter":
        raise FinalModelError(f"{url} filtered the reply (finish_reason=content_filter)", status=200)
    return response


def _status_in(error: Any) -> int:
    code = error.get("code") if isinstance(error, Mapping) else None
    if code in OUT_OF_MONEY or code == "rate_limit_exceeded":
        return 429
    if isinstance(code, int) and 400 <= code < 600:
        return code
    return 500


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _number(text: str | None) -> float | None:
    try:
        number = None if text is None else float(text)
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None


def _start(body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    return f"it starts {text[:120]!r}" if text else "it is empty"
