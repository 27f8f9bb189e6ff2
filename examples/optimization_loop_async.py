"""The tutorial's job in an async program: the same agent, awaited, on asyncio or trio.

    OPENAI_API_KEY=… python examples/optimization_loop_async.py [--trio]

Set OPENAI_BASE_URL to run it against any OpenAI-compatible server.
"""

import json
import os
import re
import sys

import anyio

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.models.openai import AsyncOpenAI
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader, WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport

os.environ.setdefault("OPENAI_API_KEY", "sk-...")
BATCH_SIZE = 33
EPOCHS = 5


def sentiment(reply: str) -> str:
    """Return the label in a reply: per sample, so it runs as soon as that sample's reply is there."""
    return json.loads(re.sub(r"^```json\n|\n```$", "", reply))["sentiment"].lower()


def loaders() -> tuple[DataLoader, DataLoader]:
    train = FacilitySupport(split="train", root="data")
    labels = [label.data for _, (_, label, _) in train]
    weights = [len(labels) / labels.count(label) for label in labels]
    sampler = WeightedRandomSampler(weights, num_samples=len(train), replacement=True)
    test = DataLoader(FacilitySupport(split="test", root="data"), batch_size=BATCH_SIZE)
    return DataLoader(train, sampler=sampler, batch_size=BATCH_SIZE), test


async def train_loop(dataloader, agent, client, loss_fn, optimizer) -> None:
    agent.train()
    for X, (_, label, _) in dataloader:
        pred = agent(client, inputs={"message": X}, model="gpt-4.1-nano", temperature=0.0)
        score, explanation = await loss_fn(pred.map(sentiment), label)
        await explanation.backward()
        await optimizer.step()
        optimizer.clear_grad()
        print(f"accuracy: {score.data / len(X.data):>7f}")


async def test_loop(dataloader, agent, client, loss_fn) -> None:
    agent.eval()
    with afnio.no_grad():
        scores = []
        for X, (_, label, _) in dataloader:  # every batch is launched before the first is awaited
            pred = agent(client, inputs={"message": X}, model="gpt-4.1-nano", temperature=0.0)
            scores.append(loss_fn(pred.map(sentiment), label).score)
        await afnio.resolve(scores)
    correct, size = sum(score.data for score in scores), len(dataloader.dataset)
    print(f"Test accuracy: {correct}/{size}")


async def main() -> None:
    completion_args = {"temperature": 1.0, "max_completion_tokens": 32000, "reasoning_effort": "low"}
    afnio.set_backward_model_client("openai/gpt-5", completion_args=completion_args)
    client, agent, loss_fn = AsyncOpenAI(), SentimentAnalyzer(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(
        agent.parameters(),
        model_client=client,
        constraints=["The improved variable must not use the characters `{` and `}`."],
        momentum=3,
        model="gpt-5",
        **completion_args,
    )
    train, test = loaders()
    async with te.init("username", "my-project"):
        for epoch in range(EPOCHS):
            print(f"Epoch {epoch + 1}")
            await train_loop(train, agent, client, loss_fn, optimizer)
            await test_loop(test, agent, client, loss_fn)
    print("Done!")


if __name__ == "__main__":
    anyio.run(main, backend="trio" if "--trio" in sys.argv[1:] else "asyncio")
