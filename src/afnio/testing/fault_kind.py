"""The kinds of faults, after what OpenAI-compatible providers and the machines before them really do."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, Final, Literal, final

from afnio.testing.completions import ApiError
from afnio.testing.fault import Fault
from afnio.testing.quota import duration

Group = Literal["transient", "silent", "final", "odd"]

_HTML: Final = "<html>\r\n<head><title>{0}</title></head>\r\n<body><h1>{0}</h1></body>\r\n</html>\r\n"
_AS_HTML: Final = {"content-type": "text/html"}


@final
@dataclass(frozen=True, slots=True)
class Occasion:
    """What a fault is made from.

    Args:
        reply: returns the completion that the request would have got.
        retry_after: seconds that a 429 asks to wait.
        drip: seconds that a dripping reply takes.
    """

    reply: Callable[[], dict[str, Any]]
    retry_after: float
    drip: float


@final
@dataclass(frozen=True, slots=True)
class FaultKind:
    """One way in which a request goes wrong.

    Args:
        group: whether another attempt may help, is made only after the client's own deadline, can't help, or isn't
            needed.
        at_the_gate: refused before it is worked on: without latency, and no quota is used.
    """

    name: str
    group: Group
    make: Callable[[Occasion], Fault]
    at_the_gate: bool = False


def _error(status: int, message: str, kind: str, code: str | None = None) -> Callable[[Occasion], Fault]:
    body = ApiError(status, message, kind=kind, code=code).body().decode()
    return lambda _: Fault(status, body)


def _html(status: int, title: str) -> Callable[[Occasion], Fault]:
    return lambda _: Fault(status, _HTML.format(title), _AS_HTML)


def _limited(style: Callable[[float], dict[str, str]]) -> Callable[[Occasion], Fault]:
    message = "Rate limit reached for requests; please try again later."
    body = ApiError(429, message, kind="requests", code="rate_limit_exceeded").body().decode()

    def make(occasion: Occasion) -> Fault:
        seconds = occasion.retry_after
        # No x-ratelimit-limit: a client would learn a limit that doesn't exist. A real quota adds it.
        spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": duration(seconds)}
        return Fault(429, body, {**spent, **style(seconds)})

    return make


def _milliseconds(seconds: float) -> dict[str, str]:
    return {"retry-after-ms": str(math.ceil(seconds * 1000))}


def _seconds(seconds: float) -> dict[str, str]:
    return {"retry-after": format(seconds, "g")}


def _date(seconds: float) -> dict[str, str]:
    # Dates have whole seconds; up, so that nobody comes back too early.
    return {"retry-after": formatdate(math.ceil(time.time() + seconds), usegmt=True)}


def _truncated(occasion: Occasion) -> Fault:
    text = json.dumps(occasion.reply())
    half = len(text) // 2
    return Fault(200, text[:half], missing=len(text) - half)


def _bad_json(occasion: Occasion) -> Fault:
    text = json.dumps(occasion.reply())
    return Fault(200, text[: len(text) // 2])


def _no_usage(occasion: Occasion) -> Fault:
    reply = occasion.reply()
    del reply["usage"]
    return Fault(200, json.dumps(reply))


def _without_content(reason: str, content: str | None) -> Callable[[Occasion], Fault]:
    def make(occasion: Occasion) -> Fault:
        reply = occasion.reply()
        reply["choices"][0]["finish_reason"] = reason
        reply["choices"][0]["message"]["content"] = content
        return Fault(200, json.dumps(reply))

    return make


def _error_in_200(_: Occasion) -> Fault:
    return Fault(200, '{"error": {"message": "Provider returned error", "code": 502}}')


_LISTED: Final = (
    FaultKind("429-ms", "transient", _limited(_milliseconds), at_the_gate=True),
    FaultKind("429-seconds", "transient", _limited(_seconds), at_the_gate=True),
    FaultKind("429-date", "transient", _limited(_date), at_the_gate=True),
    FaultKind("500", "transient", _error(500, "The server had an error.", "server_error")),
    FaultKind("502", "transient", _error(502, "Bad gateway.", "server_error")),
    FaultKind("503", "transient", _error(503, "The engine is overloaded.", "service_unavailable")),
    FaultKind("529", "transient", _error(529, "Overloaded.", "overloaded_error")),
    FaultKind("html", "transient", _html(502, "502 Bad Gateway")),
    FaultKind("html-200", "transient", _html(200, "We'll be right back")),
    FaultKind("truncated", "transient", _truncated),
    FaultKind("reset", "transient", lambda _: Fault(close=True)),
    FaultKind("bad-json", "transient", _bad_json),
    FaultKind("empty", "transient", lambda _: Fault(200, "")),
    FaultKind("error-200", "transient", _error_in_200),
    FaultKind("hang", "silent", lambda _: Fault(hang=True)),
    FaultKind(
        "insufficient-quota",
        "final",
        _error(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota"),
        at_the_gate=True,
    ),
    FaultKind("length", "final", _without_content("length", "")),
    FaultKind("content-filter", "final", _without_content("content_filter", None)),
    FaultKind(
        "prompt-filter",
        "final",
        _error(400, "The prompt was filtered.", "invalid_request_error", "content_filter"),
        at_the_gate=True,
    ),
    FaultKind("no-usage", "odd", _no_usage),
    FaultKind("drip", "odd", lambda occasion: Fault(200, json.dumps(occasion.reply()), drip=occasion.drip)),
)

KINDS: Final[Mapping[str, FaultKind]] = {kind.name: kind for kind in _LISTED}


def _names(group: Group) -> tuple[str, ...]:
    return tuple(kind.name for kind in _LISTED if kind.group == group)


TRANSIENT: Final = _names("transient")
"""Another attempt may help, and the client knows soon."""
SILENT: Final = _names("silent")
"""No answer ever: another attempt may help, but only a client whose attempts have a deadline makes one."""
FINAL: Final = _names("final")
"""Another attempt would fail the same way."""
ODD: Final = _names("odd")
"""Strange, and a reply all the same."""
GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "transient": TRANSIENT,
    "silent": SILENT,
    "final": FINAL,
    "odd": ODD,
}
