"""One of the processes that share a gateway: chat calls by a plain aiohttp client, so that it costs little itself."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import aiohttp

from benchmarks.child import serve
from benchmarks.children.texts import REPLY, body


def measure(base_url: str, first: int, calls: int, in_flight: int, most: int | None = None) -> dict[str, Any]:
    return asyncio.run(_ask(base_url, first, calls, in_flight, most))


async def _ask(base_url: str, first: int, calls: int, in_flight: int, most: int | None) -> dict[str, Any]:
    numbers = iter(range(first, first + calls))
    statuses: dict[int, int] = {}
    limit = {} if most is None else {"max_completion_tokens": most}
    connector = aiohttp.TCPConnector(limit=in_flight)
    headers = {"authorization": "Bearer any"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def work() -> None:
            for number in numbers:
                asked = {**body(number), **limit}
                async with session.post(f"{base_url}/chat/completions", json=asked) as response:
                    reply = await response.json()
                    statuses[response.status] = statuses.get(response.status, 0) + 1
                    if response.status == 200:
                        assert reply["choices"][0]["message"]["content"] == REPLY

        wall = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(in_flight)))
        return {
            "wall": time.perf_counter() - wall,
            "answered": statuses.get(200, 0),
            "others": calls - statuses.get(200, 0),
        }


if __name__ == "__main__":
    serve(measure)
