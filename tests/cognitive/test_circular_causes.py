"""Errors whose causes form a circle, as `raise error from error` makes them: nothing walks them for ever."""

from __future__ import annotations

from typing import Any

import openai
import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, BudgetExceeded
from afnio.testing import Provider
from afnio.trainer import Trainer

pytestmark = pytest.mark.timeout(20)


def test_a_budget_ends_an_agent_that_raises_errors_from_themselves() -> None:
    """CrewAI does so. The budget's error arrives, and the engine goes on."""
    with Provider.process() as provider:
        client = openai.OpenAI(base_url=provider.base_url, api_key="any")

        def agent(text: str, system: str) -> str:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            try:
                reply = client.chat.completions.create(model="m", messages=messages)  # type: ignore[arg-type]
            except Exception as error:
                raise error from error
            return str(reply.choices[0].message.content)

        asked = cog.Agent(agent, prompts={"system": "Say it."})
        with afnio.bridge.installed():
            with afnio.budget(max_calls=2), pytest.raises(BatchError) as caught:
                _ = asked([f"row {number}" for number in range(6)]).data
            assert caught.group_contains(BudgetExceeded)
            assert len(asked(["row 7"]).data) == 1


def test_a_trainer_counts_samples_whose_errors_are_their_own_causes() -> None:
    """They failed, as with any other error."""

    def score(text: str) -> float:
        if text == "bad":
            error = ValueError("no such row")
            raise error from error
        return 1.0

    class Scored(cog.Module):
        async def test_step(self, batch: Any, batch_idx: int) -> Any:
            return afnio.Variable(batch, role="input").map(score)

    metrics = Trainer(quorum=0.5, enable_progress_bar=False).test(
        Scored(), [["bad", "bad"], ["good", "good"]]
    )
    assert metrics["failed"] == 2
