"""Chat calls by bare aiohttp, without types, errors, retries or a graph: the floor."""

from __future__ import annotations

import asyncio
import json
import time
from statistics import median
from typing import Any

import aiohttp

from benchmarks.child import serve
from benchmarks.children.collecting import Collecting
from benchmarks.children.texts import REPLY, body


def measure(base_url: str, calls: int, in_flight: int) -> dict[str, Any]:
    return asyncio.run(gather(base_url, calls, in_flight))


async def gather(base_url: str, calls: int, in_flight: int) -> dict[str, Any]:
    seconds: list[float] = []
    room = asyncio.Semaphore(in_flight)
    headers = {"Authorization": "Bearer any", "Content-Type": "application/json"}
    url = f"{base_url}/chat/completions"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=in_flight)) as session:

        async def ask(number: int) -> str:
            async with room:
                sent = time.perf_counter()
                data = json.dumps(body(number)).encode()
                async with session.post(url, data=data, headers=headers) as response:
                    reply = json.loads(await response.read())
                seconds.append(time.perf_counter() - sent)
                text: str = reply["choices"][0]["message"]["content"]
                return text

        await ask(-1)
        with Collecting() as collecting:
            wall, cpu = time.perf_counter(), time.process_time()
            replies = await asyncio.gather(*(ask(number) for number in range(calls)))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert replies == [REPLY] * calls
    return {"wall": wall, "cpu": cpu, "gc": collecting.seconds, "p50": median(seconds)}


if __name__ == "__main__":
    serve(measure)
