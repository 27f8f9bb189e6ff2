"""One training step of ours: forward, string loss, backward, update; every sample is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider
from benchmarks.child import serve
from benchmarks.children.texts import MODEL
from benchmarks.peers.clock import FIRST, requests
from benchmarks.report import timed


def measure(base_url: str, samples: int) -> dict[str, Any]:
    with Provider.process(reply="wrong") as quick:  # imports, thread; at once, whatever the latency is
        _step(quick.base_url, [-1])
    before = requests(base_url)
    wall, cpu = timed(lambda: _step(base_url, range(samples)))
    return {"wall": wall, "cpu": cpu, "calls": requests(base_url) - before}


def _step(base_url: str, numbers: Sequence[int]) -> None:
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=1024))
    prompt = cog.Parameter(FIRST, role="system prompt")
    template = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]
    optimizer = afnio.optim.TGD([prompt], client, model=MODEL)
    with afnio.set_backward_model_client(client, completion_args={"model": MODEL}):
        inputs = {"message": [f"message {number}" for number in numbers]}
        reply = cog.functional.chat_completion(client, messages, inputs, model=MODEL)
        _, explanation = cog.functional.exact_match_evaluator(
            reply, [f"never {number}" for number in numbers]
        )
        explanation.backward()
        optimizer.step().wait()
    assert prompt.data != FIRST


if __name__ == "__main__":
    serve(measure)
