"""Replies: read a provider's HTTP response as a `ChatResponse` or as an error that can be retried or not.

OpenAI-compatible servers differ in everything but the happy path. They report errors with status 200, send content in
parts, token counts as strings, times as durations, dates or Unix time, and bodies in UTF-16. `read_reply` is tolerant
with all that Afnio can do without, and strict with the text itself: an unreadable reply is an error, never an empty
text.

The rest of the file reads headers: how long the provider asks to wait (`retry_after`), and what it reports about the
account's limits (`read_limits`). Implausible values are logged once for each URL and ignored: a wrong header must not
stop an account.

pydantic parses the bodies. So this module is imported together with a provider's client, and not by `import afnio`.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

from pydantic import BaseModel, ValidationError

from afnio.errors import (
    FinalModelError,
    ModelError,
    RateLimitedError,
    TierUnavailableError,
    TransientModelError,
)
from afnio.models._messages import ChatResponse, ToolCall
from afnio.runtime._limits import NO_LIMIT, LimitReading, RateLimits, warn_once
from afnio.runtime.events import Usage

Q = TypeVar("Q")
R = TypeVar("R")

TRANSIENT: Final = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
# The longest wait in seconds that a provider's header can cause.
LONGEST_WAIT: Final = 600.0
OUT_OF_MONEY: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
# Codes of a service tier without room: OpenAI's (status 429) and Groq's (498).
NO_ROOM: Final = frozenset({"resource_unavailable", "capacity_exceeded"})
# The most characters of a provider's message that an error quotes.
LONGEST: Final = 2000


def read_reply(status: int, headers: Mapping[str, str], body: bytes, url: str) -> ChatResponse:
    """Return the response in `body`. It, or the error, has the limits that the headers report.

    Raises:
        TierUnavailableError: for a status 429 or 498 that is about the service tier.
        RateLimitedError: for any other status 429, unless the account's quota is used up.
        TransientModelError: for 5xx, or if the body isn't a chat completion.
        FinalModelError: for everything that another attempt wouldn't change.
    """
    limits = read_limits(headers, url)
    try:
        return _read(status, headers, body, url, limits)
    except ModelError as error:
        error.limits = limits
        raise


def _read(
    status: int, headers: Mapping[str, str], body: bytes, url: str, limits: RateLimits | None
) -> ChatResponse:
    if status != 200:
        raise status_error(status, headers, _json(body), body, url)
    parsed = _parse(body)
    if parsed is None:  # no `from`: the parser's error would keep the whole body alive
        raise TransientModelError(
            f"{url} answered 200 with a body that isn't a chat completion ({_start(body)})", status=status
        )
    if not parsed.choices:
        if parsed.error is not None:
            raise status_error(_status_in(parsed.error), headers, {"error": parsed.error}, body, url)
        raise TransientModelError(f"{url} answered 200 with no choices ({_start(body)})", status=status)
    return _usable(parsed.response(limits), url)


def status_error(status: int, headers: Mapping[str, str], parsed: Any, body: bytes, url: str) -> ModelError:
    """Return the error for an HTTP status and its body."""
    if 300 <= status < 400:
        return _redirect_error(status, headers.get("location"), url)
    error = parsed.get("error", parsed) if isinstance(parsed, Mapping) else None
    fields = error if isinstance(error, Mapping) else {}
    text = str(fields.get("message") or (error if isinstance(error, str) else _start(body)))
    message = f"{url} answered {status}: {text[:LONGEST]}"
    wait = retry_after(headers, url)
    if status in (429, 498) and (NO_ROOM & _codes(fields) or text.lower().startswith("resource unavailable")):
        return TierUnavailableError(message, status=status, retry_after=wait)
    if status == 429:
        if OUT_OF_MONEY & _codes(fields):
            return FinalModelError(
                f"{message} (the account is out of quota: check its billing)", status=status
            )
        return RateLimitedError(message, status=status, retry_after=wait)
    if status in TRANSIENT or status >= 500:
        if headers.get("x-should-retry") == "false":  # as a gateway says, which has retried it
            return FinalModelError(message, status=status)
        return TransientModelError(message, status=status, retry_after=wait)
    if status == 401 and "afnio_gateway" not in _codes(fields):
        message += " (check api_key or OPENAI_API_KEY)"
    return FinalModelError(message, status=status)


async def send_at_tier(send: Callable[[Q], Awaitable[R]], request: Q, standard: Callable[[Q], Q] | None) -> R:
    """Send a request, and send it again at the standard service tier if its own has no room.

    It is one attempt: the account has let it in, and nothing was charged.

    Args:
        standard: returns the request at the standard tier, or None to wait for room.

    Raises:
        ModelError: as `send` does.
    """
    try:
        return await send(request)
    except TierUnavailableError:
        if standard is None:
            raise
    return await send(standard(request))


def _redirect_error(status: int, location: str | None, url: str) -> FinalModelError:
    """Return the error for a redirect. Following it would send the key and the prompts to another host."""
    target = _address(location, url)
    if target is None:
        return FinalModelError(
            f"{url} answered {status}, a redirect to nowhere; check base_url", status=status
        )
    return FinalModelError(
        f"{url} answered {status}, a redirect to {target}, which is not followed because the key and the prompts would "
        "go there; set base_url (azure_endpoint for Azure) to that address if it is the provider's",
        status=status,
    )


def _address(location: str | None, url: str) -> str | None:
    """Return the target of a redirect as a base URL, without credentials and query. None if there is none."""
    try:
        parts = urlsplit(urljoin(f"{url}/chat/completions", location or ""))
        host = parts.netloc.rpartition("@")[2]
        target = urlunsplit((parts.scheme, host, parts.path.removesuffix("/chat/completions"), "", ""))
    except ValueError:
        return None
    return ascii(target[:200])[1:-1] if location else None


def retry_after(headers: Mapping[str, str], url: str = "the provider") -> float | None:
    """Return the seconds that the provider asks to wait, or None.

    It reads `retry-after-ms`, and `retry-after` as seconds or as an HTTP date (RFC 9110). Ten minutes is the maximum:
    an early request does no harm, a wrong header could stop the account for hours. More than a day is a mistake and
    counts as None. Both are logged once for each URL.

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
            message = "%s sent %s: %.40s, which is more than a day and is ignored"
            warn_once(url, f"{name}, ignored", message, name, text)
        elif seconds > LONGEST_WAIT:
            message = "%s sent %s: %.40s, which is long; the next request follows after %.0f s"
            warn_once(url, name, message, name, text, LONGEST_WAIT)
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
    if not isinstance(error, Mapping):
        return 500
    codes = _codes(error)
    if (OUT_OF_MONEY | NO_ROOM) & codes or "rate_limit_exceeded" in codes:
        return 429
    code = error.get("code")
    if isinstance(code, str) and code.isascii() and code.isdecimal():
        code = int(code[:4])
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _codes(fields: Mapping[str, Any]) -> set[str]:
    """Return an error's code and type, if they are strings. Some servers send lists or dicts."""
    return {code for code in (fields.get("code"), fields.get("type")) if isinstance(code, str)}


