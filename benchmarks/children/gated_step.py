"""A step of ours, plain or gated, from the feedback on: proposals, and 64 held-out samples for each of 4 candidates.

The provider says the same to all, so the proposals are numbered here, and the scores are made up so that every
candidate survives its first block: the most calls that a gated step can make.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.optim import TGD, Change, Improves
from benchmarks.child import serve
from benchmarks.children.texts import MODEL
from benchmarks.peers.clock import FIRST, requests
from benchmarks.report import timed


class Numbered(TGD):
    """TGD whose proposals differ."""

    count = 0

    async def propose(
        self,
        parameter: afnio.Variable,
        value: Any,
        gradients: Sequence[afnio.Variable],
        options: Mapping[str, Any],
    ) -> Change:
        change = await super().propose(parameter, value, gradients, options)
        self.count += 1
        return replace(change, after=f"{change.after} {self.count}")


def measure(base_url: str, gated: bool, in_flight: int, samples: int, quick_url: str) -> dict[str, Any]:
    _step(quick_url, gated, in_flight, samples)  # imports, thread, connections of another account
    before = requests(base_url)
    wall, cpu = timed(lambda: _step(base_url, gated, in_flight, samples))
    return {"wall": wall, "cpu": cpu, "calls": requests(base_url) - before}


def _step(base_url: str, gated: bool, in_flight: int, samples: int) -> None:
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=in_flight))
    prompt = cog.Parameter(FIRST, role="system prompt")
    messages = [
        {"role": "system", "content": [prompt]},
        {"role": "user", "content": [afnio.Variable("{message}", role="template")]},
    ]

    async def evaluate(batch: list[str]) -> list[float]:
        await cog.chat_completion(client, messages, {"message": batch}, model=MODEL)
        text = (await prompt).data
        rate = 0.5 if text == FIRST else 0.65
        return [float(random.Random(f"{text} {message}").random() < rate) for message in batch]

    data = [f"message {block}.{n}" for block in range(samples // 16) for n in range(16)]
    accept = Improves(evaluate, data, k=4, minibatch_size=samples, seed=2) if gated else None
    optimizer = Numbered([prompt], client, accept=accept, model=MODEL)
    prompt.append_grad(afnio.Variable("be better", role="feedback"))
    optimizer.step().wait()


if __name__ == "__main__":
    serve(measure)
