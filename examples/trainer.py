"""The tutorial's task with the ready-made loop: classify the sentiment of emails, and learn the prompt.

Set OPENAI_BASE_URL to run it against any OpenAI-compatible server. A run that was killed continues when the
program is started again, and doesn't pay for any reply twice.
"""

import json
import os
import re

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.models.openai import AsyncOpenAI
from afnio.trainer import EarlyStopping, Trainer
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader, WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport

os.environ.setdefault("OPENAI_API_KEY", "sk-...")

BATCH_SIZE = 33


def read_sentiment(reply):
    return json.loads(re.sub(r"^```json\n|\n```$", "", reply))["sentiment"].lower()


class FacilitySupportAnalyzer(SentimentAnalyzer):
    """The ready-made agent, and what a Trainer asks of it."""

    def __init__(self, client):
        super().__init__()
        self.client = client
        self.loss_fn = cog.ExactMatchEvaluator()

    def judge(self, batch):
        messages, (_, sentiments, _) = batch
        reply = self(self.client, inputs={"message": messages}, model="gpt-4.1-nano", temperature=0.0)
        return self.loss_fn(reply.map(read_sentiment), sentiments)  # (score, explanation)

    async def training_step(self, batch, batch_idx):
        return self.judge(batch)

    async def validation_step(self, batch, batch_idx):
        return self.judge(batch)

    async def test_step(self, batch, batch_idx):
        return self.judge(batch)

    def configure_optimizers(self):
        return afnio.optim.TGD(
            self.parameters(),
            model_client=self.client,
            constraints=[
                "The improved variable must never include or reference the characters `{` or `}`.",
                "Use at most 1000 characters.",
            ],
            momentum=3,
            model="gpt-5",
            max_completion_tokens=32000,
        )


def balanced(data):
    """A sampler that draws each sentiment equally often."""
    labels = [sentiment.data for _, (_, sentiment, _) in data]
    weights = [len(data) / labels.count(label) for label in labels]
    return WeightedRandomSampler(weights, num_samples=len(data), seed=42)


def main():
    training_data, validation_data, test_data = (
        FacilitySupport(split=split, root="data") for split in ("train", "val", "test")
    )
    afnio.set_backward_model_client("openai/gpt-5", completion_args={"max_completion_tokens": 32000})
    agent = FacilitySupportAnalyzer(AsyncOpenAI())
    # The gate's messages are its own: what chooses an epoch can't tell any more if that one is better than the start.
    half = len(validation_data) // 2
    held_out, watched = ([validation_data[n] for n in part] for part in (range(half), range(half, 2 * half)))
    gate = afnio.optim.Gate(agent.judge, held_out)
    trainer = Trainer(max_epochs=5, seed=42, callbacks=[EarlyStopping("val_score", patience=3)])
    train_dataloader = DataLoader(training_data, sampler=balanced(training_data), batch_size=BATCH_SIZE)
    val_dataloader = DataLoader(watched, batch_size=BATCH_SIZE)
    test_dataloader = DataLoader(test_data, batch_size=BATCH_SIZE)

    with te.init("username", "My Project"):
        before = trainer.test(agent=agent, test_dataloader=test_dataloader)
        gate.start(agent.parameters())
        trainer.fit(agent=agent, train_dataloader=train_dataloader, val_dataloader=val_dataloader)
        # Take the prompt that did best on the validation messages, unless the gate restores the first one. The test
        # messages decide nothing.
        agent.load_state_dict(afnio.load(trainer.folder / "best")["agent_state_dict"])
        print(gate.judge().wait())
        after = trainer.test(agent=agent, test_dataloader=test_dataloader)

    for name, found in (("before", before), ("after", after)):
        low, high = found["score_low"], found["score_high"]
        print(f"{name}: {found['score']:.1%} right on the test messages (95 %: {low:.1%} to {high:.1%})")
    print(agent.sentiment_task.data)
    print(trainer.ledger)


if __name__ == "__main__":
    main()
