"""An endpoint that answers after a latency, over HTTP and over HTTPS: aiohttp.web with asyncio's own TLS.

Both ports belong to one server with the defaults of its libraries (but for a longer queue of connections that wait to
be accepted): what a call costs over TLS is compared with what it costs without, and nothing else differs. The first
segment of a path is the latency in seconds. `/counts` says how many connections came, and how many of them resumed a
TLS session. The process ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import resource
import ssl
import sys
from typing import Any
from weakref import WeakSet

from aiohttp import web

from benchmarks.children.texts import MODEL, REPLY

BACKLOG = 4096
LARGEST = 1 << 20
USAGE = {"prompt_tokens": 500, "completion_tokens": 1, "total_tokens": 501}
MESSAGE = {"role": "assistant", "content": REPLY, "refusal": None}
CHOICE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": None}
BODY = json.dumps(
    {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [CHOICE],
        "usage": USAGE,
    }
).encode()


class Endpoint:
    """Answers, and counts connections."""

    def __init__(self) -> None:
        self._known: WeakSet[asyncio.Transport] = WeakSet()
        self._counts = {"connections": 0, "resumed": 0, "in flight": 0}

    async def serve(self, certificate: str) -> None:
        """Print both base URLs and serve until standard input ends."""
        app = web.Application(client_max_size=LARGEST)
        app.router.add_post("/{latency}/v1/chat/completions", self._chat)
        app.router.add_get("/counts", self._count)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        for tls in (None, context):
            await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls, backlog=BACKLOG).start()
        http, https = (address[1] for address in runner.addresses)
        sys.stdout.write(json.dumps({"http": http, "https": https}) + "\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await runner.cleanup()

    async def _chat(self, request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        if transport not in self._known:
            self._known.add(transport)
            self._counts["connections"] += 1
            tls = transport.get_extra_info("ssl_object")
            self._counts["resumed"] += tls is not None and bool(tls.session_reused)
        self._counts["in flight"] += 1
        try:
            await request.read()
            await asyncio.sleep(float(request.match_info["latency"]))
        finally:
            self._counts["in flight"] -= 1
        return web.Response(body=BODY, content_type="application/json")

    async def _count(self, request: web.Request) -> web.Response:
        return web.json_response(self._counts)


def main(options: dict[str, Any]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(Endpoint().serve(**options))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
