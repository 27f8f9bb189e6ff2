"""The bridge: agents that were written for an SDK, through the engine, unchanged.

Every SDK takes an HTTP client. One of the bridge's hands requests for a model to the engine, and so gives any agent its
lanes, limits, retries, journal, budgets, priorities and traces:

    client = openai.AsyncOpenAI(http_client=afnio.bridge.client())

    client, sync_client   an httpx2 or httpx client for an SDK's `http_client`
    transport             the transport in it, for clients that you make yourself
    installed             a block in which clients that the code makes itself are bridged, too
    url                   an address for subprocesses and other languages, whose calls belong to the lane
    register              another API's path

A request for a model is a POST with a JSON body to the path of chat completions, Responses, embeddings, Anthropic's
messages, or Gemini's generateContent. Everything else (lists of models, files) is sent on as it is.

The engine retries, so an SDK must not. It never sees an exception of ours, which it would take for a lost connection:
it gets the provider's own response, or one of ours with a sentence, and raises its own error. After a budget has ended
that is status 402.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import Context, ContextVar, Token, copy_context
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Literal, TypeVar, final

import anyio
import anyio.to_thread

from afnio.errors import FinalModelError, TransientModelError
from afnio.models import _dialects
from afnio.models._bridging import Bridged, launch_request, user_line
from afnio.models._dialects import may_be_known
from afnio.models._exchange import Sender, send_by_aiohttp
from afnio.models._forwarding import is_plain
from afnio.models._loopback import url
from afnio.models._raw import RawReply, RawRequest, own_reply
from afnio.models._streams import BrokenReplyError
from afnio.models._trace import in_attempt
from afnio.models._transport import MAX_REPLY, http_library, unreachable
from afnio.runtime._kernel import Failure, Job, Launch, Slot, current_runtime, on_runtime_thread
from afnio.runtime._limits import Limits, give_limits
from afnio.runtime._loop import running_loop
from afnio.runtime._waiting import wait_async

__all__ = ["client", "installed", "register", "sync_client", "transport", "url"]

HttpModule = Literal["httpx2", "httpx"]
T = TypeVar("T")

_OF_TRANSPORTS: Final = (
    "proxy",
    "verify",
    "cert",
    "mounts",
    "transport",
    "http1",
    "http2",
    "uds",
    "local_address",
)
"""Options of a client that act on the transport that the bridge replaces."""
_INNER_THREADS: Final = 256
"""The most worker threads in which an inner transport that blocks may be waited for."""

_logger = logging.getLogger("afnio")


def client(limits: Limits | None = None, module: HttpModule | None = None, **options: Any) -> Any:
    """Return an asynchronous HTTP client whose requests for a model go through the engine.

    Args:
        limits: those of every account that it is used with. The newest ones apply to all clients of an account.
        module: the HTTP library that the SDK wants: "httpx2" for openai 3, anthropic and google-genai 3
            (`HttpOptions(httpx_async_client=…)`), "httpx" for openai 2, LangChain and older ones. Default: that of the
            installed openai.
        **options: any other option of the library's `AsyncClient`. Its timeout counts from when a request is on the
            wire, and not while it waits for its turn.

    Raises:
        TypeError: for an option of the transport that the bridge replaces.
        ImportError: if the library isn't installed.

    >>> import openai
    >>> sdk = openai.AsyncOpenAI(api_key="any", http_client=client())
    """
    return _client("AsyncClient", limits, module, options)


def sync_client(limits: Limits | None = None, module: HttpModule | None = None, **options: Any) -> Any:
    """Return a blocking HTTP client whose requests for a model go through the engine. Arguments as for `client`.

    It waits in the thread that calls it. On the runtime's own loop, in an `async def` callable, that would stop every
    other call; there the request gets status 400.

    Raises:
        TypeError, ImportError: as for `client`.

    >>> import openai
    >>> sdk = openai.OpenAI(api_key="any", http_client=sync_client())
    """
    return _client("Client", limits, module, options)


def transport(module: HttpModule | None = None, inner: Any = None, *, limits: Limits | None = None) -> Any:
    """Return a transport for a client that you make yourself. It serves blocking and asynchronous clients.

    Args:
        module: the HTTP library of the client, as for `client`.
        inner: sends the attempts, on the runtime's loop: one of the library's transports, with your own proxy or
            certificates. A blocking one is called in worker threads. Don't use it elsewhere. By default the engine
            sends them by its own connections.
        limits: as for `client`.

    Raises:
        TypeError: if `inner` isn't a transport of the library.
        ImportError: if the library isn't installed.

    >>> import httpx2
    >>> http_client = httpx2.AsyncClient(transport=transport(inner=httpx2.AsyncHTTPTransport(verify=False)))
    """
    library = _library(module)
    if inner is not None and not isinstance(inner, (library.BaseTransport, library.AsyncBaseTransport)):
        raise TypeError(
            f"inner must be a transport of {library.__name__} (got {type(inner).__name__}); pass module= with its "
            "library's name"
        )
    return _transport_class(library)(limits=limits, inner=inner)


def register(path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
    """Take POST requests with a JSON body to another path for requests of a model.

    Args:
        path: the end of the path, such as "v1/complete".
        usage: called with a reply's JSON; returns its tokens as (input, output), as a `Usage`, or None if unknown.

    Raises:
        ValueError: for an empty path.

    >>> register("v1/complete", usage=lambda reply: (reply["tokens_in"], reply["tokens_out"]))
    """
    ending = path.strip("/")
    if not ending or "?" in ending:
        raise ValueError(
            f"path must be the end of a URL's path (got {path!r}); pass one such as 'v1/complete'"
        )
    _dialects.register(ending, usage)


def _client(kind: str, limits: Limits | None, module: str | None, options: dict[str, Any]) -> Any:
    library = _library(module)
    if limits is not None and not isinstance(limits, Limits):
        raise TypeError(
            f"limits must be an afnio.Limits (got {type(limits).__name__}); the engine needs no connection pool"
        )
    for name in _OF_TRANSPORTS:
        if name in options:
            raise TypeError(
                f"{name}= acts on the transport that the bridge replaces; pass "
                f"{library.__name__}.{kind}(transport=afnio.bridge.transport({library.__name__!r}, inner=…)) with a "
                "transport that has it"
            )
    # The SDKs take the timeout of a client for their own. The library's default of 5 s is too short for a model.
    options.setdefault("timeout", library.Timeout(600.0, connect=10.0))
    return getattr(library, kind)(transport=_transport_class(library)(limits=limits), **options)


def _library(module: str | None) -> ModuleType:
    module = http_library() if module is None else module
    if module not in ("httpx2", "httpx"):
        raise ValueError(f'module must be "httpx2" or "httpx" (got {module!r})')
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed; run pip install {module}") from error


# The transport


_classes: dict[str, type[Any]] = {}


def _transport_class(library: ModuleType) -> type[Any]:
    """Return the transport class for one of the HTTP libraries. It is made when the library is first needed."""
    made = _classes.get(library.__name__)
    if made is None:
        made = _classes[library.__name__] = _make_class(library)
    return made


def _make_class(library: ModuleType) -> type[Any]:
    class AfnioTransport(_Bridge, library.AsyncBaseTransport, library.BaseTransport):  # type: ignore[name-defined,misc]
        """Hands requests for a model to the engine, and sends others on."""

    AfnioTransport._library = library
    AfnioTransport._events = _stream_class(library)
    AfnioTransport.__module__ = __name__
    return AfnioTransport


class _Bridge:
    """What the transports of both libraries do.

    Args:
        limits: given to each account at its first request.
        inner: see `transport`.
        beside: where other requests go, instead of an own client for each loop.
        context: the block's context, for requests from a thread that has none.
        escaped: True to send requests for a model on, too, with a warning.
    """

    _library: Any
    _events: Any

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        inner: Any = None,
        beside: Any = None,
        context: Context | None = None,
        escaped: bool = False,
    ) -> None:
        self._limits = limits
        self._escaped = escaped
        self._inner = inner
        self._beside = beside
        self._context = context
        self._limited: set[Any] = set()
        self._send: Sender = send_by_aiohttp if inner is None else _InnerSender(self._library, inner)
        self._others: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._blocking: Any = None

    async def handle_async_request(self, request: Any) -> Any:
        raw = None
        if self._is_candidate(request):
            raw = RawRequest.read(request.method, str(request.url), request.headers, await request.aread())
        if raw is None or self._escapes():
            return await self._pass_on(request)
        bridged = self._launch(raw, request)
        pipe = bridged.exchange.pipe
        try:
            head = await pipe.head()
            if raw.stream:
                return self._library.Response(head.status, headers=head.headers, stream=self._events(bridged))
            return self._response(head, [piece async for piece in pipe])
        except BaseException:  # the caller's task was cancelled
            bridged.cancel()
            raise

    def handle_request(self, request: Any) -> Any:
        raw = None
        if self._is_candidate(request):
            raw = RawRequest.read(request.method, str(request.url), request.headers, request.read())
        if raw is None or self._escapes():
            return self._pass_on_blocking(request)
        if on_runtime_thread():
            refused = _refused_on_loop()
            return self._library.Response(refused.status, headers=refused.headers, content=refused.body)
        bridged = self._launch(raw, request)
        pipe = bridged.exchange.pipe
        try:
            head = pipe.wait_for_head()
            if raw.stream:
                return self._library.Response(head.status, headers=head.headers, stream=self._events(bridged))
            return self._response(head, list(pipe))
        except BaseException:  # Ctrl-C
            bridged.cancel()
            raise

    def _response(self, head: Any, pieces: list[bytes]) -> Any:
        return self._library.Response(head.status, headers=head.headers, content=b"".join(pieces))

    def _is_candidate(self, request: Any) -> bool:
        return (
            request.method == "POST"
            and may_be_known(request.url.path)
            and request.headers.get("content-type", "").startswith("application/json")
            and not in_attempt.get()
        )

    def _escapes(self) -> bool:
        if self._escaped:
            line = user_line()
            if (line.file, line.number) not in _warned:
                _warned.add((line.file, line.number))
                _logger.warning(
                    "a request to a model at %s doesn't go through the engine, because its thread has no context; run "
                    "the thread's function by contextvars.copy_context().run, or use "
                    "afnio.bridge.installed(threads=True)",
                    line,
                )
        return self._escaped

    def _launch(self, raw: RawRequest, request: Any) -> Bridged:
        if self._limits is not None and raw.account not in self._limited:
            self._limited.add(raw.account)
            give_limits(raw.account, self._limits)
        timeout = (request.extensions.get("timeout") or {}).get("read")
        context = None if self._context is None else self._context.copy()
        if context is None:
            return launch_request(raw, read_timeout=timeout, send=self._send)
        return context.run(launch_request, raw, read_timeout=timeout, send=self._send)

    # Other requests

    async def _pass_on(self, request: Any) -> Any:
        if self._beside is not None:
            return await self._beside.handle_async_request(request)
        if self._inner is not None and not in_attempt.get():
            return await _by_inner(self._library, self._inner, request)
        if on_runtime_thread():  # a native client with one of ours; closed with the runtime
            other = current_runtime().resource((_Bridge, self._library), self._library.AsyncClient)
        else:
            other = self._others.get(running_loop())
            if other is None:
                other = self._others[running_loop()] = self._library.AsyncClient()
        token = in_attempt.set(True)  # under `installed` it would come back here
        try:
            return await other.send(request, stream=True)
        finally:
            in_attempt.reset(token)

    def _pass_on_blocking(self, request: Any) -> Any:
        if self._beside is not None:
            return self._beside.handle_request(request)
        if self._inner is not None and isinstance(self._inner, self._library.BaseTransport):
            return self._inner.handle_request(request)
        if self._blocking is None:
            self._blocking = self._library.Client()
        token = in_attempt.set(True)
        try:
            return self._blocking.send(request, stream=True)
        finally:
            in_attempt.reset(token)

    async def aclose(self) -> None:
        other = self._others.pop(running_loop(), None)
        if other is not None:
            await other.aclose()
        if isinstance(self._inner, self._library.AsyncBaseTransport):
            await _on_runtime(self._inner.aclose)
        elif self._inner is not None:
            self._inner.close()

    def close(self) -> None:
        if isinstance(self._inner, self._library.BaseTransport):
            self._inner.close()
        if self._blocking is not None:
            self._blocking.close()
            self._blocking = None


def _stream_class(library: ModuleType) -> type[Any]:
    class AfnioStream(library.AsyncByteStream, library.SyncByteStream):  # type: ignore[name-defined,misc]
        """The events of a reply, as the library's response reads them."""

        def __init__(self, bridged: Bridged) -> None:
            self._bridged = bridged

        async def __aiter__(self) -> AsyncIterator[bytes]:
            try:
                async for piece in self._bridged.exchange.pipe:
                    yield piece
            except BrokenReplyError as error:
                raise library.RemoteProtocolError(str(error)) from None

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._bridged.exchange.pipe
            except BrokenReplyError as error:
                raise library.RemoteProtocolError(str(error)) from None

        async def aclose(self) -> None:
            self.close()

        def close(self) -> None:
            self._bridged.exchange.pipe.leave()

        def __del__(self) -> None:
            # Dropped by a reader that closed nothing. Its place in flight would stay taken.
            with suppress(Exception):
                self.close()

    return AfnioStream


