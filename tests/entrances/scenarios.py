"""The scenarios that every entrance must pass: each as a plain function and as an `async def`.

Both return the same plain data. They run in this process, in a fresh script, and in a notebook kernel.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from tempfile import TemporaryDirectory
from typing import Any

from trainer import scenarios as training

import afnio
import afnio.cognitive as cog
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer

Result = Any


class Agent(cog.Module):
    """A prompt, a template, one call; one body for `agent(…)` and `await agent(…)`."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = cog.Parameter("Be brief.", role="system prompt")
        self.template = afnio.Variable("{text}", role="template")
        self.chat = cog.ChatCompletion()

    def forward(self, client: ScriptedClient, text: Any) -> afnio.Variable:
        messages = [
            {"role": "system", "content": [self.prompt]},
            {"role": "user", "content": [self.template]},
        ]
        reply = self.chat(client, messages, inputs={"text": text}, model="m")
        return reply.map(str.lower)


def replies(request: Any) -> Any:
    """Play student, critic and optimizer by what the request asks for."""
    shape = request.params.get("response_format")
    if shape is None:
        text = request.messages[-1]["content"]
        return ValueError("no luck") if text == "bad" else text.upper()
    if shape["json_schema"]["name"] == "afnio_feedback":
        return json.dumps({"feedback": [{"variable": "v1", "text": "be longer"}]})
    return json.dumps({"value": "Be long."})


def train_sync() -> Result:
    client, agent, loss = ScriptedClient(replies), Agent(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(agent.parameters(), client, model="m", momentum=2)
    with afnio.set_backward_model_client(client, completion_args={"model": "m"}):
        pred = agent(client, ["Yes", "No", None])
        score, explanation = loss(pred, ["yes", "never", "x"])
        explanation.backward()
        gradients = [gradient.data for gradient in agent.prompt.grad]
        optimizer.step()
        optimizer.clear_grad()
    return [score.data, score.samples, pred.data, gradients, agent.prompt.data, len(client.requests)]


async def train_async() -> Result:
    client, agent, loss = ScriptedClient(replies), Agent(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(agent.parameters(), client, model="m", momentum=2)
    with afnio.set_backward_model_client(client, completion_args={"model": "m"}):
        pred = await agent(client, ["Yes", "No", None])
        score, explanation = await loss(pred, ["yes", "never", "x"])
        await explanation.backward()
        gradients = [gradient.data for gradient in agent.prompt.grad]
        await optimizer.step()
        optimizer.clear_grad()
    await agent.prompt
    return [score.data, score.samples, pred.data, gradients, agent.prompt.data, len(client.requests)]


TRAINED = [1, [1, 0, None], ["yes", "no", None], ["be longer"], "Be long.", 4]


def ops_sync() -> Result:
    x, y = afnio.Variable([1, 2, None]), afnio.Variable(10)
    total = cog.functional.sum([x, y, x + y])
    left, right = cog.functional.split(afnio.Variable(["a b", "c"]), " ")
    return [total.data, left.data, right.data, total.shape]


async def ops_async() -> Result:
    x, y = afnio.Variable([1, 2, None]), afnio.Variable(10)
    total = await cog.functional.sum([x, y, x + y])
    left, right = cog.functional.split(afnio.Variable(["a b", "c"]), " ")
    await afnio.resolve({"left": left, "right": [right]})
    return [total.data, left.data, right.data, total.shape]


OPS = [[22, 24, None], ["a", "c"], ["b", ""], (3,)]


def failure_sync() -> Result:
    client, agent = ScriptedClient(replies), Agent()
    pred = agent(client, ["ok", "bad"])
    try:
        pred.data
    except afnio.errors.BatchError as error:
        told = [list(error.samples), str(error.exceptions[0])]
    with afnio.tolerate(quorum=0.5):
        return [told, pred.data, sorted(pred.errors)]


async def failure_async() -> Result:
    client, agent = ScriptedClient(replies), Agent()
    pred = agent(client, ["ok", "bad"])
    try:
        await pred
    except afnio.errors.BatchError as error:
        told = [list(error.samples), str(error.exceptions[0])]
    async with afnio.tolerate(quorum=0.5):
        return [told, pred.data, sorted(pred.errors)]


FAILURE = [[[1], "no luck"], ["ok", None], [1]]


def context_sync() -> Result:
    client, agent = ScriptedClient(replies), Agent()
    with afnio.no_grad(), afnio.bind({agent.prompt: "Bound."}), afnio.scope(name="here"):
        pred = agent(client, "hi")
    asked = client.requests[0].messages[0]["content"]
    return [pred.data, pred.requires_grad, asked, agent.prompt.data]


async def context_async() -> Result:
    client, agent = ScriptedClient(replies), Agent()
    with afnio.no_grad(), afnio.bind({agent.prompt: "Bound."}):
        async with afnio.scope(name="here"):
            pred = agent(client, "hi")
    asked = client.requests[0].messages[0]["content"]
    return [pred.data, pred.requires_grad, asked, agent.prompt.data]


CONTEXT = ["hi", False, "Bound.", "Be brief."]


def thread_sync() -> Result:
    return afnio.to_thread(ops_sync).wait()


async def thread_async() -> Result:
    return await afnio.to_thread(ops_sync)


def fitting(folder: str) -> list[Any]:
    """A training of two epochs with validation: its agent, its Trainer and its rows."""
    agent = training.Agent(ScriptedClient(training.replies))
    trainer = training.trainer(folder, max_epochs=2)
    return [agent, trainer, training.loader(10, shuffle=True), training.loader(6)]


def fitted(agent: training.Agent, trainer: Trainer) -> Result:
    return [
        agent.prompt.data,
        trainer.metrics["val_score"],
        [one["metrics"]["score"][0] for one in trainer.history],
    ]


def fit_sync() -> Result:
    with TemporaryDirectory() as folder:
        job = fitting(folder)
        return fitted(job[0], training.fitted(*job))


async def fit_async() -> Result:
    with TemporaryDirectory() as folder:
        job = fitting(folder)
        return fitted(job[0], await training.afitted(*job))


FIT = ["Level 3.", 1.0, [2, 2, 1, 5, 6, 4, 4, 2, 10, 6]]


SCENARIOS: dict[str, tuple[Callable[[], Result], Callable[[], Awaitable[Result]], Result]] = {
    "train": (train_sync, train_async, TRAINED),
    "ops": (ops_sync, ops_async, OPS),
    "failure": (failure_sync, failure_async, FAILURE),
    "context": (context_sync, context_async, CONTEXT),
    "thread": (thread_sync, thread_async, OPS),
    "fit": (fit_sync, fit_async, FIT),
}
