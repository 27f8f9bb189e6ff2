"""The gateway's rules for requests, and its figures.

`Requests` says who may send a request, where it goes, and which aren't sent on. A budget and limits hold for requests
that the engine understands. So one that is meant for a model, but that it can't read, is refused: sent on, it would
cost money that nobody counts. `Keys` gives each client's key limits of its own, for as long as it is used. `Metrics`
counts the engine's events, in the text form of Prometheus.
"""

from __future__ import annotations

import hmac
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final
from urllib.parse import urlsplit

from afnio.errors import GatewayError
from afnio.models._apis import may_be_known
from afnio.models._raw import RawReply, own_reply
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account, Limits, forget_limits, give_limits
from afnio.runtime._settings import Priority
from afnio.runtime.events import CallEnded, CallReplayed, CallRetried

if TYPE_CHECKING:
    from aiohttp import web

    from afnio.runtime._budget import Budget


PRIORITY: Final = "x-afnio-priority"
TOKEN: Final = "x-afnio-token"  # noqa: S105 - the header's name
_FREE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "DELETE")
# Ends of paths that cost nothing at any provider.
_FREE_PATHS: Final = (
    "/files", "/uploads", "/parts", "/complete", "/cancel", "/moderations", "/count_tokens", ":counttokens",
    "/input_tokens", "/tokenize", "/detokenize",
)  # fmt: skip
_NEEDS_MODEL: Final = ("/completions", "/embeddings", "/responses")


class Way(NamedTuple):
    """Where a request goes: the provider's URL, and its place in the queue."""

    target: str
    priority: Priority


@final
class Requests:
    """Rules for requests.

    Args:
        upstreams: base URLs by name.
        token: what clients must send, or None.
        counted: True if a budget holds. Then nothing may cost money that isn't counted.
    """

    def __init__(self, upstreams: Mapping[str, str], token: str | None, *, counted: bool) -> None:
        self._upstreams = upstreams
        self._token = token
        self._counted = counted

    def way(self, request: web.Request) -> Way | RawReply:
        """Return where a request goes, or its refusal."""
        if "upgrade" in request.headers.get("connection", "").lower():
            return refuse(
                501, "the gateway passes on HTTP requests only; connect WebSockets to the provider itself"
            )
        path = self._admitted(request)
        if path is None:
            return refuse(
                401, f"the gateway's token is missing or wrong; send it as {TOKEN}, or in the base URL"
            )
        target = self._target(path)
        if target is None:
            served = ", ".join(path_of(name, url) for name, url in self._upstreams.items())
            return refuse(
                404, f"the gateway serves {served} (got {request.path}); check the client's base URL"
            )
        try:
            return Way(target, _priority(request.headers.get(PRIORITY)))
        except ValueError as error:
            return refuse(400, str(error))

    def uncounted(self, request: web.Request, body: bytes) -> RawReply | None:
        """Return the refusal of a request that isn't read as one for a model, or None if it may be sent on."""
        if request.method in _FREE_METHODS:
            return None
        path = re.sub("/+", "/", request.path.lower()).rstrip("/")
        if may_be_known(path):
            if request.method != "POST":
                return refuse(
                    405, f"a request for a model must be a POST (got {request.method}); send it as one"
                )
            try:
                parsed = json.loads(body)
            except (ValueError, RecursionError):
                return refuse(400, "the request's body must be JSON that Python can read; check it")
            if not isinstance(parsed, dict):
                return refuse(400, "the request's body must be a JSON object; check it")
            if path.endswith(_NEEDS_MODEL) and not isinstance(parsed.get("model"), str):
                return refuse(400, "the request must name its model; pass model=…")
            if path.endswith(_NEEDS_MODEL):
                return refuse(
                    404, f"the path must be in small letters, with single slashes (got {request.path})"
                )
        if self._counted and not path.endswith(_FREE_PATHS):
            return refuse(
                402,
                f"the gateway can't count what {request.method} {request.path} costs, so it isn't sent under "
                "--budget; send it to the provider itself, or through a gateway without a budget",
            )
        return None

    def _admitted(self, request: web.Request) -> str | None:
        """Return the path without the token, or None if a token is needed and isn't there."""
        path = request.raw_path
        if self._token is None:
            return path
        if hmac.compare_digest(request.headers.get(TOKEN, "").encode(), self._token.encode()):
            return path
        first, slash, rest = path[1:].partition("/")
        if hmac.compare_digest(first.encode(), self._token.encode()):
            return slash + rest
        return None

    def _target(self, path: str) -> str | None:
        """Return the provider's URL for a path here."""
        for name, upstream in self._upstreams.items():
            if name and (path == f"/{name}" or path.startswith(f"/{name}/")):
                return upstream + path[len(name) + 1 :]
        root = self._upstreams.get("")
        if root is None:
            return None
        own = urlsplit(root).path
        return root + (path.removeprefix(own) if own and path.startswith(f"{own}/") else path)


