"""The tutorial's job, trained by the Trainer with one seed: how many calls it makes, and what it reaches.

The numbers are exact. The sampler draws messages with replacement, so a batch has some of them twice. Equal calls of a
batch at temperature 0 are one call: without that, there are 631.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import afnio
import afnio.cognitive as cog
from afnio.optim import TGD, Gate
from afnio.runtime.events import CallEnded, subscribed
from afnio.testing import ScriptedClient, SimulatedLM
from afnio.trainer import Trainer
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader, WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport

pytestmark = pytest.mark.skipif(
    not os.environ.get("AFNIO_DATA"),
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)
BATCH = 33
FORWARD = {"model": "simulated", "temperature": 0.0}
WRITING: dict[str, Any] = {"model": "simulated", "temperature": 1.0, "max_completion_tokens": 32000}


class Job(SentimentAnalyzer):
    """The tutorial's agent with the steps of a Trainer."""

    def __init__(self, client: ScriptedClient) -> None:
        super().__init__()
        self.client = client
        self.loss_fn = cog.ExactMatchEvaluator()

    async def training_step(self, batch: Any, batch_idx: int) -> cog.Judgement:
        messages, (_, sentiments, _) = batch
        reply = self(self.client, inputs={"message": messages}, **FORWARD)
        return self.loss_fn(reply.map(lambda text: json.loads(text)["sentiment"].lower()), sentiments)

    validation_step = test_step = training_step

    def configure_optimizers(self) -> TGD:
        rules = (
            "The improved variable must never include or reference the characters `{` or `}`.",
            "Use at most 1000 characters.",
        )
        constraints = [afnio.Variable(rule, role="optimizer constraint") for rule in rules]
        return TGD(
            self.parameters(), model_client=self.client, constraints=constraints, momentum=3, **WRITING
        )


def whole(messages: Any) -> DataLoader:
    """Return a loader of all messages in one batch."""
    return DataLoader(messages, batch_size=len(messages))


def test_equal_messages_of_a_batch_are_one_call(tmp_path: Path) -> None:
    train, validation, test = (FacilitySupport(split) for split in ("train", "val", "test"))
    labels = [sentiment.data for _, (_, sentiment, _) in train]
    weights = [len(labels) / labels.count(label) for label in labels]
    sampler = WeightedRandomSampler(weights, num_samples=len(train), seed=0)
    rows = [validation[number] for number in range(len(validation))]
    lm = SimulatedLM()
    client = ScriptedClient(lambda request: lm(request.body), latency=0.02)
    agent = Job(client)
    gate = Gate(lambda batch: agent.training_step(batch, 0), whole(rows[:BATCH]))
    trainer = Trainer(
        max_epochs=5, seed=0, enable_agent_summary=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    purposes: Counter[str] = Counter()

    def count(event: Any) -> None:
        if isinstance(event, CallEnded):
            purposes[event.purpose] += 1

    with subscribed(count), afnio.set_backward_model_client(client, completion_args=WRITING):
        before = trainer.test(agent, whole(test))
        gate.start(agent.parameters())
        trainer.fit(agent, DataLoader(train, sampler=sampler, batch_size=BATCH), whole(rows[BATCH:]))
        agent.load_state_dict(afnio.load(trainer.folder / "best")["agent_state_dict"])
        verdict = gate.judge().wait()
        after = trainer.test(agent, whole(test))
    assert verdict.passed
    # The Trainer made 553 forward calls, the gate asked the start and the result on 33 messages.
    assert (purposes["forward"] - 2 * BATCH, purposes["backward"], purposes["step"]) == (553, 76, 7)
    assert (before["score_sum"], after["score_sum"], len(test)) == (25, 50, 68)