def _refused_on_loop() -> RawReply:
    line = user_line()
    return own_reply(
        400,
        "a synchronous client was called in an `async def` callable, where waiting for it would stop every other call "
        f"({line}); use the SDK's asynchronous client with afnio.bridge.client(), or make the callable a `def`",
        "blocking_client",
    )


# Inner transports


@final
class _InnerSender:
    """Sends attempts by a user's own transport."""

    def __init__(self, library: Any, inner: Any) -> None:
        self._library = library
        self._inner = inner
        self._threads: anyio.CapacityLimiter | None = None

    async def __call__(self, request: RawRequest, body: bytes) -> _InnerResponse:
        kept = {
            name: value
            for name, value in request.headers.items()
            if name not in ("content-length", "transfer-encoding")
        }
        sent = self._library.Request(request.method, request.url, headers=kept, content=body)
        shown = request.shown
        try:
            if isinstance(self._inner, self._library.AsyncBaseTransport):
                response = await self._inner.handle_async_request(sent)
            else:
                if self._threads is None:
                    self._threads = anyio.CapacityLimiter(_INNER_THREADS)
                response = await anyio.to_thread.run_sync(
                    self._inner.handle_request, sent, limiter=self._threads, abandon_on_cancel=True
                )
        except (self._library.ConnectError, self._library.ConnectTimeout) as error:
            raise unreachable(shown, type(error).__name__) from None
        except self._library.HTTPError as error:
            raise TransientModelError(
                f"the connection to {shown} ended early ({type(error).__name__})"
            ) from None
        response.request = sent
        return _InnerResponse(self._library, response, shown, self._threads)


