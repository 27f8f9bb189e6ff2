"""The gateway's rules for requests: who may send them, where they go, and which aren't sent on.

A budget and limits hold for requests that the engine understands. So one that is meant for a model, but that it can't
read, is refused: sent on, it would cost money that nobody counts. `Keys` gives each client's key limits of its own, for
as long as it is used.
"""

from __future__ import annotations

import hmac
import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final, NamedTuple, final
from urllib.parse import urlsplit

from afnio.models._apis import may_be_known
from afnio.models._raw import RawReply, own_reply
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account, Limits, forget_limits, give_limits
from afnio.runtime._settings import Priority

if TYPE_CHECKING:
    from aiohttp import web


PRIORITY: Final = "x-afnio-priority"
TOKEN: Final = "x-afnio-token"  # noqa: S105 - the header's name
_FREE_METHODS: Final = ("GET", "HEAD", "OPTIONS", "DELETE")
_FREE_PATHS: Final = (
    "/files", "/uploads", "/parts", "/complete", "/cancel", "/moderations", "/count_tokens", ":counttokens",
    "/input_tokens", "/tokenize", "/detokenize",
)  # fmt: skip
"""Ends of paths that cost nothing at any provider."""
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


MOST_KEYS: Final = 10_000
"""Keys with limits of their own. A client that invents keys must not fill the memory, and tokens change by the hour."""


@final
class Keys:
    """The accounts that are used through a gateway, least recently used first.

    Args:
        limits: of each one.
    """

    def __init__(self, limits: Limits | None) -> None:
        self._limits = limits
        self._used: OrderedDict[Account, None] = OrderedDict()

    def admit(self, account: Account, busy: AbstractSet[Account]) -> bool:
        """Give an account its limits, and forget another one if there are too many.

        Args:
            busy: accounts with open calls, which can't be forgotten.

        Returns:
            False if all have.
        """
        if account in self._used:
            self._used.move_to_end(account)
            return True
        if len(self._used) >= MOST_KEYS:
            oldest = next((used for used in self._used if used not in busy), None)
            if oldest is None:
                return False
            del self._used[oldest]
            forget_limits(oldest)
            current_runtime().drop_resources(oldest)
        self._used[account] = None
        if self._limits is not None:
            give_limits(account, self._limits)
        return True
