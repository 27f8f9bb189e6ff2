"""The score rises because feedback travels: cut anywhere between loss and prompt, the prompt stays as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from kit.roles import kind

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient, ChatRequest
from afnio.testing import ScriptedClient
from afnio.testing.simulated import SimulatedLM
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader, WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport

EPOCHS = 3
START = "Read the provided message and determine the sentiment."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, FacilitySupport]:
    if not os.environ.get("AFNIO_DATA"):
        pytest.skip("e-mails: a network, or facility_support.json in AFNIO_DATA")
    root = tmp_path_factory.mktemp("data")
    return {split: FacilitySupport(split, root) for split in ("train", "test")}


class Loop:
    """The tutorial's loop, with a place for each cut."""

    def __init__(self, data: dict[str, FacilitySupport], client: ChatClient) -> None:
        train = data["train"]
        labels = [y.data for _, (_, y, _) in train]
        weights = [len(labels) / labels.count(label) for label in labels]
        sampler = WeightedRandomSampler(weights, num_samples=len(train), replacement=True, seed=1)
        self.train = DataLoader(train, sampler=sampler, batch_size=33)
        self.test = DataLoader(data["test"], batch_size=34)
        self.client = client
        self.agent = SentimentAnalyzer()
        self.loss = cog.ExactMatchEvaluator()
        self.optimizer = afnio.optim.TGD(
            self.agent.parameters(),
            model_client=client,
            constraints=[afnio.Variable("The improved variable must never include `{` or `}`.")],
            momentum=3,
            model="optimizer",
        )
        afnio.set_backward_model_client(client, completion_args={"model": "critic"})

    @property
    def prompt(self) -> str:
        return str(self.agent.sentiment_task.data)

    def predict(self, messages: afnio.Variable) -> cog.Completion:
        pred = self.agent(self.client, inputs={"message": messages}, model="student")
        pred.data = [json.loads(reply)["sentiment"] for reply in pred.data]
        return pred

    def accuracy(self) -> int:
        with afnio.no_grad():
            return sum(self.loss(self.predict(x), y).score.data for x, (_, y, _) in self.test)

    def fit(
        self,
        forward: Callable[[], Any] = nullcontext,
        judged: Callable[[afnio.Variable], afnio.Variable] = lambda pred: pred,
        step: Callable[[], Any] | None = None,
        epochs: int = 1,
    ) -> None:
        for _ in range(epochs):
            for x, (_, y, _) in self.train:
                with forward():
                    pred = self.predict(x)
                explanation = self.loss(judged(pred), y).explanation
                if explanation.requires_grad:
                    explanation.backward()
                (step or self.optimizer.step)()
                self.optimizer.clear_grad()


@pytest.fixture
def client() -> ScriptedClient:
    lm = SimulatedLM()
    return ScriptedClient(lambda request: lm(request.body))


@pytest.fixture
def loop(data: dict[str, FacilitySupport], client: ScriptedClient) -> Loop:
    return Loop(data, client)


def calls(client: ScriptedClient) -> dict[str, int]:
    return {phase: use["calls"] for phase, use in client.get_usage()["phases"].items()}


def test_the_score_rises(loop, client):
    """With nothing cut the prompt learns; the calls are counted by phase."""
    baseline = loop.accuracy()
    loop.fit(epochs=EPOCHS)
    final = loop.accuracy()
    print(f"baseline {baseline}/68 final {final}/68")
    assert final >= 40
    assert final >= baseline + 12
    assert loop.prompt != START
    phases = calls(client)
    assert (phases["forward"], phases["step"]) == (EPOCHS * 66 + 2 * 68, EPOCHS * 2)
    assert phases["backward"] == sum(kind(request) == "critic" for request in client.requests)


def test_cut_at_the_evaluator_by_empty_feedback(loop, client, monkeypatch):
    """An evaluator that says nothing starts nothing: no critic, no optimizer is asked."""
    monkeypatch.setattr("afnio.cognitive._evaluators.deterministic_feedback", lambda *_: "")
    baseline = loop.accuracy()
    loop.fit()
    assert (START, baseline) == (loop.prompt, loop.accuracy())
    assert list(calls(client)) == ["forward"]


def test_cut_at_the_evaluator_by_detaching(loop, client):
    """A detached prediction leads nowhere."""
    loop.fit(judged=lambda pred: pred.detach())
    assert loop.prompt == START
    assert list(calls(client)) == ["forward"]


def test_cut_in_the_chat_node_by_no_grad(loop, client):
    """A forward without a graph has no backward."""
    loop.fit(forward=afnio.no_grad)
    assert loop.prompt == START
    assert list(calls(client)) == ["forward"]


def test_cut_in_the_chat_node_by_an_empty_critic(data):
    """A critic that has nothing to say reaches no optimizer."""
    lm = SimulatedLM()

    def silent(request: ChatRequest) -> Any:
        if kind(request) == "critic":
            return {"feedback": [{"variable": "v1", "text": ""}]}
        return lm(request.body)

    client = ScriptedClient(silent)
    loop = Loop(data, client)
    loop.fit()
    assert loop.prompt == START
    assert calls(client)["backward"] > 0
    assert "step" not in calls(client)


def test_cut_in_the_step(loop, client):
    """An optimizer whose parameters have lost their gradients asks nobody."""

    def step() -> None:
        loop.optimizer.clear_grad()
        loop.optimizer.step()

    loop.fit(step=step)
    assert loop.prompt == START
    assert calls(client)["backward"] > 0
    assert "step" not in calls(client)


def test_cut_in_the_proposers_prompt(data):
    """A proposer that is shown no gradients can't improve the prompt, however often it is asked."""
    lm = SimulatedLM()

    def blind(request: ChatRequest) -> Any:
        body = request.body
        if kind(request) == "optimizer":
            system, user = body["messages"]
            shown = user["content"].split("<feedbacks>")[0].split("<history>")[0]
            body = {**body, "messages": [system, {**user, "content": shown}]}
        return lm(body)

    client = ScriptedClient(blind)
    loop = Loop(data, client)
    loop.fit()
    assert calls(client)["step"] == 2
    assert loop.prompt == START
