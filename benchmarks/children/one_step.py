"""One training step of ours: forward, string loss, backward, update; every sample is wrong."""

from __future__ import annotations

from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from benchmarks.child import serve
from benchmarks.children.texts import MODEL
from benchmarks.peers.clock import FIRST, requests
from benchmarks.report import timed


def measure(base_url: str, samples: int) -> dict[str, Any]:
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=1024))
    prompt = cog.Parameter(FIRST, role="system prompt")
    template = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]
    optimizer = afnio.optim.TGD([prompt], client, model=MODEL)

    def step(numbers: range) -> None:
        inputs = {"message": [f"message {number}" for number in numbers]}
        reply = cog.chat_completion(client, messages, inputs, model=MODEL)
        _, explanation = cog.exact_match_evaluator(reply, [f"never {number}" for number in numbers])
        explanation.backward()
        optimizer.step().wait()
        optimizer.clear_grad()

    with afnio.set_backward_model_client(client, completion_args={"model": MODEL}):
        step(range(-1, 0))  # imports, connections, thread
        before = requests(base_url)
        wall, cpu = timed(lambda: step(range(samples)))
    calls = requests(base_url) - before
    assert prompt.data != FIRST
    return {"wall": wall, "cpu": cpu, "calls": calls}


if __name__ == "__main__":
    serve(measure)
