"""The replies of the provider: faults, latency, errors, and the bodies of its API.

A fault at a random moment makes a test that fails once a week. Here every attempt of every request draws its fate from
a hash of the seed, the request's body and the attempt's number. The same program meets the same faults in the same
places, regardless of the order in which its requests arrive, and a failure can be repeated by its seed.

The kinds of faults (`_LISTED`) are what OpenAI-compatible providers, and the proxies in front of them, really do. Their
four groups tell a test what a client should make of them: try again (transient), try again once its own deadline has
passed (silent), give up (final), or carry on (odd).
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import accumulate
from statistics import NormalDist
from typing import Any, ClassVar, Final, Literal, Self, final, get_args

from aiohttp import web

from afnio.testing.provider._quota import duration
from afnio.testing.simulated._language import text_of
from afnio.testing.simulated._student import draw

# How far a sum of shares may exceed 1, because floats don't add up exactly.
_SLACK: Final = 1e-9


@final
class FaultPlan:
    """Draws a fault, or none, for each attempt of each request, by a hash of the two.

    The same attempt of the same request always meets the same fate, regardless of the order of arrival.

    Args:
        shares: the probability of each kind of fault. A group (`transient`, `silent`, `final` or `odd`) divides its
            probability evenly among its kinds.
        in_a_row: the most faults in a row for one request; None sets no limit.
        retry_after: seconds that a 429 asks to wait.
        drip: seconds that a dripping reply takes.

    Attributes:
        GROUPS: the kinds in each group. After a transient fault another attempt may succeed. A silent one never
            answers: only a client with a deadline tries again. After a final one every attempt fails the same way. An
            odd one is a valid reply in an unusual form.

    Raises:
        ValueError: for an unknown kind, a probability outside 0 to 1, or a sum above 1.

    >>> plan = FaultPlan({"reset": 0.05, "transient": 0.15}, in_a_row=3)
    >>> round(plan.shares["reset"], 2)
    0.06
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        in_a_row: int | None = None,
        retry_after: float = 0.1,
        drip: float = 1.0,
    ) -> None:
        if in_a_row is not None and in_a_row < 1:
            raise ValueError(
                f"in_a_row must be at least 1 (got {in_a_row}); for no faults leave the plan out"
            )
        if retry_after < 0 or drip < 0:
            raise ValueError(f"retry_after and drip must be seconds from 0 (got {retry_after} and {drip})")
        self.shares: Mapping[str, float] = _spread(shares)
        self.in_a_row = in_a_row
        self.retry_after = retry_after
        self.drip = drip
        self._total = sum(self.shares.values())
        self._bounds = list(zip(accumulate(self.shares.values()), self.shares, strict=True))

    @classmethod
    def of(cls, plan: str | Mapping[str, float] | FaultPlan | None) -> FaultPlan | None:
        """Return a plan from a text for `parse`, from shares, or from a plan."""
        if plan is None or isinstance(plan, FaultPlan):
            return plan
        return cls.parse(plan) if isinstance(plan, str) else cls(plan)

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """Return the plan for a text such as `reset:0.05,html:0.05`; `options` are the arguments of the class."""
        shares: dict[str, float] = {}
        for entry in text.split(","):
            name, _, share = entry.strip().partition(":")
            try:
                shares[name] = shares.get(name, 0.0) + float(share)
            except ValueError:
                raise ValueError(
                    f"a fault must have a probability, as in reset:0.05 (got {entry!r})"
                ) from None
        return cls(shares, **options)

    def __str__(self) -> str:
        return ",".join(f"{name}:{share!r}" for name, share in self.shares.items())

    def fate(self, seed: int, request: str, attempt: int) -> FaultKind | None:
        """Return the fault of one attempt (from 1) of the request with this digest, or None."""
        kind = self._drawn(seed, request, attempt)
        if kind is None or self.in_a_row is None:
            return kind
        # In a run of faults every (in_a_row + 1)-th is left out. Draw the run again each time: then nothing needs to be
        # remembered for a request, and the order of arrival can't matter.
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
            raise ValueError(f"the probability of a fault must be from 0 to 1 (got {share} for {name!r})")
        if name not in FaultPlan.GROUPS and name not in KINDS:
            raise ValueError(f"a fault must be one of {[*FaultPlan.GROUPS, *KINDS]} (got {name!r})")
        kinds = FaultPlan.GROUPS.get(name, (name,))
        for kind in kinds:
            spread[kind] = spread.get(kind, 0.0) + share / len(kinds)
    if sum(spread.values()) > 1 + _SLACK:
        raise ValueError(
            f"the probabilities of faults must add up to at most 1 (got {sum(spread.values()):g})"
        )
    return spread


