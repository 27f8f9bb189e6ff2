"""Requests of clients that nobody gave to Afnio: the patches of HTTP libraries, and whose block a request belongs to.

Two parts of Afnio need the patches. The *engine's* routes take requests for a model in `bridge.installed`, and watch
for those that nothing takes. The *driver's* routes send what a worker asks to the program's own process. Each library
is patched once, now or as soon as it is imported, and asks the routes for each request. The driver has the last word:
in a worker a request must not go through the worker's engine as well.

httpx, httpx2   a route returns the transport for a URL
aiohttp         a route of the engine makes the request; one of the driver changes its URL and options
urllib3         a route makes the request. It carries requests and boto3
http.client     a route is called with the request, and can't change it. It carries urllib.request

`installed` is the block. Its routes ask `taken_by` for each request: the block of the request's own context, or, for a
thread without a context, the innermost block that is open.

A request that looks like one for a model and that the engine doesn't get is outside of every budget, limit and journal.
`note_unseen` says so, once for each place in the code, wherever one of them holds.

This module is light, because `watch` runs when the first budget or journal is opened. What takes requests is in
`_httpx.py` and `_other_clients.py`, and `afnio.bridge` puts it into `takers`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, final

from afnio.models._apis import may_be_known
from afnio.models._trace import in_attempt
from afnio.runtime._limits import Limits, tightest
from afnio.runtime._settings import OpenBlock, UnnestedError, innermost, is_inside
from afnio.runtime._tracebacks import caller_line

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


Owner = Literal["engine", "driver"]
Route = Callable[..., Any]


def add_route(owner: Owner, library: str, route: Route) -> None:
    """Ask `route` for the requests of a library. A later route of the same owner replaces it.

    Args:
        library: "httpx", which means httpx2 as well, "aiohttp", "urllib3" or "http.client".
    """
    with _lock:
        _routes[owner, library] = route
        for module, patch in _PATCHES[library].items():
            if module in _patched or module in _waiting:
                continue
            if module in sys.modules:
                _patched.add(module)
                patch(import_module(module))
            else:
                _waiting[module] = patch
        if _waiting and _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)


_routes: Final[dict[tuple[Owner, str], Route]] = {}
_lock: Final = threading.RLock()
_patched: Final[set[str]] = set()
# The modules that are patched after their import.
_waiting: Final[dict[str, Callable[[Any], None]]] = {}


@final
class _PatchingFinder(MetaPathFinder):
    """Patches a module after its import."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        patch = _waiting.pop(fullname, None)
        if patch is None:
            return None
        spec = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return None
        execute = loader.exec_module

        def and_patch(module: ModuleType) -> None:
            execute(module)
            _patched.add(fullname)
            patch(module)

        loader.exec_module = and_patch
        return spec


_finder: Final = _PatchingFinder()


def _patch_httpx(library: Any) -> None:
    # Not the classes of transports: frameworks have transports of their own.
    for kind in (library.Client, library.AsyncClient):
        _patch_client(library, kind)


def _patch_client(library: Any, kind: Any) -> None:
    original = kind._transport_for_url

    def routed(self: Any, url: Any) -> Any:
        transport = original(self, url)
        for owner in ("engine", "driver"):
            route = _routes.get((owner, "httpx"))
            if route is not None:
                transport = route(library, transport, url)
        return transport

    kind._transport_for_url = routed


def _patch_aiohttp(module: Any) -> None:
    original = module.ClientSession._request

    async def routed(self: Any, method: str, url: Any, **options: Any) -> Any:
        to_driver = _routes.get(("driver", "aiohttp"))
        if to_driver is not None:
            rerouted = to_driver(self, method, url, options)
            if rerouted is not None:
                return await original(self, method, rerouted[0], **rerouted[1])
        to_engine = _routes.get(("engine", "aiohttp"))
        if to_engine is not None:
            return await to_engine(original, self, method, url, options)
        return await original(self, method, url, **options)

    module.ClientSession._request = routed


def _patch_urllib3(module: Any) -> None:
    original = module.HTTPConnectionPool.urlopen

    def routed(
        self: Any, method: str, url: str, body: Any = None, headers: Any = None, *rest: Any, **options: Any
    ) -> Any:
        route = _routes.get(("engine", "urllib3"))
        if route is not None and method == "POST" and not rest:
            return route(original, self, url, body, headers, options)
        return original(self, method, url, body, headers, *rest, **options)

    module.HTTPConnectionPool.urlopen = routed


def _patch_http_client(module: Any) -> None:
    original = module.HTTPConnection.request

    def routed(
        self: Any, method: str, url: str, body: Any = None, headers: Any = None, **options: Any
    ) -> Any:
        headers = {} if headers is None else headers
        route = _routes.get(("engine", "http.client"))
        if route is not None and method == "POST":
            route(self, url, body, headers)
        return original(self, method, url, body, headers, **options)

    module.HTTPConnection.request = routed


