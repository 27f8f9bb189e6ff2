"""The memory of calls in flight: launch them against an endpoint that doesn't answer in time, and look."""

from __future__ import annotations

import time
from typing import Any

import psutil

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from benchmarks.child import serve
from benchmarks.children.texts import MODEL, REPLY, SYSTEM, message
from benchmarks.endpoint import counts

PATIENCE = 60.0


def measure(quick_url: str, held_url: str, counts_port: int, calls: int) -> dict[str, Any]:
    """Measure the private memory of the process before and while `calls` calls wait for their replies."""
    limits = afnio.Limits(max_in_flight=calls)
    quick, held = (AsyncOpenAI(base_url=url, api_key="any", limits=limits) for url in (quick_url, held_url))
    prompt = cog.Parameter(SYSTEM, role="system prompt")
    template = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]

    def launch(client: AsyncOpenAI, texts: list[str]) -> afnio.Variable:
        return cog.functional.chat_completion(client, messages, {"message": texts}, model=MODEL)

    assert launch(quick, ["warm"]).data == [REPLY]  # imports, thread, TLS
    before = psutil.Process().memory_full_info().uss
    replies = launch(held, [message(number) for number in range(calls)])
    deadline = time.monotonic() + PATIENCE
    while (now := counts(counts_port)["in flight"]) < calls:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{now} of {calls} calls in flight after {PATIENCE:g} s")
        time.sleep(0.05)
    after = psutil.Process().memory_full_info().uss
    del replies
    return {"bytes": (after - before) / calls}


if __name__ == "__main__":
    serve(measure)