def path_of(name: str, upstream: str) -> str:
    """Return the path here under which a provider is served."""
    return f"/{name}" if name else urlsplit(upstream).path


def refuse(status: int, sentence: str) -> RawReply:
    return own_reply(status, sentence, "afnio_gateway")


def _priority(name: str | None) -> Priority:
    if name is None:
        return Priority.TRAINING
    try:
        return Priority[name.strip().upper()]
    except KeyError:
        names = ", ".join(each.name.lower() for each in Priority)
        raise ValueError(f"{PRIORITY} must be one of {names} (got {name!r}); omit it for training") from None


# Keys with limits of their own. A client that invents keys must not fill the memory, and tokens change by the
# hour.
MOST_KEYS: Final = 10_000


@final
class Keys:
    """The accounts that are used through a gateway, least recently used first.

    Args:
        limits: of each one.
    """

    def __init__(self, limits: Limits | None) -> None:
        self._limits = limits
        self._used: OrderedDict[Account, None] = OrderedDict()

    def admit(self, account: Account, busy: Callable[[], AbstractSet[Account]]) -> bool:
        """Give an account its limits, and forget another one if there are too many.

        Args:
            busy: returns the accounts with open calls, which can't be forgotten.

        Returns:
            False if all have.
        """
        if account in self._used:
            self._used.move_to_end(account)
            return True
        if len(self._used) >= MOST_KEYS:
            kept = busy()
            oldest = next((used for used in self._used if used not in kept), None)
            if oldest is None:
                return False
            del self._used[oldest]
            forget_limits(oldest)
            current_runtime().drop_resources(oldest)
        self._used[account] = None
        if self._limits is not None:
            give_limits(account, self._limits)
        return True


# Models with figures of their own; clients may send any name.
_MOST_MODELS: Final = 100


@final
class Metrics:
    """The figures of one gateway.

    Raises:
        GatewayError: if prometheus-client isn't installed.
    """

    def __init__(self) -> None:
        try:
            from prometheus_client import (
                CollectorRegistry,
                Counter,
                Gauge,
                Histogram,
                ProcessCollector,
                disable_created_metrics,
            )
            from prometheus_client.exposition import CONTENT_TYPE_LATEST
        except ImportError as error:
            raise GatewayError(
                "the gateway needs prometheus-client, which is not installed; run pip install 'afnio[gateway]'"
            ) from error

        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each figure, of no use here

        self.content_type = CONTENT_TYPE_LATEST
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._models: set[str] = set()

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"afnio_gateway_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str) -> Any:
            return Gauge(f"afnio_gateway_{name}", text, registry=self._registry)

        def histogram(name: str, text: str) -> Any:
            buckets = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
            return Histogram(f"afnio_gateway_{name}", text, registry=self._registry, buckets=buckets)

        self._calls = counter("calls", "Calls that ended.", "model", "outcome")
        self._retries = counter("retries", "Attempts that failed and were repeated.")
        self._tokens = counter("tokens", "Tokens as providers counted them.", "model", "kind")
        self._cost = counter("cost_dollars", "Dollars, for models with a known price.", "model")
        self._waited = histogram("wait_seconds", "Time of a call in the queue and between attempts.")
        self._seconds = histogram("upstream_seconds", "Time of a call on the wire.")
        self._open = gauge("open_calls", "Calls that haven't ended.")
        self._on_wire = gauge("in_flight", "Calls on the wire.")
        self._spent = gauge("budget_spent_dollars", "What counts against --budget.")

    def update(self, event: Any) -> None:
        """Count an event of the engine."""
        if isinstance(event, CallEnded):
            model = self._model(event.model)
            self._calls.labels(model, "answered" if event.error is None else "failed").inc()
            self._waited.observe(max(0.0, event.waited))
            self._seconds.observe(max(0.0, event.seconds))
            for kind, tokens in (
                ("input", event.usage.prompt_tokens),
                ("output", event.usage.completion_tokens),
                ("cached", event.usage.cached_tokens),
            ):
                if tokens:
                    self._tokens.labels(model, kind).inc(tokens)
            if event.cost is not None:
                self._cost.labels(model).inc(float(event.cost))
        elif isinstance(event, CallReplayed):
            self._calls.labels(self._model(event.model), "replayed").inc()
        elif isinstance(event, CallRetried):
            self._retries.inc()

    def measure(self, open_calls: int, on_wire: int, budget: Budget | None) -> None:
        self._open.set(open_calls)
        self._on_wire.set(on_wire)
        if budget is not None:
            self._spent.set(float(budget.ledger.total.cost or 0))

    def text(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _MOST_MODELS:
                return "other"
            self._models.add(name)
        return name
