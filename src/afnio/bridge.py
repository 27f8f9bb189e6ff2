"""The bridge: agents that were written for an SDK, through the engine, unchanged.

Every SDK takes an HTTP client. One of the bridge's hands requests for a model to the engine, and so gives any agent its
lanes, limits, retries, journal, budgets, priorities and traces:

    client = openai.AsyncOpenAI(http_client=afnio.bridge.client())

    client, sync_client   an httpx2 or httpx client for an SDK's `http_client`
    transport             the transport in it, for clients that you make yourself
    installed             a block in which clients that the code makes itself are bridged, too: those of httpx and
                          httpx2, requests, urllib3, boto3 and aiohttp
    url                   an address for subprocesses and other languages, whose calls belong to the lane
    register              another API's path

A request for a model is a POST with a JSON body to the path of chat completions, Responses, embeddings, Anthropic's
messages, or Gemini's generateContent. Everything else (lists of models, files) is sent on as it is.

The engine retries, so an SDK must not. It never sees an exception of ours, which it would take for a lost connection:
it gets the provider's own response, or one of ours with a sentence, and raises its own error. After a budget has ended
that is status 402.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Literal

from afnio.models import _apis
from afnio.models._httpx import transport_class, transport_for
from afnio.models._installed import installed, takers
from afnio.models._loopback import url
from afnio.models._other_clients import aiohttp_reply, urllib3_reply
from afnio.models._transport import http_library
from afnio.runtime._limits import Limits

__all__ = ["client", "installed", "register", "sync_client", "transport", "url"]

takers.update(httpx=transport_for, aiohttp=aiohttp_reply, urllib3=urllib3_reply)

HttpModule = Literal["httpx2", "httpx"]

# Options of a client that act on the transport that the bridge replaces.
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
    return transport_class(library)(limits=limits, inner=inner)


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
    _apis.register(ending, usage)


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
    return getattr(library, kind)(transport=transport_class(library)(limits=limits), **options)


def _library(module: str | None) -> ModuleType:
    module = http_library() if module is None else module
    if module not in ("httpx2", "httpx"):
        raise ValueError(f'module must be "httpx2" or "httpx" (got {module!r})')
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed; run pip install {module}") from error
