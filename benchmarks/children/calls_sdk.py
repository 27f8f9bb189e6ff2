"""Chat calls as one writes them without an engine: AsyncOpenAI, a semaphore, `asyncio.gather`. Bridged or not."""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any

from openai import AsyncOpenAI

from benchmarks.child import serve
from benchmarks.children.collecting import Collecting
from benchmarks.children.texts import REPLY, body


def measure(base_url: str, calls: int, in_flight: int, bridged: bool = False) -> dict[str, Any]:
    http_client = None
    if bridged:
        from afnio import Limits, bridge

        http_client = bridge.client(limits=Limits(max_in_flight=in_flight))
    return asyncio.run(gather(base_url, calls, in_flight, http_client))


async def gather(base_url: str, calls: int, in_flight: int, http_client: Any) -> dict[str, Any]:
    seconds: list[float] = []
    room = asyncio.Semaphore(in_flight)
    async with AsyncOpenAI(
        # Its default of 5 s to connect is too short for a thousand connections at once on a busy machine.
        base_url=base_url,
        api_key="any",
        max_retries=0,
        timeout=600,
        http_client=http_client,
    ) as client:

        async def ask(number: int) -> str | None:
            async with room:
                sent = time.perf_counter()
                reply = await client.chat.completions.create(**body(number))
                seconds.append(time.perf_counter() - sent)
                return reply.choices[0].message.content

        await ask(-1)  # imports
        with Collecting() as collecting:
            wall, cpu = time.perf_counter(), time.process_time()
            replies = await asyncio.gather(*(ask(number) for number in range(calls)))
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert replies == [REPLY] * calls
    return {"wall": wall, "cpu": cpu, "gc": collecting.seconds, "p50": median(seconds)}


if __name__ == "__main__":
    serve(measure)