# The body
#
# Only the text and the tool calls have types. Any other field may be missing or odd without losing the reply.

# Types of the message parts that are the model's answer, rather than its thoughts.
_TEXT: Final = ("text", "output_text", "refusal")


class _Function(BaseModel):
    name: str
    arguments: Any = ""


class _ToolCall(BaseModel):
    id: Any = ""
    function: _Function


class _Part(BaseModel):
    type: Any = "text"
    text: str | None = None
    refusal: str | None = None


class _Message(BaseModel):
    content: str | list[str | _Part] | _Part | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None


class ChatBody(BaseModel):
    """The parts of a chat completion's body that Afnio reads.

    Source: https://platform.openai.com/docs/api-reference/chat/object
    """

    choices: list[_Choice] | None = None
    model: Any = None
    id: Any = None
    usage: Any = None
    service_tier: Any = None
    error: Any = None

    def response(self, limits: RateLimits | None) -> ChatResponse:
        """Return the first choice. There must be one."""
        assert self.choices
        choice = self.choices[0]
        message, reason = choice.message, choice.finish_reason
        return ChatResponse(
            # A refusal is the model's answer. Without it a critic would have to judge an empty text.
            content=message.refusal if message.content is None else _text(message.content),
            tool_calls=tuple(
                ToolCall(id=str(c.id or ""), name=c.function.name, arguments=_arguments(c.function.arguments))
                for c in message.tool_calls or ()
            ),
            finish_reason=reason if isinstance(reason, str) else None,
            model=self.model if isinstance(self.model, str) else "",
            id=self.id if isinstance(self.id, str) else "",
            usage=_counted(self.usage),
            service_tier=self.service_tier if isinstance(self.service_tier, str) else "",
            limits=limits,
        )