@final
class _InnerResponse:
    """A response of an inner transport."""

    def __init__(
        self, library: Any, response: Any, shown: str, threads: anyio.CapacityLimiter | None
    ) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self._library = library
        self._response = response
        self._shown = shown
        self._threads = threads
        self._is_async = hasattr(response.stream, "__aiter__") and threads is None
        self._pieces: Any = response.aiter_bytes() if self._is_async else response.iter_bytes()

    async def __aenter__(self) -> _InnerResponse:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._is_async:
            await self._response.aclose()
        else:
            self._response.close()

    async def read(self) -> bytes:
        try:
            if self._is_async:
                return await anext(self._pieces, b"")
            return await anyio.to_thread.run_sync(next, self._pieces, b"", limiter=self._threads)
        except self._library.HTTPError as error:
            raise TransientModelError(
                f"the connection to {self._shown} ended early ({type(error).__name__})"
            ) from None

    async def read_all(self) -> bytes:
        pieces = []
        size = 0
        while piece := await self.read():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_REPLY:
                raise FinalModelError(f"{self._shown} sent a reply of more than {MAX_REPLY:,} bytes")
        return b"".join(pieces)


async def _by_inner(library: Any, inner: Any, request: Any) -> Any:
    """Send a request that isn't for a model by an inner transport."""
    content = await request.aread()
    sent = library.Request(
        request.method, request.url, headers=request.headers, content=content, extensions=request.extensions
    )

    async def send() -> tuple[Any, bytes]:
        if not isinstance(inner, library.AsyncBaseTransport):
            response = await anyio.to_thread.run_sync(inner.handle_request, sent)
            return response, b"".join(response.stream)
        response = await inner.handle_async_request(sent)
        try:
            return response, b"".join([piece async for piece in response.stream])
        finally:
            await response.aclose()

    response, data = await _on_runtime(send)
    return library.Response(response.status_code, headers=response.headers, stream=library.ByteStream(data))


