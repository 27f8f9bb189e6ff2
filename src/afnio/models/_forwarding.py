"""Forwarding: what runs in a worker process sends its requests for a model to the driver.

The driver has the limits, the journal, the budgets and the trace, so calls that a lane makes in a worker must go
through it. `LaneAddress` (in `_loopback.py`) gives a lane an address there, and `Forwarded` enters it in the worker:
requests for a model of httpx, httpx2 and aiohttp, those of Afnio's own clients among them, are sent there, with their
own URL in a header.

They are rewritten when they are sent, and not where a client gets its base URL, because a client in a module outlives
the lane. OPENAI_BASE_URL is set, too, for other libraries and for subprocesses, but only where a process has one lane
at a time: the threads of a Dask worker share their environment.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from typing import Any, Final, final

from afnio.models._apis import may_be_known
from afnio.models._installed import add_route

# The header with the URL that a forwarded request is for.
TARGET: Final = "x-afnio-target"
# The header with its client's read timeout, which begins on the wire and not while it waits for its turn.
READ_TIMEOUT: Final = "x-afnio-read-timeout"
# Stands between a lane's token and the run of its function. No token contains it.
RUN: Final = "."
# Socket options with which a connection to a host that is gone ends after 40 s.
#
# Such a host sends no packet that says so. A call may wait for its reply for an hour, and without probes it
# would. They also keep a connection open in firewalls that forget idle ones.
PROBES: Final = [
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 20),
        (socket.IPPROTO_TCP, "TCP_KEEPALIVE", 20),  # macOS's name of it
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", 40_000),
    )
    if hasattr(socket, name)
]


@final
class Forwarded(AbstractContextManager[None]):
    """Sends the requests for a model in its block to the driver.

    Each time it is entered, the address gets another ending: Dask runs a task again by itself, and the driver must know
    that the first request of the second run is the same as the first of the first.

    Args:
        address: the lane's.
        host: the driver's host. On another one its loopback address leads nowhere, and nothing is forwarded. Empty for
            an address that other hosts reach.
    """

    def __init__(self, address: str, host: str) -> None:
        self.address = address
        self.host = host
        self._token: Token[str | None] | None = None
        self._before: str | None = None

    def __call__(self) -> Forwarded:
        return self

    def __enter__(self) -> None:
        global _of_process
        if self.host and self.host != this_host():
            return
        add_route("driver", "httpx", _httpx_route)
        add_route("driver", "aiohttp", _aiohttp_route)
        address = f"{self.address}{RUN}{secrets.token_hex(8)}"
        self._token = _of_lane.set(address)
        if threading.current_thread() is threading.main_thread():
            _of_process = address
            self._before = os.environ.get("OPENAI_BASE_URL")
            os.environ["OPENAI_BASE_URL"] = address

    def __exit__(self, *exc: object) -> None:
        global _of_process
        if self._token is None:
            return
        _of_lane.reset(self._token)
        if threading.current_thread() is threading.main_thread():
            _of_process = None
            if self._before is None:
                os.environ.pop("OPENAI_BASE_URL", None)
            else:
                os.environ["OPENAI_BASE_URL"] = self._before


_of_lane: Final[ContextVar[str | None]] = ContextVar("afnio_forwarded", default=None)
# The address of the lane in the main thread, for threads without a context.
_of_process: str | None = None


def this_host() -> str:
    return socket.gethostname()


def _forwarded(url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]] | None:
    """Return a request's URL and headers as they are sent to the driver, or None outside of a worker's lane."""
    lane = _of_lane.get() or _of_process
    if lane is None:
        return None
    driver, _, _ = lane.rpartition("/")
    if url.startswith(f"{driver}/"):  # a client that was made in an earlier lane
        _, _, path = url[len(driver) + 1 :].partition("/")
        return f"{lane}/{path}", headers
    return f"{lane}/forwarded", {**headers, TARGET: url}


def _is_forwarded(url: Any) -> bool:
    lane = _of_lane.get() or _of_process
    return lane is not None and (str(url).startswith(f"{lane.rpartition('/')[0]}/") or may_be_known(url.path))


def _httpx_route(library: Any, transport: Any, url: Any) -> Any:
    # A mock, or a transport with retries, stays. The bridge's own would use limits of this process.
    if _is_forwarded(url) and (is_plain(transport) or type(transport).__module__.startswith("afnio.")):
        with _making:  # two threads would make two, and the sockets of one would be lost
            if library not in _transports:
                _transports[library] = _transport_of(library)
                atexit.register(_transports[library].close)
            return _transports[library]
    return transport


_transports: Final[dict[Any, Any]] = {}
_making: Final = threading.Lock()


def _aiohttp_route(
    session: Any, method: str, url: Any, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]] | None:
    from yarl import URL

    full = session._build_url(url)
    if method != "POST" or not _is_forwarded(full):
        return None
    headers = {str(name): value for name, value in (options.get("headers") or {}).items()}
    rewritten = _forwarded(str(full), headers)
    if rewritten is None:
        return None
    return URL(rewritten[0], encoded=True), {**options, "headers": rewritten[1], "proxy": None}


def is_plain(transport: Any) -> bool:
    """Return True for an HTTP library's own connections, and for LiteLLM's: the engine's replace them."""
    kind = type(transport)
    library = kind.__module__.partition(".")[0]
    return (library in ("httpx", "httpx2") and kind.__name__ in ("HTTPTransport", "AsyncHTTPTransport")) or (
        library == "litellm"
    )


def _transport_of(library: Any) -> Any:
    class Forwarding(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc]
        """Sends requests to the driver, with connections of its own: a client's may go through a proxy."""

        def __init__(self) -> None:
            self._blocking = library.HTTPTransport(socket_options=PROBES)
            self._by_loop: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

        def close(self) -> None:
            self._blocking.close()

        def handle_request(self, request: Any) -> Any:
            return self._blocking.handle_request(self._rewritten(request, request.read()))

        async def handle_async_request(self, request: Any) -> Any:
            loop = asyncio.get_running_loop()
            if loop not in self._by_loop:
                self._by_loop[loop] = library.AsyncHTTPTransport(socket_options=PROBES)
            return await self._by_loop[loop].handle_async_request(
                self._rewritten(request, await request.aread())
            )

        def _rewritten(self, request: Any, content: bytes) -> Any:
            own = str(request.url), dict(request.headers)
            url, headers = _forwarded(*own) or own
            kept = {name: value for name, value in headers.items() if name not in ("host", "content-length")}
            timeout = dict(request.extensions.get("timeout") or {})
            if timeout.get("read") is not None:
                kept[READ_TIMEOUT] = str(timeout["read"])
                timeout["read"] = None
            return library.Request(
                request.method, url, headers=kept, content=content, extensions={"timeout": timeout}
            )

    return Forwarding()


def read_timeout_of(headers: Mapping[str, str]) -> float | None:
    """Return the read timeout that a worker's client has."""
    try:
        return float(headers.get(READ_TIMEOUT, ""))
    except ValueError:
        return None