def _text(content: str | list[str | _Part] | _Part) -> str:
    """Return the text of a message. Mistral and others send it in parts, some of which are thoughts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else _text_of(part) for part in parts)


def _text_of(part: _Part) -> str:
    return (part.text or part.refusal or "") if part.type in _TEXT else ""


def _arguments(arguments: Any) -> str:
    """Return a tool's arguments as JSON. Ollama and others send the object instead of a string."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _counted(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _detail(usage.get("prompt_tokens_details"), "cached_tokens"),
        _detail(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _detail(details: Any, name: str) -> int:
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    """Return a count of tokens as an int, rounded up. 0 if it isn't a number."""
    if value is None or type(value) is int:
        return value or 0
    try:
        return math.ceil(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0


def _parse(body: bytes) -> ChatBody | None:
    """Return the parsed body, or None if it isn't a chat completion."""
    try:
        return ChatBody.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] != "json_invalid":
            return None
    try:
        return ChatBody.model_validate_json(_mended(body))
    except (ValueError, RecursionError):
        return None


def _mended(body: bytes) -> bytes:
    """Return JSON in clean UTF-8 for a body with a wrong encoding.

    Some come in UTF-16, with a byte order mark, or with half a character where a token limit cut the text.
    """
    text = body.decode(json.detect_encoding(body), "replace")
    return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
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


# Rate limit headers
#
# Source: https://platform.openai.com/docs/guides/rate-limits


_UNITS: Final = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART: Final = re.compile(r"(\d+(?:\.(\d+))?)(ms|us|µs|ns|d|h|m|s)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


def read_limits(headers: Mapping[str, str], url: str = "the provider") -> RateLimits | None:
    """Return the limits that the `x-ratelimit-*` headers report, or None if there are none.

    >>> read_limits({"x-ratelimit-limit-tokens": "9000", "x-ratelimit-remaining-tokens": "8000"})
    RateLimits(requests=None, tokens=LimitReading(limit=9000, remaining=8000, reset=None, precision=0.0))
    """
    requests, tokens = read_limit(headers, "requests", url), read_limit(headers, "tokens", url)
    return None if requests is None and tokens is None else RateLimits(requests, tokens)


def read_limit(headers: Mapping[str, str], kind: str, url: str = "the provider") -> LimitReading | None:
    """Return the limit of `requests` or `tokens` that the headers report, or None.

    Implausible values are logged once for each URL.

    >>> read_limit({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
    ...             "x-ratelimit-reset-requests": "1s"}, "requests")
    LimitReading(limit=60, remaining=59, reset=1.0, precision=0.0005)
    """
    limit = _whole(headers.get(f"x-ratelimit-limit-{kind}"))
    remaining = _whole(headers.get(f"x-ratelimit-remaining-{kind}"))
    if limit is None or remaining is None or limit < 1:
        return None
    if limit >= NO_LIMIT:
        name = f"x-ratelimit-limit-{kind}"
        warn_once(url, name, "%s sent %s: %.40s, which is taken for no limit", name, headers[name])
        return None
    reset, precision = _read_reset(headers.get(f"x-ratelimit-reset-{kind}"), kind, url)
    return LimitReading(limit, max(0, min(remaining, limit)), reset, precision)


def _read_reset(text: str | None, kind: str, url: str) -> tuple[float | None, float]:
    number, precision = read_duration(text)
    if number is None:
        return None, 0.0
    reset = seconds_ahead(number)
    if reset == number:
        return reset, precision
    name = f"x-ratelimit-reset-{kind}"
    if reset is None:
        warn_once(url, name, "%s sent %s: %.40s, which is more than a day and is ignored", name, text)
        return None, 0.0
    message = "%s sent %s: %.40s, which is taken for a Unix time, %.0f s from now"
    warn_once(url, name, message, name, text, reset)
    return reset, 1.0


def read_duration(text: str | None) -> tuple[float | None, float]:
    """Return a duration such as `6m0s`, `20ms` or `1.5` in seconds, and its largest rounding error.

    With units it is exact to half a millisecond or better. A plain number may be off by half of its last digit, a
    whole number by a second. Returns (None, 0.0) for anything else.

    >>> read_duration("6m0s"), read_duration("20ms"), read_duration("12")
    ((360.0, 0.0005), (0.02, 0.0005), (12.0, 1.0))
    """
    text = (text or "").strip()
    if _DURATION.fullmatch(text):
        parts = list(_PART.finditer(text))
        seconds = sum(float(part[1]) * _UNITS[part[3]] for part in parts)
        if not math.isfinite(seconds):
            return None, 0.0
        last = parts[-1]
        return seconds, min(5e-4, _UNITS[last[3]] * 10.0 ** -len(last[2] or "") / 2)
    try:
        seconds = float(text)
    except ValueError:
        return None, 0.0
    if not math.isfinite(seconds) or seconds < 0:
        return None, 0.0
    decimals = len(text.partition(".")[2])
    return seconds, 10.0**-decimals / 2 if decimals else 1.0


def _whole(text: str | None) -> int | None:
    try:
        number = None if text is None else float(text)
    except ValueError:
        return None
    return int(number) if number is not None and math.isfinite(number) else None


# Times in headers


DAY: Final = 86_400.0
# From here on, a number is a Unix time: no server means a duration of 30 years.
_UNIX: Final = 1e9
_UNIX_MS: Final = 1e11


def seconds_ahead(number: float) -> float | None:
    """Return the seconds from now for a duration or a Unix time, in seconds or milliseconds.

    None if that is more than a day: no limit lasts as long, so it is a mistake of the provider's.

    >>> seconds_ahead(60.0), seconds_ahead(1e300)
    (60.0, None)
    >>> round(seconds_ahead(time.time() + 60))
    60
    """
    if number >= _UNIX:
        number = (number / 1000 if number >= _UNIX_MS else number) - time.time()
    return max(0.0, number) if abs(number) <= DAY else None
