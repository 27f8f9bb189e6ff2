"""An agent at a glance."""

from __future__ import annotations

from pathlib import Path

import pytest

import afnio
import afnio.cognitive as cog
from afnio import Limits
from afnio.autodiff import Variable
from afnio.optim import TGD
from afnio.testing import ScriptedClient
from afnio.trainer import AgentSummary


class Judge(cog.Module):
    def __init__(self, shared: cog.Parameter) -> None:
        super().__init__()
        self.rules = cog.Parameter("Be fair. " * 100, role="rules", requires_grad=False)
        self.shared = shared
        self.register_buffer("example", Variable(["four", None, "four"], role="examples"))


class Agent(cog.Module):
    def __init__(self) -> None:
        super().__init__()
        self.task = cog.Parameter("Read the message.", role="system prompt")
        self.client = ScriptedClient("x", limits=Limits(max_in_flight=1000, tokens_per_minute=60_000))
        self.judge = Judge(self.task)


def test_modules_texts_clients_limits_and_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared text counts once; an unknown price is said."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "small"\ninput = 0.1\noutput = 0.4\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    monkeypatch.setenv("COLUMNS", "120")
    agent = Agent()
    optimizer = TGD([agent.task], agent.client, model="small")
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "critic"}):
        lines = str(AgentSummary.of(agent, [optimizer, optimizer])).splitlines()
    assert lines[:6] == [
        "Agent",
        "├── task  Parameter  4 tokens  learned  system prompt",
        "└── judge  Judge",
        "    ├── rules  Parameter  225 tokens  kept  rules",
        "    └── example  buffer  2 tokens  kept  examples",
        "2 parameters, 1 learned, 229 tokens in all (at 4 characters each)",
    ]
    table = [" ".join(line.split()) for line in lines[6:]]
    client = "ScriptedClient scripted://model"
    limits = "1,000 in flight, 60,000 tokens/min"
    assert [
        "asked for client model limits $/M in, out",
        f"client {client} at each call {limits}",
        f"backward {client} critic {limits} unknown",
        f"TGD {client} small {limits} 0.1, 0.4",
    ] == [table[0], *table[2:]]


def test_what_is_pending_is_not_waited_for() -> None:
    """It says so."""
    agent = cog.Module()
    agent.task = cog.Parameter("x", role="prompt")
    import threading

    go = threading.Event()
    value = Variable("v").map(lambda text: go.wait(60) and text)
    agent.task.advance(value.own_slots[0])
    assert "task  Parameter  pending  learned  prompt" in str(AgentSummary.of(agent))
    go.set()
    assert agent.task.data == "v"


def test_an_agent_without_clients_has_no_table() -> None:
    """Markup in texts is not read as such."""
    agent = cog.Module()
    agent.task = cog.Parameter("", role="[bold]role[/bold]")
    assert str(AgentSummary.of(agent)).splitlines() == [
        "Module",
        "└── task  Parameter  0 tokens  learned  [bold]role[/bold]",
        "1 parameter, 1 learned, 0 tokens in all (at 4 characters each)",
    ]


def test_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is wider than it."""
    monkeypatch.setenv("COLUMNS", "50")
    assert max(map(len, str(AgentSummary.of(Agent())).splitlines())) <= 50
