"""Classify: what a reply means, a response or an error worth another attempt or not.

Covers what OpenAI-compatible providers really do, errors behind status 200 included.
"""

from __future__ import annotations

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urljoin, urlsplit, urlunsplit

from pydantic import ValidationError

from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError
from afnio.models._messages import ChatBody, ChatResponse
from afnio.runtime._limits import NO_LIMIT, LimitReading, RateLimits, warn_once

TRANSIENT: Final = frozenset({408, 409, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
LONGEST_WAIT: Final = 600.0
"""Seconds that a provider is left alone at its own wish, at most."""
OUT_OF_MONEY: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
LONGEST: Final = 2000
"""Characters of what a provider says that an error repeats."""


def read_reply(status: int, headers: Mapping[str, str], body: bytes, url: str) -> ChatResponse:
    """Return the response in `body`. It, or the error, has the limits that the headers report.

    Raises:
        RateLimitedError: status 429 with quota left.
        TransientModelError: 5xx, or a body that isn't a completion.
        FinalModelError: everything that another attempt would not change.
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
    if parsed is None:  # raised without the parser's error, which would keep the whole body alive
        raise TransientModelError(
            f"{url} answered 200 with a body that is no chat completion ({_start(body)})", status=status
        )
    if not parsed.choices:
        if parsed.error is not None:
            raise status_error(_status_in(parsed.error), headers, {"error": parsed.error}, body, url)
        raise TransientModelError(f"{url} answered 200 with no choices ({_start(body)})", status=status)
    return _usable(parsed.response(limits), url)


def status_error(status: int, headers: Mapping[str, str], parsed: Any, body: bytes, url: str) -> ModelError:
    """Return the error that an HTTP status and its body stand for."""
    if 300 <= status < 400:
        return _redirect_error(status, headers.get("location"), url)
    error = parsed.get("error", parsed) if isinstance(parsed, Mapping) else None
    fields = error if isinstance(error, Mapping) else {}
    said = str(fields.get("message") or (error if isinstance(error, str) else _start(body)))
    message = f"{url} answered {status}: {said[:LONGEST]}"
    wait = retry_after(headers, url)
    if status == 429:
        if OUT_OF_MONEY & _codes(fields):
            return FinalModelError(
                f"{message} (the account is out of quota: check its billing)", status=status
            )
        return RateLimitedError(message, status=status, retry_after=wait)
    if status in TRANSIENT or status >= 500:
        return TransientModelError(message, status=status, retry_after=wait)
    if status == 401:
        message += " (check api_key or OPENAI_API_KEY)"
    return FinalModelError(message, status=status)


def _redirect_error(status: int, location: str | None, url: str) -> FinalModelError:
    """Return the error for a redirect, which nobody follows: the key and the prompts would go along."""
    target = _address(location, url)
    if target is None:
        return FinalModelError(
            f"{url} answered {status}, a redirect to nowhere; check base_url", status=status
        )
    return FinalModelError(
        f"{url} answered {status}, a redirect to {target}, which is not followed, as the key and the prompts would "
        "go there; set base_url (azure_endpoint for Azure) to that address if it is the provider's",
        status=status,
    )


def _address(location: str | None, url: str) -> str | None:
    """Return where a redirect leads as a base URL, without credentials and query."""
    try:
        parts = urlsplit(urljoin(f"{url}/chat/completions", location or ""))
        host = parts.netloc.rpartition("@")[2]
        target = urlunsplit((parts.scheme, host, parts.path.removesuffix("/chat/completions"), "", ""))
    except ValueError:
        return None
    return ascii(target[:200])[1:-1] if location else None


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
            warn_once(url, f"{name}, ignored", told, name, text)
        elif seconds > LONGEST_WAIT:
            told = "%s says %s: %.40s, which is long; it is asked again after %.0f s"
            warn_once(url, name, told, name, text, LONGEST_WAIT)
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
    if OUT_OF_MONEY & codes or "rate_limit_exceeded" in codes:
        return 429
    code = error.get("code")
    if isinstance(code, str) and code.isascii() and code.isdecimal():
        code = int(code[:4])
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _codes(fields: Mapping[str, Any]) -> set[str]:
    """Return the code and the type of an error, where they are names: some servers send lists or dicts."""
    return {code for code in (fields.get("code"), fields.get("type")) if isinstance(code, str)}


def _parse(body: bytes) -> ChatBody | None:
    """Return what the body holds; None where it is no chat completion."""
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
    """Return JSON in UTF-8 for what only its encoding makes unreadable.

    Replies come in UTF-16, with a byte order mark, or with half a character where a limit cut them.
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


# Rate headers: what a reply's `x-ratelimit-*` headers say about the account's limits.


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
    """Return what the headers say of the limit of `requests` or `tokens`; None where they don't.

    What can't be meant as it stands is told once for each URL.

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
        warn_once(url, name, "%s says %s: %.40s, which is taken for no limit", name, headers[name])
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
        warn_once(url, name, "%s says %s: %.40s, which is more than a day and is ignored", name, text)
        return None, 0.0
    told = "%s says %s: %.40s, which is taken for a Unix time, %.0f s from now"
    warn_once(url, name, told, name, text, reset)
    return reset, 1.0


def read_duration(text: str | None) -> tuple[float | None, float]:
    """Return a duration in seconds, and by how much its rounding may be off: `6m0s`, `20ms`, `1.5`.

    With units it is exact to the millisecond, as who writes them leaves out the zeros; a plain number may be
    off by half of its last digit, by a second where it is whole.

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


# Header times: what a number in a header says about when.


DAY: Final = 86_400.0
_UNIX: Final = 1e9
"""From here on a number is a Unix time, as durations of 30 years aren't meant."""
_UNIX_MS: Final = 1e11


def seconds_ahead(number: float) -> float | None:
    """Return the seconds from now that `number` means, as a duration or as a Unix time.

    None where that is more than a day: no limit is worth such a wait, so it is an error of the provider's.

    >>> seconds_ahead(60.0), seconds_ahead(1e300)
    (60.0, None)
    >>> round(seconds_ahead(time.time() + 60))
    60
    """
    if number >= _UNIX:
        number = (number / 1000 if number >= _UNIX_MS else number) - time.time()
    return max(0.0, number) if abs(number) <= DAY else None
