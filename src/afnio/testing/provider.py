"""An OpenAI-compatible provider on a local socket, inside a loop or as a process of its own.

As a process it prints one JSON line with its `base_url` and ends when its standard input ends:

    python -m afnio.testing.provider --port 0 --latency 0.2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from afnio.testing.completions import ApiError, completion, read_request
from afnio.testing.connection import Connection
from afnio.testing.simulated import FixedReply, SimulatedLM, kind_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from afnio.testing.http import HttpError, Request
    from afnio.testing.process import ProviderProcess

    LM = Callable[[dict[str, Any]], str | dict[str, Any]]
    FaultHook = Callable[[dict[str, Any], int], "Fault | None"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What a request gets instead of a reply: an error, a reset connection, or nothing ever."""

    status: int = 500
    body: str = '{"error": {"message": "A simulated fault.", "type": "server_error", "code": null}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False
    hang: bool = False


class Provider:
    """Serves chat completions to any number of connections.

    >>> async def main():
    ...     async with Provider(latency=0.01) as provider:
    ...         return provider.stats()["requests"]
    >>> asyncio.run(main())
    0

    Args:
        latency: seconds between a request and its reply.
        api_key: the key that requests must carry; None takes any.
        models: the models that exist; None takes any name.
        lm: maps a request to the text of its reply, or a dict that is sent as JSON; by default
            `SimulatedLM()`.
        fault: looks at each request and its index and says what goes wrong, at once, or None.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        *,
        latency: float = 0.0,
        api_key: str | None = None,
        models: Sequence[str] | None = None,
        lm: LM | None = None,
        fault: FaultHook | None = None,
        port: int = 0,
    ) -> None:
        self._latency = latency
        self._api_key = api_key
        self._models = models
        self._lm: LM = lm if lm is not None else SimulatedLM()
        self._fault = fault
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._requests = self._in_flight = self._peak = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._kinds: Counter[str] = Counter()

    @staticmethod
    def process(
        *, latency: float = 0.0, api_key: str | None = None, reply: str | None = None, port: int = 0
    ) -> ProviderProcess:
        """Return a provider that runs in its own process while the `with` block lasts."""
        from afnio.testing.process import ProviderProcess

        return ProviderProcess(latency=latency, api_key=api_key, reply=reply, port=port)

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
        """Return the chat requests so far, by kind, their peak in flight, and the tokens."""
        return {
            "requests": self._requests,
            "peak_in_flight": self._peak,
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
            "by_kind": dict(self._kinds),
        }

    def _refuse(self, error: HttpError, connection: Connection) -> None:
        connection.send(error.status, ApiError(error.status, str(error)).body())

    def _route(self, request: Request, connection: Connection) -> None:
        try:
            path = urlsplit(request.path).path.removeprefix("/v1")
            method = {
                "/chat/completions": "POST",
                "/models": "GET",
                "/health": "GET",
                "/stats": "GET",
            }
            if path not in method:
                raise ApiError(404, f"Invalid URL [{request.method} {request.path}].")
            if request.method != method[path]:
                raise ApiError(405, f"Not allowed to [{request.method}] here; use {method[path]}.")
            if path == "/health":
                self._send_json(connection, {"status": "ok"})
            elif path == "/stats":
                self._send_json(connection, self.stats())
            elif path == "/models":
                self._authorize(request)
                self._send_json(connection, self._list_models())
            else:
                self._chat(request, connection)
        except ApiError as error:
            connection.send(error.status, error.body())

    def _authorize(self, request: Request) -> None:
        if self._api_key is None:
            return
        bearer = request.headers.get("authorization", "")
        if self._api_key not in (bearer.removeprefix("Bearer "), request.headers.get("api-key")):
            # Like the real API, without the key that was sent: error bodies end up in logs.
            raise ApiError(401, "The API key is wrong; send the right one.", code="invalid_api_key")

    def _list_models(self) -> dict[str, Any]:
        names = self._models if self._models is not None else ["simulated"]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "afnio"} for name in names]
        return {"object": "list", "data": models}

    def _chat(self, request: Request, connection: Connection) -> None:
        index = self._requests
        self._requests += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        connection.on_done = self._leave
        self._authorize(request)
        chat = read_request(request.body, self._models)
        self._kinds[kind_of(chat)] += 1
        fault = self._fault(chat, index) if self._fault is not None else None
        if fault is not None:
            _apply(fault, connection)
        elif self._latency > 0:
            connection.later(self._latency, self._reply, chat, index, connection)
        else:
            self._reply(chat, index, connection)

    def _leave(self) -> None:
        self._in_flight -= 1

    def _reply(self, chat: dict[str, Any], index: int, connection: Connection) -> None:
        try:
            body, asked, given = completion(chat, self._lm(chat), index)
        except Exception as error:  # a broken `lm` must not leave its client waiting
            failure = ApiError(500, f"The lm raised [{error!r}].", kind="server_error")
            connection.send(500, failure.body())
            return
        self._prompt_tokens += asked
        self._completion_tokens += given
        self._send_json(connection, body)

    @staticmethod
    def _send_json(connection: Connection, body: dict[str, Any]) -> None:
        connection.send(200, json.dumps(body).encode())


def _apply(fault: Fault, connection: Connection) -> None:
    if fault.close:
        connection.reset()
    elif not fault.hang:
        connection.send(fault.status, fault.body.encode(), fault.headers)


async def _serve(provider: Provider) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop may have ended first
            loop.call_soon_threadsafe(ended.set)

    async with provider:
        sys.stdout.write(json.dumps({"base_url": provider.base_url}) + "\n")
        sys.stdout.flush()
        threading.Thread(target=watch, name="stdin", daemon=True).start()
        await ended.wait()


def _raise_file_limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m afnio.testing.provider")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each reply")
    parser.add_argument("--api-key", help="the key that requests must carry")
    parser.add_argument("--reply", help="a fixed reply instead of the simulated LM")
    args = parser.parse_args(argv)
    _raise_file_limit()
    lm = FixedReply(args.reply) if args.reply is not None else SimulatedLM()
    provider = Provider(latency=args.latency, api_key=args.api_key, lm=lm, port=args.port)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(provider))


if __name__ == "__main__":
    main()
