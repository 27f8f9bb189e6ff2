"""A replica: `python replica.py HOST SECONDS` answers chat completions with their last message in capitals.

GET /asked returns what it was asked, in order of arrival.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aiohttp import web


def main() -> None:
    host, seconds = sys.argv[1:]
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        text = body["messages"][-1]["content"]
        asked.append({"text": text, "from": request.remote})
        await asyncio.sleep(float(seconds))
        message = {"role": "assistant", "content": text.upper()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return web.json_response(
            {
                "id": "c",
                "object": "chat.completion",
                "created": 0,
                "model": "m",
                "choices": [choice],
                "usage": usage,
            }
        )

    async def show(request: web.Request) -> web.Response:
        return web.json_response(asked)

    async def ready(app: web.Application) -> None:
        print("ready")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.router.add_get("/asked", show)
    app.on_startup.append(ready)
    web.run_app(app, host=host, port=8000, print=None)


if __name__ == "__main__":
    main()
