"""Real runs: small programs with the Trainer and EditTGD, recorded as a user's would be."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest
from kit.roles import comment, kind, prompt, shown

import afnio
import afnio.cognitive as cog
from afnio import tellurio as te
from afnio.errors import BatchError
from afnio.optim import TGD, EditTGD, Gate
from afnio.runtime.events import StepEnded
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader, Dataset

RIGHT = {0: 1, 1: 2, 2: 4, 3: 3}
"""How many of the first four samples the prompt of each level answers rightly: the second is the best."""


class Levels(cog.Module):
    """An agent whose prompt is "Level N."; each step adds a level."""

    def __init__(self, client: ScriptedClient | None = None) -> None:
        super().__init__()
        self.client = client or ScriptedClient(levels)
        self.prompt = cog.Parameter("Level 0.", role="system prompt", requires_grad=True)
        self.user = afnio.Variable("{text}", role="message")
        self.loss = cog.ExactMatchEvaluator()
        self.chat = cog.ChatCompletion()

    async def validation_step(self, batch: Any, batch_idx: int) -> Any:
        messages = [{"role": "system", "content": [self.prompt]}, {"role": "user", "content": [self.user]}]
        texts, labels = batch
        return self.loss(self.chat(self.client, messages, inputs={"text": texts}, model="m"), labels)

    training_step = test_step = validation_step

    def configure_optimizers(self) -> Any:
        return TGD(self.parameters(), self.client, model="m")


def levels(request: Any) -> Any:
    """Play the model, the critic and the optimizer of `Levels`."""
    if kind(request) == "critic":
        return comment("one level higher")(request)
    if kind(request) == "optimizer":
        return {"value": f"Level {int(shown(request, 'variable')[0][6:-1]) + 1}."}
    level = int(request.messages[0]["content"][6:-1])
    return "yes" if int(prompt(request)[1:]) < RIGHT[level] else "no"


def train(
    home: Path, name: str = "best-second", client: ScriptedClient | None = None, **options: Any
) -> Trainer:
    """Three epochs of one step, each validated, with a test before and after; the second epoch is the best."""
    agent = Levels(client)
    items = DataLoader([(f"m{number}", "yes") for number in range(4)], batch_size=2)
    wrong = DataLoader([("m9", "yes")], batch_size=1)
    options |= {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=3, default_root_dir=home, seed=1, **options)
    with (
        te.init("me", "emails", name=name, dir=home, resume=False),
        afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}),
    ):
        trainer.test(agent, items)
        trainer.fit(agent, wrong, items)
        trainer.test(agent, items)
    return trainer


def gated(home: Path, name: str) -> str:
    """A step, a gate that keeps its result, and a test before and after. Returns the gate's verdict."""
    agent = Levels()
    held = [(f"m{number}", "yes") for number in range(12)]
    tests = DataLoader([("m1", "yes"), ("m2", "yes")], batch_size=2)
    trainer = Trainer(
        max_epochs=1, enable_progress_bar=False, enable_checkpointing=False, default_root_dir=home
    )
    with (
        te.init("me", "gated", name=name, dir=home, resume=False),
        afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}),
    ):
        trainer.test(agent, tests)
        gate = Gate(lambda batch: agent.training_step(batch, 0), held)
        gate.start(agent.parameters())
        trainer.fit(agent, DataLoader([("m9", "yes")], batch_size=1))
        verdict = gate.judge().wait()
        trainer.test(agent, tests)
    return str(verdict)


class Samples(Dataset[str]):
    def __init__(self, low: int, high: int) -> None:
        self.texts = [f"sample {number}" for number in range(low, high)]

    def __getitem__(self, index: int) -> str:
        return self.texts[index]

    def __len__(self) -> int:
        return len(self.texts)


class Pair:
    """Two prompts that half of the samples depend on each, and one that nothing depends on.

    Each mark on a prompt makes more of its samples right, and some of them wrong.
    """

    def __init__(self) -> None:
        self.even = cog.Parameter("even", role="prompt for even samples", requires_grad=True)
        self.odd = cog.Parameter("odd", role="prompt for odd samples", requires_grad=True)
        self.greeting = cog.Parameter("Hello.", role="greeting", requires_grad=True)
        self.user = afnio.Variable("{text}", role="sample")
        self.client = ScriptedClient(self.play)

    def play(self, request: Any) -> Any:
        if kind(request) == "critic":
            return comment("it was wrong")(request)
        if kind(request) == "editor":
            blocks = shown(request, "block")
            mark = f"{blocks[0].upper()} {len(blocks)}."
            return {"edits": [{"op": "add", "block": len(blocks), "text": mark, "samples": [1]}]}
        number = int(re.findall(r"\d+", prompt(request))[0])
        marks = str(request.messages[0]["content"]).count("EVEN" if number % 2 == 0 else "ODD")
        return "yes" if random.Random(f"{number} {marks}").random() < 0.2 + 0.08 * marks else "no"

    def launch(self, batch: Sequence[str]) -> Any:
        messages = [
            {"role": "system", "content": [self.even, self.odd]},
            {"role": "user", "content": [self.user]},
        ]
        inputs = {"text": afnio.Variable(list(batch), role="sample")}
        answers = cog.functional.chat_completion(self.client, messages, inputs=inputs, model="m")
        return cog.functional.exact_match_evaluator(answers, ["yes"] * len(batch))


def search(home: Path, steps: int = 8) -> list[StepEnded]:
    """A run of EditTGD with three parameters, of which one is frozen; returns what its steps told."""
    agent = Pair()
    agent.greeting.requires_grad_(False)
    with (
        te.init("me", "emails", name="wide-race", dir=home, resume=False),
        afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}),
        kit.events(StepEnded) as told,
    ):
        optimizer = EditTGD(
            [agent.even, agent.odd, agent.greeting], ScriptedClient(agent.play), agent.launch, Samples(0, 60),
            lr=2, inner=1, minibatch=6, race=16, first=16, search_seed=0, model="m",
        )  # fmt: skip
        for _ in range(steps):
            optimizer.step()
    return told


def give_up(home: Path) -> None:
    """A run in which one call is answered, one fails and three are cancelled on their way."""
    sent = threading.Semaphore(0)

    async def answer(request: Any) -> Any:
        if not prompt(request).startswith("never"):
            return "yes" if prompt(request) == "right" else ValueError("no luck")
        sent.release()
        await anyio.sleep_forever()
        return ""

    client = ScriptedClient(answer)

    def ask(*texts: str) -> afnio.Variable:
        messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]
        inputs = {"text": afnio.Variable(list(texts), role="text")}
        return cog.functional.chat_completion(client, messages, inputs=inputs, model="m")

    with te.init("me", "emails", name="given-up", dir=home, resume=False):
        with afnio.tolerate(0.5):
            assert ask("right", "wrong").data == ["yes", None]
        with afnio.scope() as owner:
            lost = ask("never 1", "never 2", "never 3")
            for _ in range(3):
                assert sent.acquire(timeout=60)
            owner.cancel()
        with pytest.raises(BatchError):
            lost.data
