"""Training against a provider that fails: transient faults change nothing, final ones fail their samples only."""

from __future__ import annotations

import itertools
import json
from contextlib import nullcontext, suppress
from typing import Any

import kit
import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime.events import CallEnded, CallRetried
from afnio.testing import FaultPlan, Provider
from afnio.utils.agents import SentimentAnalyzer

WORDS = {
    "neutral": ["an inquiry about your schedule", "please provide more details", "a routine request"],
    "negative": ["this is unacceptable", "I am frustrated", "unfortunately it failed"],
    "positive": ["your exceptional dedication impressed us", "thank you so much, fantastic", "we love it"],
}
SAMPLES = [
    (f"Message {number}. Hello, thank you. I hope you are well; {words}.", label)
    for number, (label, words) in enumerate(
        itertools.chain.from_iterable(
            [(label, words) for words in texts] * 3 for label, texts in WORDS.items()
        )
    )
]
QUICK = {"BACKOFF_FIRST": 0.005, "BACKOFF_MAX": 0.02}


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry soon: what is tested is which calls are repeated, not for how long they wait."""
    for name, value in QUICK.items():
        monkeypatch.setattr(f"afnio.runtime._call.{name}", value)


def label(reply: str) -> str:
    found: str = json.loads(reply)["sentiment"]
    return found


def train(provider: Any, quorum: float | None = None) -> dict[str, Any]:
    """Run two steps of 27 samples and return what came of them."""
    client = AsyncOpenAI(base_url=provider.base_url, api_key="any", timeout=0.5)
    agent, loss = SentimentAnalyzer(), cog.ExactMatchEvaluator()
    optimizer = afnio.optim.TGD(agent.parameters(), client, model="m")
    texts, labels = zip(*SAMPLES, strict=True)
    scores: list[Any] = []
    tolerance = afnio.tolerate(quorum) if quorum else afnio.scope()
    with (
        kit.events(CallEnded) as ended,
        kit.events(CallRetried) as retried,
        afnio.set_backward_model_client(client, completion_args={"model": "m"}),
        tolerance,
    ):
        for _ in range(2):
            pred = agent(client, inputs={"message": list(texts)}, model="m").map(label)
            score, explanation = loss(pred, list(labels))
            explanation.backward()
            with suppress(FinalModelError) if quorum else nullcontext():
                optimizer.step()  # its own call may meet a final fault, too: then the prompt stays
            optimizer.clear_grad()
            scores.append(score.samples)
    prompt = agent.sentiment_task.data
    return {"prompt": prompt, "scores": scores, "ended": ended, "retried": retried}


@pytest.fixture(scope="module")
def clean() -> dict[str, Any]:
    with Provider.process() as provider:
        return train(provider)


def test_the_job_learns(clean: dict[str, Any]) -> None:
    """Without faults the second step is better than the first, so that there is something to spoil."""
    first, second = clean["scores"]
    assert sum(first) + 6 < sum(second)
    assert clean["retried"] == []


@pytest.mark.parametrize("kind", [*FaultPlan.GROUPS["transient"], *FaultPlan.GROUPS["silent"], "transient"])
def test_transient_faults_change_nothing(kind: str, clean: dict[str, Any]) -> None:
    """With a fifth of the attempts failing, by one kind or all of them mixed, the result is that of a clean run."""
    with Provider.process(faults=f"{kind}:0.2", seed=3) as provider:
        faulty = train(provider)
        met = provider.stats()["by_fault"]
    assert sum(met.values()) > 0
    assert len(faulty["retried"]) > 0
    assert (clean["scores"], clean["prompt"]) == (faulty["scores"], faulty["prompt"])


@pytest.mark.parametrize("kind", list(FaultPlan.GROUPS["final"]))
def test_final_faults_fail_their_samples(kind: str, clean: dict[str, Any]) -> None:
    """A fault that repeating can't cure fails its sample: not scored, not retried; the others are as ever."""
    with Provider.process(faults=f"{kind}:0.2", seed=1) as provider:
        faulty = train(provider, quorum=0.3)
    failed = [event for event in faulty["ended"] if event.error is not None]
    assert len(failed) > 0
    assert {event.attempts for event in failed} == {1}
    assert faulty["retried"] == []
    first, clean_first = faulty["scores"][0], clean["scores"][0]
    assert None in first
    assert all(score in (None, expected) for score, expected in zip(first, clean_first, strict=True))
