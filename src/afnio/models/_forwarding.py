"""Forwarding: what runs in a worker process sends its requests for a model to the driver.

The driver has the limits, the journal, the budgets and the trace, so calls that a lane makes in a worker must go
through it. `LaneAddress` (in `_loopback.py`) gives a lane an address there, and `Forwarded` enters it in the worker:
requests for a model of httpx and httpx2, and those of Afnio's own clients, are sent there, with their own URL in a
header.

They are rewritten when they are sent, and not where a client gets its base URL, because a client in a module outlives
the lane. OPENAI_BASE_URL is set, too, for other libraries and for subprocesses, but only where a process has one lane
at a time: the threads of a Dask worker share their environment.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import socket
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar, Token
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, final

from afnio.models._dialects import may_be_known

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

TARGET: Final = "x-afnio-target"
"""The header with the URL that a forwarded request is for."""
READ_TIMEOUT: Final = "x-afnio-read-timeout"
"""The header with its client's read timeout, which begins on the wire and not while it waits for its turn."""
RUN: Final = "."
"""Stands between a lane's token and the run of its function. No token contains it."""
_LIBRARIES: Final = ("httpx2", "httpx")
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
"""Socket options with which a connection to a host that is gone ends after 40 s.

Such a host sends no packet that says so. A call may wait for its reply for an hour, and without probes it would.
They also keep a connection open in firewalls that forget idle ones.
"""


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
        _patch_all()
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
_of_process: str | None = None
"""The address of the lane in the main thread, for threads without a context."""


def this_host() -> str:
    return socket.gethostname()


def forwarded(url: str, headers: Mapping[str, str]) -> tuple[str, Mapping[str, str]]:
    """Return a request's URL and headers as they are to be sent: to the driver, within a worker."""
    lane = _of_lane.get() or _of_process
    if lane is None:
        return url, headers
    driver, _, _ = lane.rpartition("/")
    if url.startswith(f"{driver}/"):  # a client that was made in an earlier lane
        _, _, path = url[len(driver) + 1 :].partition("/")
        return f"{lane}/{path}", headers
    return f"{lane}/forwarded", {**headers, TARGET: url}


def _patch_all() -> None:
    """Make the clients of the HTTP libraries forward, now or as soon as they are imported. Does it once."""
    if _patched:
        return
    for name in _LIBRARIES:
        if name in sys.modules:
            _patch(import_module(name))
    _patched.add("all")
    sys.meta_path.insert(0, _PatchingFinder())


_patched: Final[set[str]] = set()


@final
class _PatchingFinder(MetaPathFinder):
    """Patches a library after its import."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _LIBRARIES or fullname in _patched:
            return None
        _patched.add(fullname)
        spec = importlib.util.find_spec(fullname)
        loader: Any = None if spec is None else spec.loader
        if loader is None:
            return None
        execute = loader.exec_module

        def and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        loader.exec_module = and_patch
        return spec


def _patch(library: Any) -> None:
    transport = _transport_of(library)
    for kind in (library.Client, library.AsyncClient):
        _patch_class(kind, transport)


def _patch_class(kind: Any, transport: Any) -> None:
    original = kind._transport_for_url

    def routed(self: Any, url: Any) -> Any:
        found = original(self, url)
        lane = _of_lane.get() or _of_process
        if lane is None:
            return found
        ours = str(url).startswith(f"{lane.rpartition('/')[0]}/") or may_be_known(url.path)
        # A mock, or a transport with retries, stays. The bridge's own would use limits of this process.
        return transport if ours and (is_plain(found) or _is_bridge(found)) else found

    kind._transport_for_url = routed


def is_plain(transport: Any) -> bool:
    """Return True for an HTTP library's own connections, and for LiteLLM's: the engine's replace them."""
    kind = type(transport)
    library = kind.__module__.partition(".")[0]
    return (library in ("httpx", "httpx2") and kind.__name__ in ("HTTPTransport", "AsyncHTTPTransport")) or (
        library == "litellm"
    )


def _is_bridge(found: Any) -> bool:
    return type(found).__module__ == "afnio.bridge"


def _transport_of(library: Any) -> Any:
    class Forwarding(library.BaseTransport, library.AsyncBaseTransport):  # type: ignore[misc]
        """Sends requests to the driver, with connections of its own: a client's may go through a proxy."""

        def __init__(self) -> None:
            self._blocking = library.HTTPTransport(socket_options=PROBES)
            self._by_loop: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

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
            url, headers = forwarded(str(request.url), dict(request.headers))
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