# One fault, on the wire.


# How many pieces a dripping body comes in, at most.
PIECES: Final = 20


@final
@dataclass(frozen=True, slots=True)
class Fault:
    """A response that replaces the reply: an error, a broken body, a reset connection, or silence.

    Args:
        status, body, headers: the response.
        close: send a TCP reset instead.
        hang: send nothing, until the client disconnects.
        missing: announce this many bytes more than the body has, and close the connection after the body.
        drip: send the body in small pieces over this many seconds.
        name: its name in the ledger's counts.

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
    if request.transport is None:  # the client has gone already
        return
    peer = request.transport.get_extra_info("socket")
    # SO_LINGER with a timeout of 0 makes the kernel send RST where it would send FIN.
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


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


# The kinds of faults.


Group = Literal["transient", "silent", "final", "odd"]

_HTML: Final = "<html>\r\n<head><title>{0}</title></head>\r\n<body><h1>{0}</h1></body>\r\n</html>\r\n"
_AS_HTML: Final = {"content-type": "text/html"}


@final
@dataclass(frozen=True, slots=True)
class Occasion:
    """The data from which a kind makes its fault.

    Args:
        reply: returns the completion that the request would have got without the fault.
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
        group: see `FaultPlan.GROUPS`.
        make: returns the fault.
        at_the_gate: rejected before any work: without latency, and without using quota.
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
        # Without x-ratelimit-limit: a client would learn a limit that doesn't exist. A real quota adds the header.
        spent = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": duration(seconds)}
        return Fault(429, body, {**spent, **style(seconds)})

    return make


def _milliseconds(seconds: float) -> dict[str, str]:
    return {"retry-after-ms": str(math.ceil(seconds * 1000))}


def _seconds(seconds: float) -> dict[str, str]:
    return {"retry-after": format(seconds, "g")}


def _date(seconds: float) -> dict[str, str]:
    # HTTP dates have whole seconds. Round up, or clients come back too early.
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

FaultPlan.GROUPS = {
    group: tuple(kind.name for kind in _LISTED if kind.group == group) for group in get_args(Group)
}


# Latency.


_NUMBERS: Final = {"constant": 1, "lognormal": 2, "pareto": 3}
_NORMAL: Final = NormalDist()
# Default end of a Pareto tail, in seconds. Without an end, the mean of a heavy tail would be infinite.
_LONGEST: Final = 600.0