# The patched classes of each library, by module.
_PATCHES: Final[dict[str, dict[str, Callable[[Any], None]]]] = {
    "httpx": {"httpx2": _patch_httpx, "httpx": _patch_httpx},
    "aiohttp": {"aiohttp.client": _patch_aiohttp},
    "urllib3": {"urllib3.connectionpool": _patch_urllib3},
    "http.client": {"http.client": _patch_http_client},
}


_logger = logging.getLogger("afnio")


@final
class installed(AbstractContextManager[None]):  # noqa: N801
    """Bridge the HTTP clients that code in the block uses, whoever made them, and when.

    It is for code that takes no `http_client`: SDKs and frameworks on httpx and httpx2, and clients on requests,
    urllib3, boto3 and aiohttp. It holds for the block's context: its tasks, `asyncio.to_thread`, and the worker threads
    of frameworks that copy the context, as LangChain, CrewAI and smolagents do. Requests that look like calls of a
    model and don't go through the engine are named in a warning, once for each place in the code: those of other
    threads, of `http.client` and `urllib`, and to paths of unknown APIs.

    A client with a transport of its own (a mock, retries) keeps it: the engine sends its attempts by that. Those of
    requests, urllib3 and boto3 are sent by their own connections, with their certificates and proxies.

    Args:
        limits: those of every account that is used in the block. Of nested blocks, the tightest hold.
        threads: True to take in requests from threads without a context as well. They belong to the innermost budget,
            journal and limits that are open, and to no lane. While two of those are open of which none is in the
            other, they are refused with status 400.

    Raises:
        RuntimeError: if one object is entered twice.

    >>> import openai
    >>> with installed(limits=Limits(max_in_flight=64)):
    ...     made_here = openai.OpenAI(api_key="any")  # its requests in the block go through the engine
    """

    def __init__(self, limits: Limits | None = None, *, threads: bool = False) -> None:
        self.limits = limits
        self.threads = threads
        self.open = False
        self._outer: installed | None = None
        self._opened: OpenBlock | None = None

    def __enter__(self) -> None:
        if self.open:
            raise RuntimeError("a block of installed() can be entered only once; make a new one")
        self._outer = _block.get()
        if self._outer is not None and self._outer.open:
            self.limits = tightest(self._outer.limits, self.limits)
        self.open = True
        _block.set(self)
        _open_blocks.append(self)
        self._opened = OpenBlock()
        watch()

    def __exit__(self, *exc: object) -> None:
        self.open = False
        _open_blocks.remove(self)
        assert self._opened is not None
        self._opened.close()
        if _block.get() is self:  # or it is left in another context than it was entered in
            _block.set(self._outer)


_block: Final[ContextVar[installed | None]] = ContextVar("afnio_installed", default=None)
# Needs no lock: append and remove are atomic.
_open_blocks: Final[list[installed]] = []


class Taken(NamedTuple):
    """How a request is taken.

    Attributes:
        context: that it is launched in, or None for the current one.
        refused: why it isn't launched, or "".
    """

    context: Context | None = None
    refused: str = ""


def taken_by() -> Taken | None:
    """Return how a request of the current context or thread is taken, or None if no block takes it."""
    if not _open_blocks:
        return None
    block = _block.get()
    if block is not None and block.open:
        return Taken()
    if is_inside() or not any(block.threads for block in _open_blocks):
        return None
    try:
        context = innermost()
    except UnnestedError:
        return Taken(
            refused="a thread without a context made this request while several budgets, journals or bridges were "
            "open that aren't nested, so it belongs to none of them; run the thread's function by "
            "contextvars.copy_context().run",
        )
    return None if context is None else Taken(context)


def limits_here() -> Limits | None:
    """Return the limits of the block of the current context."""
    block = _block.get()
    return block.limits if block is not None and block.open else None


def watch() -> None:
    """Take requests in blocks of `installed`, and name those that look like calls of a model and that nothing takes."""
    if not _watching:
        _watching.append(True)
        add_route("engine", "httpx", _httpx_route)
        add_route("engine", "aiohttp", _aiohttp_route)
        add_route("engine", "urllib3", _urllib3_route)
        add_route("engine", "http.client", _http_client_route)


_watching: Final[list[bool]] = []
# The functions that take the requests of each library.
takers: Final[dict[str, Callable[..., Any]]] = {}


# Routes


def _httpx_route(library: Any, transport: Any, url: Any) -> Any:
    if in_attempt.get() or type(transport).__module__.startswith("afnio.") or is_own(str(url)):
        return transport
    taken = taken_by()
    if taken is not None and may_be_known(url.path):
        return takers["httpx"](library, transport, taken)
    return _watching_transport(library, transport) if _is_watched() else transport


async def _aiohttp_route(original: Any, session: Any, method: str, url: Any, options: dict[str, Any]) -> Any:
    if method == "POST" and not in_attempt.get() and _is_watched():
        full = str(session._build_url(url))
        taken = None if is_own(full) else taken_by()
        reply = None if taken is None else await takers["aiohttp"](session, url, options, taken)
        if reply is not None:
            return reply
        note_unseen(full, options.get("json") or options.get("data"))
    return await original(session, method, url, **options)


