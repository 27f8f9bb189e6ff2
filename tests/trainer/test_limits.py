"""Limits: time and money end a training between steps, cleanly, and it can go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from trainer import scenarios
from trainer.scenarios import Agent, fitted, loader, told, trainer

from afnio.errors import BudgetExceeded, UnknownPriceError
from afnio.testing import ScriptedClient


def _agent(**options: Any) -> Agent:
    return Agent(ScriptedClient(scenarios.replies, **options))


@pytest.fixture
def priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the scripted model a price: a dollar per thousand tokens, in or out."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "m"\ninput = 1000.0\noutput = 1000.0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))


@pytest.mark.usefixtures("priced")
def test_max_cost_ends_cleanly_and_more_money_goes_on(tmp_path: Path) -> None:
    """The step that had no room never was; with more money the journal has what was paid for."""
    whole = _agent()
    alone = fitted(whole, trainer(tmp_path / "alone", max_epochs=2, max_cost=1e6), loader(20), loader(6))
    spent = alone.total_cost
    assert spent is not None
    for share in (0.2, 0.5, 0.8):
        first, again = _agent(), _agent()
        folder = tmp_path / str(share)
        made = fitted(first, trainer(folder, max_epochs=2, max_cost=spent * share), loader(20), loader(6))
        assert made.stopped is not None
        assert "max_cost" in made.stopped
        assert made.global_step < 10
        assert made.total_cost is not None
        assert made.total_cost <= spent * share + 1e-9
        made = fitted(
            again, trainer(folder, max_epochs=2, max_cost=1e6), loader(20), loader(6), ckpt_path="last"
        )
        assert told(alone, whole) == told(made, again)
        assert len(whole.client.requests) == len(first.client.requests) + len(again.client.requests)


def test_max_cost_needs_prices(tmp_path: Path) -> None:
    """A model without a price is refused, not counted as free."""
    with pytest.raises(BaseExceptionGroup) as caught:
        fitted(_agent(), trainer(tmp_path, max_cost=1.0), loader(4))
    assert caught.group_contains(UnknownPriceError)


def test_max_time_ends_between_steps(tmp_path: Path) -> None:
    """The step under way is given up when time is over; what goes on ends as if left alone."""
    first, again, whole = _agent(latency=0.05), _agent(), _agent()
    made = fitted(first, trainer(tmp_path / "a", max_epochs=3, max_time=0.4), loader(20), loader(6))
    assert "max_time" in (made.stopped or "") or "max_seconds" in (made.stopped or "")
    assert 0 < made.global_step < 15
    made = fitted(again, trainer(tmp_path / "a", max_epochs=3), loader(20), loader(6), ckpt_path="last")
    alone = fitted(whole, trainer(tmp_path / "b", max_epochs=3), loader(20), loader(6))
    assert told(alone, whole) == told(made, again)
    assert len(whole.client.requests) <= len(first.client.requests) + len(again.client.requests)


def test_a_clock_that_jumps_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of time go by the monotonic clock; the wall's may be set by hours, either way."""
    wall, jumps = time.time, iter([3600.0, -7200.0] * 10_000)
    monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
    agent = _agent()
    made = fitted(agent, trainer(tmp_path, max_epochs=2, max_time=60), loader(8), loader(4))
    assert (made.stopped, agent.prompt.data) == ("max_epochs=2 reached", "Level 3.")


def test_a_budget_around_a_fit_ends_it_too(tmp_path: Path) -> None:
    """A program's own budget is an end that was asked for."""
    import afnio

    agent = _agent()
    with afnio.budget(max_calls=20):
        made = fitted(agent, trainer(tmp_path, max_epochs=3), loader(20))
    assert "max_calls=20" in (made.stopped or "")
    assert len(agent.client.requests) <= 20
    with afnio.budget(max_calls=3), pytest.raises(BudgetExceeded):
        trainer(tmp_path / "b").test(agent, loader(20))
