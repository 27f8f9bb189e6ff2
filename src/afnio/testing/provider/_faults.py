"""FaultPlan: how often which faults happen, fixed for each attempt of each request."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Final, Literal, Self, final

from aiohttp import web

from afnio.testing._draw import draw
from afnio.testing.provider._quota import duration


class ApiError(Exception):
    """An error as the API reports it: `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.headers = headers

    def body(self) -> bytes:
        error = {"message": str(self), "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}).encode()

    def response(self) -> web.Response:
        return response(self.status, self.body(), self.headers)


def response(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a response with a JSON body, unless `headers` name another type."""
    return web.Response(
        status=status, body=body, headers={"content-type": "application/json", **(headers or {})}
    )


_SLACK: Final = 1e-9
"""What a sum of shares may exceed one by: floats add up no better."""


@final
class FaultPlan:
    """Draws a fault, or none, for each attempt of each request by a hash of the two.

    So a request meets the same fate on the same attempt, whatever arrives before it.

    Args:
        shares: the probability of each kind; a group, `transient`, `silent`, `final` or `odd`, shares
            its probability out evenly among its kinds.
        in_a_row: at most so many faults one after the other for one request; None sets no bound.
        retry_after: seconds that a 429 asks to wait.
        drip: seconds that a dripping reply takes.

    >>> plan = FaultPlan({"reset": 0.05, "transient": 0.15}, in_a_row=3)
    >>> round(plan.shares["reset"], 2)
    0.06
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        in_a_row: int | None = None,
        retry_after: float = 0.1,
        drip: float = 1.0,
    ) -> None:
        if in_a_row is not None and in_a_row < 1:
            raise ValueError(f"in_a_row [{in_a_row}] is below 1; raise it, or give no faults.")
        if retry_after < 0 or drip < 0:
            raise ValueError(f"retry_after [{retry_after}] and drip [{drip}] are seconds; give none below 0.")
        self.shares: Mapping[str, float] = _spread(shares)
        self.in_a_row = in_a_row
        self.retry_after = retry_after
        self.drip = drip
        self._total = sum(self.shares.values())
        self._bounds = list(zip(accumulate(self.shares.values()), self.shares, strict=True))

    @classmethod
    def of(cls, given: str | Mapping[str, float] | FaultPlan | None) -> FaultPlan | None:
        """Return a plan that is given as a text for `parse`, as shares, or as itself."""
        if given is None or isinstance(given, FaultPlan):
            return given
        return cls.parse(given) if isinstance(given, str) else cls(given)

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """Return the plan that a text such as `reset:0.05,html:0.05` names; options as of the class."""
        shares: dict[str, float] = {}
        for entry in text.split(","):
            name, _, share = entry.strip().partition(":")
            try:
                shares[name] = shares.get(name, 0.0) + float(share)
            except ValueError:
                raise ValueError(f"The fault [{entry}] has no probability; write it as reset:0.05.") from None
        return cls(shares, **options)

    def __str__(self) -> str:
        return ",".join(f"{name}:{share!r}" for name, share in self.shares.items())

    def fate(self, seed: int, request: str, attempt: int) -> FaultKind | None:
        """Return what goes wrong with one attempt of the request with that digest."""
        kind = self._drawn(seed, request, attempt)
        if kind is None or self.in_a_row is None:
            return kind
        # Of a run of draws that are faults every (in_a_row + 1)-th is let off. Looked up anew each
        # time, so that nothing needs to be kept for a request.
        start = attempt - 1
        while start > 0 and (self._total >= 1 or self._drawn(seed, request, start) is not None):
            start = 0 if self._total >= 1 else start - 1
        return kind if (attempt - start) % (self.in_a_row + 1) else None

    def _drawn(self, seed: int, request: str, attempt: int) -> FaultKind | None:
        share = draw(seed, "fault", request, attempt)
        if share >= self._total:
            return None
        for bound, name in self._bounds:
            if share < bound:
                return KINDS[name]
        return None


def _spread(shares: Mapping[str, float]) -> dict[str, float]:
    spread: dict[str, float] = {}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"The fault [{name}] has the probability [{share}]; give one from 0 to 1.")
        if name not in GROUPS and name not in KINDS:
            raise ValueError(f"The fault [{name}] is unknown; take some of {[*GROUPS, *KINDS]}.")
        kinds = GROUPS.get(name, (name,))
        for kind in kinds:
            spread[kind] = spread.get(kind, 0.0) + share / len(kinds)
    if sum(spread.values()) > 1 + _SLACK:
        raise ValueError(f"The faults add up to [{sum(spread.values()):g}]; keep them to 1 together.")
    return spread


# Fault: what a request gets in place of its reply.


PIECES: Final = 20
"""How many pieces a dripping body comes in, at most."""


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """An error, a broken reply, a reset connection, or nothing ever.

    Args:
        status, body, headers: what is sent.
        close: reset the connection instead.
        hang: send nothing instead, until the client goes.
        missing: how many bytes more than the body the reply announces before it ends.
        drip: seconds over which the body goes out in small pieces.
        name: under which the ledger counts it.

    >>> Fault(status=429, headers={"retry-after": "1"}).status
    429
    """

    status: int = 500
    body: str = '{"error": {"message": "A simulated fault.", "type": "server_error", "code": null}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    hang: bool = False
    missing: int = 0
    drip: float = 0.0
    name: str = "custom"

    async def send(
        self, request: web.Request, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """Send the fault in place of the reply; its own headers replace those in `headers`.

        `close` and `hang` never return: the server cancels them when the connection is lost.
        """
        if self.close:
            _reset(request)
        if self.close or self.hang:
            await asyncio.get_running_loop().create_future()
        body, fields = self.body.encode(), {**(headers or {}), **self.headers}
        if not self.missing and self.drip <= 0:
            return response(self.status, body, fields)
        fields = {
            "content-type": "application/json",
            **fields,
            "content-length": str(len(body) + self.missing),
        }
        broken = web.StreamResponse(status=self.status, headers=fields)
        if self.missing:
            broken.force_close()  # on a connection that stays open the client would wait for the missing bytes
        await broken.prepare(request)
        size = -(-len(body) // PIECES) or 1 if self.drip > 0 else len(body)
        for start in range(0, len(body), size):
            await broken.write(body[start : start + size])
            if self.drip > 0:
                await asyncio.sleep(self.drip * size / len(body))
        return broken


def _reset(request: web.Request) -> None:
    """Break the connection with a TCP reset, as a crashing server does."""
    assert request.transport is not None
    peer = request.transport.get_extra_info("socket")
    # SO_LINGER with a timeout of 0 makes the kernel send RST where it would send FIN.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


# The kinds of faults, after what OpenAI-compatible providers and the machines before them really do.


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


# Latency: how long the provider thinks before it replies.


_NUMBERS: Final = {"constant": 1, "lognormal": 2, "pareto": 3}
_NORMAL: Final = NormalDist()
_LONGEST: Final = 600.0
"""Seconds at which a Pareto tail ends that is given no end; without one it has no mean worth the name."""


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of seconds; make one with `constant`, `lognormal`, `pareto` or `parse`.

    Each attempt of each request has its own latency, whatever arrives before it.

    >>> Latency.parse("lognormal:0.2,1.0") == Latency.lognormal(0.2, 1.0)
    True
    """

    shape: str
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.shape not in _NUMBERS:
            raise ValueError(f"The latency [{self}] has an unknown shape; take one of {sorted(_NUMBERS)}.")
        if len(self.numbers) != _NUMBERS[self.shape]:
            raise ValueError(f"The latency [{self}] takes [{_NUMBERS[self.shape]}] numbers; give so many.")
        least = math.ulp(0.0) if self.shape == "pareto" else 0.0
        if not all(math.isfinite(number) and number >= least for number in self.numbers):
            raise ValueError(f"The latency [{self}] has a number that can't be; give positive ones.")

    @classmethod
    def constant(cls, seconds: float) -> Self:
        """Every reply takes `seconds`."""
        return cls("constant", (seconds,))

    @classmethod
    def lognormal(cls, median: float, sigma: float) -> Self:
        """Half take less than `median`; at `sigma` 1 one in 100 takes ten times as long."""
        return cls("lognormal", (median, sigma))

    @classmethod
    def pareto(cls, least: float, alpha: float, most: float = _LONGEST) -> Self:
        """None takes less than `least`; the smaller `alpha`, the heavier the tail, which ends at `most`."""
        return cls("pareto", (least, alpha, most))

    @classmethod
    def of(cls, given: float | str | Latency) -> Latency:
        """Return a latency that is given as seconds, as a text for `parse`, or as itself."""
        if isinstance(given, Latency):
            return given
        return cls.parse(given) if isinstance(given, str) else cls.constant(given)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the latency that a text such as `0.2`, `lognormal:0.2,1.0`, `pareto:0.1,1.5` names."""
        shape, colon, listed = text.rpartition(":")
        try:
            numbers = tuple(float(number) for number in listed.split(","))
        except ValueError:
            raise ValueError(
                f"The latency [{text}] has something that is no number; write 0.2 or lognormal:0.2,1.0."
            ) from None
        if shape == "pareto" and len(numbers) == 2:
            return cls.pareto(*numbers)
        return cls(shape if colon else "constant", numbers)

    def __str__(self) -> str:
        return f"{self.shape}:{','.join(map(repr, self.numbers))}"

    def seconds(self, seed: int, request: str, attempt: int) -> float:
        """Return the latency of one attempt of the request with that digest."""
        if self.shape == "constant":
            return self.numbers[0]
        share = draw(seed, "latency", request, attempt)
        if self.shape == "lognormal":
            median, sigma = self.numbers
            return median * _exp(sigma * _NORMAL.inv_cdf(share))
        least, alpha, most = self.numbers
        return min(least * _exp(-math.log(share) / alpha), most)


def _exp(power: float) -> float:
    """Return e to `power`; the largest powers count as one that a float can still hold."""
    return math.exp(min(power, 600.0))