def _urllib3_route(
    original: Any, pool: Any, url: str, body: Any, headers: Any, options: dict[str, Any]
) -> Any:
    if not in_attempt.get() and _is_watched():
        full = url if "://" in url else f"{origin(pool)}{url}"
        taken = None if is_own(full) else taken_by()
        reply = (
            None
            if taken is None
            else takers["urllib3"](original, pool, full, url, body, headers, options, taken)
        )
        if reply is not None:
            return reply
        note_unseen(full, body)
    return original(pool, "POST", url, body, headers, **options)


def origin(pool: Any) -> str:
    """Return the scheme and host of a pool of urllib3, without the port if it is the usual one."""
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    usual = {"http": 80, "https": 443}.get(pool.scheme)
    return f"{pool.scheme}://{host}" + ("" if pool.port in (None, usual) else f":{pool.port}")


def _http_client_route(connection: Any, url: str, body: Any, headers: Mapping[str, Any]) -> None:
    if not in_attempt.get() and _is_watched():
        scheme = "https" if connection.default_port == 443 else "http"
        full = url if "://" in url else f"{scheme}://{connection.host}:{connection.port}{url}"
        note_unseen(
            full, body, "http.client can't be bridged; give the agent the address of afnio.bridge.url()"
        )


def _watching_transport(library: Any, transport: Any) -> Any:
    class Watching(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc]
        """Sends requests on, after those that look like calls of a model have been noted."""

        def handle_request(self, request: Any) -> Any:
            self._note(request)
            return transport.handle_request(request)

        async def handle_async_request(self, request: Any) -> Any:
            self._note(request)
            return await transport.handle_async_request(request)

        def _note(self, request: Any) -> None:
            if request.method == "POST":
                note_unseen(str(request.url), getattr(request, "_content", None))

    return Watching()


# Requests that nothing takes

# Paths of OpenAI's, Anthropic's, Google's, Amazon's and Ollama's APIs.
_MODEL_PATH: Final = re.compile(
    r"/(?:chat/completions|completions|responses|embeddings|messages)/?$"
    r"|:(?:generateContent|streamGenerateContent|predict|rawPredict|streamRawPredict)$"
    r"|/model/[^/]+/(?:converse|invoke)(?:-stream|-with-response-stream)?$"
    r"|/api/(?:chat|generate|embed)$"
)
# Paths where providers count tokens for nothing. The body is that of a call.
_FREE_PATH: Final = re.compile(r"/count[_-]tokens/?$|/responses/input_tokens/?$|:countTokens$")
# Bytes of the longest body that is parsed to see whether it is a call of a model.
_LONGEST: Final = 4 << 20


def note_unseen(url: str, body: Any, advice: str = "") -> None:
    """Warn, once for each place in the code, of a request to a model that the engine doesn't get.

    It must look like one: by its path, or because its body is JSON with a model and messages.

    Args:
        url: absolute, with or without credentials.
        body: bytes, text or a mapping; anything else can't be looked into.
        advice: what to do, if it isn't what `_advice` says.
    """
    if is_own(url):
        return
    bare, _, _ = url.partition("?")
    path = "/" + bare.partition("://")[2].partition("/")[2]
    if _FREE_PATH.search(path):
        return
    if not _MODEL_PATH.search(path) and not may_be_known(path) and not _is_chat(body):
        return
    line = caller_line()
    if str(line) in _warned:
        return
    _warned.add(str(line))
    host = bare.partition("://")[2].partition("/")[0].rpartition("@")[2]
    _logger.warning(
        "a request to a model at %s (POST %s%s) doesn't go through the engine, %s. Budgets, limits, journal and ledger "
        "don't count it",
        line,
        host,
        path,
        advice or _advice(path),
    )


def is_own(url: str) -> bool:
    """Return True for an address of `bridge.url`: what arrives there is a call of the engine already."""
    return bool(own_addresses) and url.startswith(tuple(own_addresses))


def _advice(path: str) -> str:
    if not any(block.open for block in (_block.get(),) if block is not None):
        if _open_blocks and not is_inside():
            return (
                "because its thread has no context; run the thread's function by contextvars.copy_context().run, or "
                "use afnio.bridge.installed(threads=True)"
            )
        return (
            "because it is in no block of afnio.bridge.installed(), and its client isn't one of afnio.bridge"
        )
    if not may_be_known(path):
        return (
            "because its API is unknown; name the path by afnio.bridge.register(), or use afnio.bridge.url()"
        )
    return "because its body or its options can't be read; use afnio.bridge.url()"


def _is_watched() -> bool:
    """Return True where a budget, a journal or a block of `installed` holds, or may hold."""
    return is_inside() or bool(_open_blocks)


def _is_chat(body: Any) -> bool:
    if isinstance(body, Mapping):
        return isinstance(body.get("messages"), list) and "model" in body
    if not isinstance(body, bytes | bytearray | str) or len(body) > _LONGEST:
        return False
    start = body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body)
    if b'"messages"' not in start or b'"model"' not in start:
        return False
    try:
        parsed = json.loads(start)
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and _is_chat(parsed)


# URLs that `bridge.url` serves in this process.
own_addresses: Final[set[str]] = set()
_warned: Final[set[str]] = set()
