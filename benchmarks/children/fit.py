"""A fit of ours: epochs over samples that are all wrong, with validation; everything kept and shown, or nothing."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio import tellurio as te
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader
from benchmarks.child import serve
from benchmarks.children.texts import MODEL
from benchmarks.peers.clock import FIRST, requests
from benchmarks.report import timed


class Agent(cog.Module):
    def __init__(self, client: AsyncOpenAI) -> None:
        super().__init__()
        self.client = client
        self.prompt = cog.Parameter(FIRST, role="system prompt")
        self.template = afnio.Variable("{message}", role="template")
        self.chat, self.loss = cog.ChatCompletion(), cog.ExactMatchEvaluator()

    async def training_step(self, batch: Any, batch_idx: int) -> Any:
        texts, golds = batch
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.template]},
        ]
        return self.loss(self.chat(self.client, messages, inputs={"message": texts}, model=MODEL), golds)

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return afnio.optim.TGD(self.parameters(), self.client, momentum=3, model=MODEL)


def measure(base_url: str, epochs: int, samples: int, batch_size: int, everything: bool) -> dict[str, Any]:
    """Return the wall and the CPU time of one fit, and its calls.

    Args:
        everything: with progress, checkpoints, their journal and a run; else with nothing of these.
    """
    with Provider.process(reply="wrong") as quick:  # imports, thread; at once, whatever the latency is
        _fit(quick.base_url, 1, 2, 1, everything)
    before = requests(base_url)
    wall, cpu = timed(lambda: _fit(base_url, epochs, samples, batch_size, everything))
    return {"wall": wall, "cpu": cpu, "calls": requests(base_url) - before}


def _fit(base_url: str, epochs: int, samples: int, batch_size: int, everything: bool) -> None:
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=1024))
    agent = Agent(client)
    data = [(f"message {number}", f"never {number}") for number in range(samples)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        if everything:
            stack.enter_context(te.init("benchmarks", "fit", dir=os.path.join(folder, "runs"), resume=False))
        trainer = Trainer(
            max_epochs=epochs, default_root_dir=folder, seed=1, enable_progress_bar=everything,
            enable_checkpointing=everything,
        )  # fmt: skip
        stack.enter_context(afnio.set_backward_model_client(client, completion_args={"model": MODEL}))
        trainer.fit(agent, DataLoader(data, batch_size=batch_size), DataLoader(data, batch_size=batch_size))
    assert trainer.global_step == epochs * samples // batch_size
    assert agent.prompt.data != FIRST


if __name__ == "__main__":
    serve(measure)
