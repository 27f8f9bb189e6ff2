"""An agent that learns from a scripted model, and what it trains on.

The prompt is "Level N."; a message "m3" is answered rightly from level 3 % 4 on; each step adds a level.
"""

from __future__ import annotations

import json
import re
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader


def replies(request: Any) -> Any:
    """Play student, critic and optimizer by what the request asks for; the same request gets the same reply."""
    shape = request.params.get("response_format")
    text = request.messages[-1]["content"]
    if shape is None:
        if text == "bad":
            return ValueError("no luck")
        level = int(re.findall(r"\d+", request.messages[0]["content"])[-1])
        return text if int(text[1:]) % 4 <= level else "wrong"
    if shape["json_schema"]["name"] == "afnio_feedback":
        return json.dumps({"feedback": [{"variable": "v1", "text": f"higher, for {len(text)}"}]})
    level = int(re.findall(r"Level (\d+)", str(request.messages))[0])
    return json.dumps({"value": f"Level {level + 1}."})


class Agent(cog.Module):
    """One prompt; the steps are `async def` and don't read."""

    def __init__(self, client: ScriptedClient) -> None:
        super().__init__()
        self.client = client
        self.prompt = cog.Parameter("Level 0.", role="system prompt")
        self.template = afnio.Variable("{text}", role="template")
        self.chat = cog.ChatCompletion()
        self.loss = cog.ExactMatchEvaluator()

    def forward(self, text: Any) -> afnio.Variable:
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.template]},
        ]
        return self.chat(self.client, messages, inputs={"text": text}, model="m")

    async def training_step(self, batch: Any, batch_idx: int) -> Any:
        texts, golds = batch
        return self.loss(self(texts), golds)

    async def validation_step(self, batch: Any, batch_idx: int) -> Any:
        texts, golds = batch
        return self.loss(self(texts), golds)

    test_step = validation_step

    async def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return afnio.optim.TGD(self.parameters(), self.client, model="m", momentum=2)


class ReadingAgent(Agent):
    """The same with `def` steps that read."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        texts, golds = batch
        pred = self(texts)
        pred.data = [text and text.lower() for text in pred.data]
        score, explanation = self.loss(pred, golds)
        return {"score": (score, explanation), "accuracy": score.data / len(texts), "first": pred.data[0]}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        texts, golds = batch
        score, explanation = self.loss(self(texts), golds)
        self.log("accuracy", score.data / len(texts))
        return score, explanation


def items(count: int) -> list[tuple[str, str]]:
    return [(f"m{number}", f"m{number}") for number in range(count)]


def loader(count: int, batch_size: int = 4, **options: Any) -> DataLoader:
    return DataLoader(items(count), batch_size=batch_size, **options)


def trainer(folder: Any, **options: Any) -> Trainer:
    return Trainer(**{"default_root_dir": folder, "enable_progress_bar": False, "seed": 1, **options})


def fitted(agent: Agent, made: Trainer, train: Any, val: Any = None, **options: Any) -> Trainer:
    """Fit with the agent's client as critic; return the trainer."""
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}):
        made.fit(agent, train, val, **options)
    return made


async def afitted(agent: Agent, made: Trainer, train: Any, val: Any = None, **options: Any) -> Trainer:
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}):
        await made.afit(agent, train, val, **options)
    return made


def told(made: Trainer, agent: Agent) -> Any:
    """Return what must be the same however a training was run."""
    return json.loads(json.dumps([made.metrics, made.history, agent.prompt.data, made.global_step]))
