"""An OpenAI-compatible provider on a local socket, inside a loop or as a process of its own.

As a process it prints one JSON line with its `base_url` and ends when its standard input ends:

    python -m afnio.testing.provider --latency lognormal:0.2,1.0 --faults transient:0.2 --seed 7
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import parse_qs, urlsplit

from afnio.testing.chat_service import LM, ChatService, FaultHook
from afnio.testing.completions import ApiError
from afnio.testing.connection import Connection
from afnio.testing.fault import Fault
from afnio.testing.fault_plan import FaultPlan
from afnio.testing.latency import Latency
from afnio.testing.simulated import SimulatedLM

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from afnio.testing.http import HttpError, Request
    from afnio.testing.process import ProviderProcess
    from afnio.testing.quota import Quota

__all__ = ["Fault", "Provider"]

MINUTE: Final = 60.0
_METHODS: Final = {
    "/chat/completions": "POST",
    "/models": "GET",
    "/health": "GET",
    "/stats": "GET",
    "/admin/quota": "POST",
}
_AZURE: Final = re.compile(r"/openai(/deployments/[^/]+)?(?=/)")


class Provider:
    """Serves chat completions to any number of connections, on the paths of OpenAI and of Azure.

    >>> async def main():
    ...     async with Provider(latency="lognormal:0.01,1", faults={"reset": 0.1}) as provider:
    ...         return provider.stats()["requests"]
    >>> asyncio.run(main())
    0

    Args:
        latency: seconds between a request and its reply, or a distribution of them.
        api_key: the key that requests must carry; None takes any.
        models: the models that exist; None takes any name.
        lm: maps a request to the text of its reply, or a dict that is sent as JSON; by default
            `SimulatedLM()`.
        fault: looks at each request and its index and says what goes wrong, at once, or None.
        faults: what goes wrong with which probability; see `FaultPlan`.
        quota: what each API key may send; see `Quota`.
        seed: of latencies and faults.
        window: seconds of the windows that `stats` counts; a quota's own, where there is one.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        *,
        latency: float | str | Latency = 0.0,
        api_key: str | None = None,
        models: Sequence[str] | None = None,
        lm: LM | None = None,
        fault: FaultHook | None = None,
        faults: str | Mapping[str, float] | FaultPlan | None = None,
        quota: Quota | None = None,
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> None:
        window = quota.window if quota is not None else MINUTE if window is None else window
        if window <= 0:
            raise ValueError(f"A window of [{window}] seconds counts nothing; give one above 0.")
        self._service = ChatService(
            lm=lm if lm is not None else SimulatedLM(seed=seed),
            models=models,
            latency=Latency.of(latency),
            faults=FaultPlan.of(faults),
            fault=fault,
            quota=quota,
            seed=seed,
            window=window,
        )
        self._api_key = api_key
        self._models = models
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @staticmethod
    def process(
        *,
        latency: float | str | Latency = 0.0,
        api_key: str | None = None,
        reply: str | None = None,
        context: int | None = None,
        faults: str | Mapping[str, float] | FaultPlan | None = None,
        quota: Quota | None = None,
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> ProviderProcess:
        """Return a provider that runs in its own process while the `with` block lasts.

        Args:
            reply: a fixed reply instead of the simulated LM.
            context: how many characters of each text the simulated LM reads.
        """
        from afnio.testing.options import Options
        from afnio.testing.process import ProviderProcess

        options = Options(
            latency=Latency.of(latency),
            api_key=api_key,
            reply=reply,
            context=context,
            faults=FaultPlan.of(faults),
            quota=quota,
            seed=seed,
            window=window,
            port=port,
        )
        return ProviderProcess(options)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._route, self._refuse, self._connections),
            "127.0.0.1",
            self._port,
            backlog=4096,
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        # An aborted transport closes its socket in a later turn of the loop.
        await asyncio.gather(*(connection.closed for connection in list(self._connections)))
        await self._server.wait_closed()

    @property
    def base_url(self) -> str:
        """The URL that clients take as `base_url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    def stats(self) -> dict[str, Any]:
        """Return what was seen so far: chat requests, kinds, faults, 429s, windows, attempts, tokens.

        `worst_window` slides and counts what came, refused or not, with tokens as a quota counts them;
        `windows` lie end to end from the first request on. `attempts` has the digest of each request.
        """
        return self._service.ledger.stats()

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        try:
            self._service.scale_quota(factor)
        except ApiError as error:
            raise ValueError(str(error)) from None

    def _refuse(self, error: HttpError, connection: Connection) -> None:
        connection.send(error.status, ApiError(error.status, str(error)).body())

    def _route(self, request: Request, connection: Connection) -> None:
        try:
            path = _plain_path(request)
            if path not in _METHODS:
                raise ApiError(404, f"Invalid URL [{request.method} {request.path}].")
            if request.method != _METHODS[path]:
                raise ApiError(405, f"Not allowed to [{request.method}] here; use {_METHODS[path]}.")
            if path == "/chat/completions":
                index = self._service.ledger.enter()
                connection.on_done = self._service.ledger.leave
                self._service.answer(request.body, self._authorize(request), index, connection)
                return
            if path == "/health":
                body: dict[str, Any] = {"status": "ok"}
            elif path == "/stats":
                body = self.stats()
            elif path == "/models":
                self._authorize(request)
                body = self._list_models()
            else:
                body = self._change_quota(request)
            connection.send(200, json.dumps(body).encode())
        except ApiError as error:
            connection.send(error.status, error.body())

    def _authorize(self, request: Request) -> str:
        key = request.headers.get("api-key")
        if key is None:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key is not None and key != self._api_key:
            # Like the real API, without the key that was sent: error bodies end up in logs.
            raise ApiError(401, "The API key is wrong; send the right one.", code="invalid_api_key")
        return key

    def _list_models(self) -> dict[str, Any]:
        names = self._models if self._models is not None else ["simulated"]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "afnio"} for name in names]
        return {"object": "list", "data": models}

    def _change_quota(self, request: Request) -> dict[str, Any]:
        try:
            factor = float(json.loads(request.body)["scale"])
        except (ValueError, TypeError, KeyError):
            raise ApiError(400, 'The body names no factor; send {"scale": 0.5}.') from None
        quota = self._service.scale_quota(factor)
        return {"requests": quota.requests, "tokens": quota.tokens, "window": quota.window}


def _plain_path(request: Request) -> str:
    """Return the path as OpenAI has it; on Azure's a request must name the version of the API."""
    parts = urlsplit(request.path)
    azure = _AZURE.match(parts.path)
    if azure is None:
        return parts.path.removeprefix("/v1")
    if not parse_qs(parts.query).get("api-version"):
        raise ApiError(404, f"Resource not found [{parts.path}]; add ?api-version=….")
    return parts.path[azure.end() :]


if __name__ == "__main__":
    from afnio.testing.command import main

    main()