async def _on_runtime(function: Callable[[], Awaitable[T]]) -> T:
    """Await `function()` on the runtime's loop: an inner transport's connections belong to it."""
    launch = Launch("http", address="http")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[Any]:
        return [(await function(),)]

    launch.add(body, [], [slot])
    launch.start()
    await wait_async([slot])
    if isinstance(slot.outcome, Failure):
        raise slot.outcome.raised()
    result: T = slot.outcome[0]
    return result


# Clients that the code makes itself


class installed(AbstractContextManager[None]):  # noqa: N801
    """Bridge the clients of httpx and httpx2 that code in the block uses, whoever made them, and when.

    It is for code that takes no `http_client`. It holds for the block's context: its tasks, `asyncio.to_thread`, and
    the worker threads of frameworks that copy the context, as LangChain, CrewAI and smolagents do. A thread that
    doesn't escapes, and so does what uses another HTTP library, such as google-genai's async client (aiohttp). The
    first such request of each place in the code is named in a warning.

    A client with a transport of its own (a mock, retries) keeps it: the engine sends its attempts by that.

    Args:
        limits: those of every account that is used in the block.
        threads: True to take in requests from threads without a context as well. They belong to the block, so they
            have its limits, journal and budgets, and no lane.

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
        self.context: Context | None = None
        self._token: Token[installed | None] | None = None

    def __enter__(self) -> None:
        if self.open:
            raise RuntimeError("a block of installed() can be entered only once; make a new one")
        with _patching:
            for module in ("httpx2", "httpx"):
                if module in sys.modules or importlib.util.find_spec(module) is not None:
                    _patch(import_module(module))
        self._token = _block.set(self)
        self.open = True
        if self.threads:
            self.context = copy_context()
        _open_blocks.append(self)
        _warn_of_aiohttp()

    def __exit__(self, *exc: object) -> None:
        self.open = False
        _open_blocks.remove(self)
        assert self._token is not None
        _block.reset(self._token)
        _warn_of_aiohttp()


_block: Final[ContextVar[installed | None]] = ContextVar("afnio_installed", default=None)
# Needs no lock: append and remove are atomic.
_open_blocks: Final[list[installed]] = []
_patching: Final = threading.Lock()
_patched: Final[set[str]] = set()
_warned: Final[set[object]] = set()


def _patch(library: ModuleType) -> None:
    """Make the clients of a library look for a block, once. Without one they behave as before."""
    if library.__name__ in _patched:
        return
    _patched.add(library.__name__)
    for kind in (library.Client, library.AsyncClient):
        _patch_class(library, kind)


def _patch_class(library: ModuleType, kind: Any) -> None:
    # Not the classes of transports: frameworks have transports of their own.
    original = kind._transport_for_url

    def routed(self: Any, url: Any) -> Any:
        found = original(self, url)
        if not _open_blocks or in_attempt.get() or isinstance(found, _Bridge) or not may_be_known(url.path):
            return found
        block = _block.get()
        if block is not None and block.open:
            return _routed(library, found, block, None)
        block = next((block for block in reversed(_open_blocks) if block.threads), None)
        if block is not None:
            return _routed(library, found, block, block.context)
        return _transport_class(library)(beside=found, escaped=True)

    kind._transport_for_url = routed


def _routed(library: ModuleType, found: Any, block: installed, context: Context | None) -> Any:
    inner = None if is_plain(found) else found
    return _transport_class(library)(limits=block.limits, inner=inner, beside=found, context=context)


def _warn_of_aiohttp() -> None:
    if "google.genai" in sys.modules and "aiohttp" not in _warned:
        _warned.add("aiohttp")
        _logger.warning(
            "google-genai's async client uses aiohttp, whose requests don't go through the engine; pass it "
            "HttpOptions(httpx_async_client=afnio.bridge.client())"
        )