@final
@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution of reply times in seconds; make one with `constant`, `lognormal`, `pareto` or `parse`.

    Each attempt of each request has a fixed latency, regardless of the order of arrival.

    >>> Latency.parse("lognormal:0.2,1.0") == Latency.lognormal(0.2, 1.0)
    True
    """

    shape: str
    numbers: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.shape not in _NUMBERS:
            raise ValueError(f"a latency's shape must be one of {sorted(_NUMBERS)} (got {str(self)!r})")
        if len(self.numbers) != _NUMBERS[self.shape]:
            raise ValueError(
                f"a {self.shape} latency must have {_NUMBERS[self.shape]} numbers (got {str(self)!r})"
            )
        least = math.ulp(0.0) if self.shape == "pareto" else 0.0
        if not all(math.isfinite(number) and number >= least for number in self.numbers):
            raise ValueError(f"a latency's numbers must be finite and positive (got {str(self)!r})")

    @classmethod
    def constant(cls, seconds: float) -> Self:
        """Every reply takes `seconds`."""
        return cls("constant", (seconds,))

    @classmethod
    def lognormal(cls, median: float, sigma: float) -> Self:
        """Half of the replies take less than `median`. With `sigma` 1, one in 100 takes ten times as long."""
        return cls("lognormal", (median, sigma))

    @classmethod
    def pareto(cls, least: float, alpha: float, most: float = _LONGEST) -> Self:
        """Every reply takes at least `least`. The smaller `alpha`, the heavier the tail; it ends at `most`."""
        return cls("pareto", (least, alpha, most))

    @classmethod
    def of(cls, latency: float | str | Latency) -> Latency:
        """Return a latency from seconds, from a text for `parse`, or from a latency."""
        if isinstance(latency, Latency):
            return latency
        return cls.parse(latency) if isinstance(latency, str) else cls.constant(latency)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the latency for a text such as `0.2`, `lognormal:0.2,1.0` or `pareto:0.1,1.5`."""
        shape, colon, listed = text.rpartition(":")
        try:
            numbers = tuple(float(number) for number in listed.split(","))
        except ValueError:
            raise ValueError(
                f"a latency must be a number, or a shape and numbers such as lognormal:0.2,1.0 (got {text!r})"
            ) from None
        if shape == "pareto" and len(numbers) == 2:
            return cls.pareto(*numbers)
        return cls(shape if colon else "constant", numbers)

    def __str__(self) -> str:
        return f"{self.shape}:{','.join(map(repr, self.numbers))}"

    def seconds(self, seed: int, request: str, attempt: int) -> float:
        """Return the latency of one attempt (from 1) of the request with this digest."""
        if self.shape == "constant":
            return self.numbers[0]
        share = draw(seed, "latency", request, attempt)
        if self.shape == "lognormal":
            median, sigma = self.numbers
            return median * _exp(sigma * _NORMAL.inv_cdf(share))
        least, alpha, most = self.numbers
        return min(least * _exp(-math.log(share) / alpha), most)


def _exp(power: float) -> float:
    """Return e to `power`, capped: larger powers would overflow a float."""
    return math.exp(min(power, 600.0))


# The API's request and response bodies.


def count_tokens(text: str) -> int:
    """Return the number of tokens of `text` in this test kit: a quarter of its UTF-8 bytes, rounded up.

    >>> count_tokens("abcde")
    2
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // 4)


def prompt_tokens(request: dict[str, Any]) -> int:
    """Return the tokens of all message texts of a valid request."""
    return sum(count_tokens(text_of(message)) for message in request["messages"])


def read_request(body: bytes, models: Collection[str] | None) -> dict[str, Any]:
    """Return the request in `body`, or raise the same `ApiError` as OpenAI's API."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body must be valid JSON; send one object.") from None
    if not isinstance(request, dict):
        raise ApiError(400, f"The body must be a JSON object (got a {type(request).__name__}).")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message.")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise ApiError(400, "Each of messages must have a role; send objects with role and content.")
    if request.get("stream"):
        raise ApiError(400, "stream must be false or left out; this provider can't stream.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "model must be the name of a model.")
    if models is not None and model not in models:
        raise ApiError(404, f"The model {model!r} does not exist.", code="model_not_found")
    return request


def reply_limit(request: dict[str, Any]) -> int:
    """Return the most tokens that the reply may have, or 0 if the request sets no limit."""
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    return limit if isinstance(limit, int) and limit > 0 else 0


def completion(
    request: dict[str, Any], reply: str | dict[str, Any], index: int, asked: int
) -> tuple[dict[str, Any], int]:
    """Return the reply's body and its tokens; a dict is sent as its JSON, or with "tool_calls" as the message itself.

    Args:
        asked: the request's `prompt_tokens`.
    """
    text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
    reason, limit = "stop", reply_limit(request)
    if limit and count_tokens(text) > limit:
        text, reason = text.encode()[: limit * 4].decode("utf-8", "ignore"), "length"
    tokens = count_tokens(text)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if isinstance(reply, dict) and "tool_calls" in reply:
        message, reason = {**message, "content": None, **reply}, "tool_calls"
    body = {
        "id": f"chatcmpl-simulated-{index}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": tokens,
            "total_tokens": asked + tokens,
        },
    }
    if "service_tier" in request:
        body["service_tier"] = "flex" if request["service_tier"] == "flex" else "default"
    return body, tokens
