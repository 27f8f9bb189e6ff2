"""A gateway in a process of its own, and a provider that does what a test wants."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp
import openai
from aiohttp import web
from yarl import URL

KEY = "sk-a-key-that-must-not-be-kept"


class GatewayProcess:
    """Runs `afnio gateway` while its block lasts."""

    def __init__(
        self,
        *arguments: str,
        port: int = 0,
        descriptors: tuple[int, int] | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self._limit = descriptors  # the soft and the hard limit
        self._passed = [] if listener is None else [listener.fileno()]
        self._sdks: list[openai.AsyncOpenAI] = []
        self.command = [sys.executable, "-m", "afnio.cli", "gateway", f"--port={port}", *arguments]
        for number in self._passed:  # as systemd does it
            script = f'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&{number}'
            self.command = ["bash", "-c", script, "bash", *self.command]

    async def __aenter__(self) -> Self:
        def limit() -> None:
            if self._limit is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, self._limit)

        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=limit,
            pass_fds=self._passed,
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self.errors: bytes = b""
        while not self.lines or not self.lines[-1].startswith("Set the first address"):
            assert self._process.stdout is not None
            line = (await self._process.stdout.readline()).decode()
            assert line, (await self._process.stderr.read()).decode()  # type: ignore[union-attr]
            self.lines.append(line.strip())
        self.url = self.lines[0].split()[0]
        self.metrics_url = self.lines[-2].split()[0]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for made in self._sdks:
            await made.close()
        if self._process.returncode is None:
            await self.end(signal.SIGKILL if exc[0] is not None else signal.SIGTERM)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it, and return its exit code."""
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end, and return its exit code."""
        out, self.errors = await self._process.communicate()
        self.lines += out.decode().splitlines()
        code = self._process.returncode
        assert code is not None
        return code

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.split("/")[2].rpartition(":")
        return host, int(port)

    async def post(
        self, path: str, body: Any, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> tuple[int, str]:
        """Send a body, JSON or bytes, and return the status and the text of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/json"}
        origin = "/".join(self.url.split("/")[:3])
        async with aiohttp.ClientSession() as session:
            async with session.request(
                method, URL(origin + path, encoded=True), data=data, headers={**kind, **(headers or {})}
            ) as response:
                return response.status, await response.text()

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        made = openai.AsyncOpenAI(**{"base_url": self.url, "api_key": KEY, **options})
        self._sdks.append(made)
        return made


Reply = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Upstream:
    """A provider in this process. It keeps what it was sent, and answers by `reply`.

    Attributes:
        requests: headers and JSON body of each POST, in order of arrival.
        peak: the most that were in flight at the same time.
    """

    def __init__(self, reply: Reply | None = None) -> None:
        self.requests: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.paths: list[str] = []
        self.peak = self._open = 0
        self._reply = reply or answer

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path_qs)
        if request.method == "GET":
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
        body = await request.json()
        self.requests.append((dict(request.headers), body))
        self._open += 1
        self.peak = max(self.peak, self._open)
        try:
            return await self._reply(request, body)
        finally:
            self._open -= 1

    @property
    def asked(self) -> list[str]:
        return [body["messages"][-1]["content"] for _, body in self.requests]


def completion(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


async def answer(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Repeat the last message."""
    return web.json_response(completion(body["messages"][-1]["content"]))


def after(seconds: float) -> Reply:
    """Answer like a provider that takes a while."""

    async def slow(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await answer(request, body)

    return slow


def chunk(text: str | None, finish: str | None = None) -> bytes:
    delta = {} if text is None else {"content": text}
    body = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def chat(sdk: openai.AsyncOpenAI, text: str, **options: Any) -> str | None:
    reply = await sdk.chat.completions.create(
        model="m", messages=[{"role": "user", "content": text}], **options
    )
    content: str | None = reply.choices[0].message.content
    return content


async def get(url: str, **options: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, **options) as response:
        return response.status, await response.text()


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
