"""Patches of HTTP libraries: requests of clients that nobody gave to Afnio.

Two parts of Afnio need them. The *engine's* routes take requests for a model in `bridge.installed`, and watch for those
that nothing takes. The *driver's* routes send what a worker asks to the program's own process. Each library is patched
once, now or as soon as it is imported, and asks the routes for each request. The driver has the last word: in a worker
a request must not go through the worker's engine as well.

httpx, httpx2   a route returns the transport for a URL
aiohttp         a route of the engine makes the request; one of the driver changes its URL and options
urllib3         a route makes the request. It carries requests and boto3
http.client     a route is called with the request, and can't change it. It carries urllib.request
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Literal, final

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
_waiting: Final[dict[str, Callable[[Any], None]]] = {}
"""The modules that are patched after their import."""


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


_PATCHES: Final[dict[str, dict[str, Callable[[Any], None]]]] = {
    "httpx": {"httpx2": _patch_httpx, "httpx": _patch_httpx},
    "aiohttp": {"aiohttp.client": _patch_aiohttp},
    "urllib3": {"urllib3.connectionpool": _patch_urllib3},
    "http.client": {"http.client": _patch_http_client},
}
"""What is patched of each library, in which module."""
