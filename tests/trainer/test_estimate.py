"""What a training will ask for, against what it then does ask for; and nothing is called or changed."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from trainer.scenarios import Agent, ReadingAgent, fitted, loader, replies, trainer

import afnio
import afnio.cognitive as cog
from afnio import Limits
from afnio.autodiff import Variable
from afnio.optim import EditTGD
from afnio.runtime import Price
from afnio.testing import ScriptedClient


def estimated(agent: Agent, made: Any, *loaders: Any, **options: Any) -> Any:
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "critic"}):
        return made.estimate(agent, *loaders, **options)


def counts(estimate: Any) -> dict[str, tuple[int, int]]:
    return {f"{item.phase} {item.purpose}": (item.low, item.high) for item in estimate.items}


@pytest.mark.parametrize("kind", [Agent, ReadingAgent])
def test_it_bounds_what_a_training_asks_for(tmp_path: Path, kind: type[Agent]) -> None:
    """Calls of each kind; those that don't hang on the answers exactly."""
    agent = kind(ScriptedClient(replies))
    made = trainer(tmp_path, max_epochs=3)
    found = estimated(agent, made, loader(10, seed=1), loader(6))
    assert agent.client.requests == []
    assert counts(found) == {
        "train forward": (30, 30), "train backward": (0, 30), "train step": (0, 9), "val forward": (18, 18),
    }  # fmt: skip
    fitted(agent, made, loader(10, seed=1), loader(6))
    calls = {item.purpose: 0 for item in made.ledger.items}
    for item, spent in made.ledger.items.items():
        calls[item.purpose] += spent.calls
    assert calls["forward"] == 48
    assert 0 < calls["backward"] <= 30
    assert 0 < calls["step"] <= 9
    low, high = found.calls
    assert low <= sum(calls.values()) <= high


def test_calls_of_a_function_wait_for_those_of_their_sample(tmp_path: Path) -> None:
    """A batch's samples are made side by side, whoever makes the calls: the chain is that of one sample."""

    class Twice(Agent):
        def __init__(self, client: ScriptedClient) -> None:
            super().__init__(client)
            self.agent = cog.Agent(self.ask, prompts={"system": "Level 0."})

        async def ask(self, text: str, system: str) -> str:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            await self.client.achat(messages=messages, model="m")
            return (await self.client.achat(messages=messages, model="m")).content or ""

        def forward(self, text: Any) -> afnio.Variable:
            return self.agent(text)

    found = estimated(Twice(ScriptedClient(replies)), trainer(tmp_path, max_epochs=1), loader(10, seed=1))
    assert counts(found)["train forward"] == (20, 20)
    assert found.chain[0] == 3 * 2  # a batch has four samples


def test_the_agent_and_the_loader_are_as_before(tmp_path: Path) -> None:
    """Values, feedback, order, seeds: the training that follows is the one without an estimate."""

    def train(folder: str, look: bool) -> tuple[Any, ...]:
        agent, train = Agent(ScriptedClient(replies)), loader(10, shuffle=True)
        agent.prompt.append_grad(Variable("kept"))
        made = trainer(tmp_path / folder, max_epochs=2)
        if look:
            estimated(agent, made, train)
            assert [gradient.data for gradient in agent.prompt.grad] == ["kept"]
            assert agent.prompt.data == "Level 0."
            with pytest.raises(AttributeError):
                agent.optimizers()
        fitted(agent, made, train)
        return agent.prompt.data, made.history

    assert train("a", True) == train("b", False)


def test_steps_that_weigh_values_count_their_own_calls(tmp_path: Path) -> None:
    """Evaluations of an optimizer are the step's, not the samples'."""

    class Gated(Agent):
        def configure_optimizers(self) -> Any:
            return EditTGD(
                self.parameters(),
                self.client,
                self.evaluate,
                loader(8),
                lr=1,
                inner=2,
                minibatch=4,
                race=4,
                model="m",
            )

        async def evaluate(self, batch: Any) -> Any:
            return self.loss(self(batch[0]), batch[1])

    agent = Gated(ScriptedClient(replies))
    found = counts(estimated(agent, trainer(tmp_path, max_epochs=1), loader(8, batch_size=8)))
    assert {name: number for name, number in found.items() if "step" not in name} == {
        "train forward": (8, 8),
        "train backward": (0, 8),
    }
    assert (found["train step"], found["train step forward"]) == ((0, 4), (0, 4))


def test_what_cannot_be_rehearsed_is_said(tmp_path: Path) -> None:
    """The calls until then count."""

    class Picky(Agent):
        async def training_step(self, batch: Any, batch_idx: int) -> Any:
            texts, _ = batch
            answers = (await self(texts)).data
            raise ValueError(f"no number in {answers[0][:13]!r}")

    found = estimated(Picky(ScriptedClient(replies)), trainer(tmp_path, max_epochs=1), loader(4))
    assert counts(found) == {"train forward": (4, 4)}
    assert "training_step could not be rehearsed to its end" in (found.note or "")
    assert "(ValueError: no number in 'made-up reply')" in str(found)


async def test_on_a_loop(tmp_path: Path) -> None:
    """The twin is awaited; `estimate` would block."""
    agent, made = Agent(ScriptedClient(replies)), trainer(tmp_path, max_steps=5)
    with afnio.set_backward_model_client(agent.client, completion_args={"model": "m"}):
        found = await made.aestimate(agent, loader(10), seconds_per_call=3.0)
        with pytest.raises(afnio.errors.BlockingReadError, match="aestimate"):
            made.estimate(agent, loader(10))
    assert (found.epochs, found.steps, counts(found)["train forward"]) == (2, 5, (17, 17))
    # Five steps of one call forward; then one backward and one to rewrite each.
    assert found.seconds == (15.0, 45.0)


@pytest.fixture
def made_up(tmp_path: Path) -> Any:
    """An estimate of two steps, to be given items by `item`."""
    agent = Agent(ScriptedClient(replies))
    return dataclasses.replace(estimated(agent, trainer(tmp_path, max_steps=2), loader(4)), chain=(2, 6))


def item(found: Any, low: int, high: int, dollars: int | None = None, **changes: Any) -> Any:
    """An item of 100 tokens in and 10 out a call, at a price for a million of either."""
    price = None if dollars is None else Price(*3 * [Decimal(dollars)])
    return dataclasses.replace(
        found.items[0], low=low, high=high, prompt_tokens=100.0, output_tokens=10.0, price=price, **changes
    )


def test_cost_is_unknown_as_soon_as_one_price_is(made_up: Any) -> None:
    """Never a sum that leaves something out."""
    items = [item(made_up, 100, 100, 10), item(made_up, 0, 50, 20, purpose="backward")]
    one = dataclasses.replace(made_up, items=items)
    assert (Decimal("0.11"), Decimal("0.22")) == one.cost
    assert (one.calls, one.tokens) == ((100, 150), (11_000, 16_500))
    assert one.seconds == (4.0, 12.0)
    assert "$0.1100 to $0.2200" in str(one)
    unknown = dataclasses.replace(one, items=[*one.items, item(made_up, 0, 1)])
    assert unknown.cost is None
    assert "unknown" in str(unknown).splitlines()[-3]


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        (Limits(max_in_flight=10), (20.0, 30.0)),
        (Limits(requests_per_minute=50), (120.0, 180.0)),
        (Limits(tokens_per_minute=1100), (600.0, 900.0)),
        (Limits(max_in_flight=500), (4.0, 12.0)),
    ],
)
def test_limits_take_their_time(made_up: Any, limits: Limits, seconds: tuple[float, float]) -> None:
    """The slowest counts: the calls that wait for each other, or a limit."""
    account = ScriptedClient("ok", limits=limits).account
    assert seconds == dataclasses.replace(made_up, items=[item(made_up, 100, 150, account=account)]).seconds


@pytest.mark.parametrize(
    ("options", "work"),
    [
        ({"max_epochs": 2}, (2, 6, 20, 12)),
        ({"max_steps": 4}, (2, 4, 14, 12)),
        ({"max_epochs": 1, "max_steps": 9}, (1, 3, 10, 6)),
        ({"max_epochs": 1, "accumulate_grad_batches": 2}, (1, 2, 10, 6)),
        ({"max_epochs": 1, "val_check_interval": 1}, (1, 3, 10, 18)),
        ({"max_epochs": 1, "val_check_interval": 0.5}, (1, 3, 10, 18)),
        ({"max_epochs": 2, "limit_train_batches": 1, "limit_val_batches": 0}, (2, 2, 8, 0)),
        ({"max_cost": 1.0}, (1, 3, 10, 6)),
        ({"fast_dev_run": True}, (1, 1, 4, 4)),
    ],
)
def test_workloads(tmp_path: Path, options: dict[str, Any], work: tuple[int, ...]) -> None:
    """Ten samples in batches of four, six to validate on."""
    found = estimated(Agent(ScriptedClient(replies)), trainer(tmp_path, **options), loader(10), loader(6))
    calls = counts(found)
    val = calls.get("val forward", (0, 0))
    assert work == (found.epochs, found.steps, calls["train forward"][1], val[1])


def test_loaders_that_do_not_say_how_long_they_are(tmp_path: Path) -> None:
    """With a limit they do."""

    class Endless:
        def __iter__(self) -> Any:
            while True:
                yield ["m1"], ["m1"]

    agent = Agent(ScriptedClient(replies))
    with pytest.raises(ValueError, match="limit_train_batches"):
        estimated(agent, trainer(tmp_path), Endless())
    limited = trainer(tmp_path, max_epochs=1, limit_train_batches=3)
    assert estimated(agent, limited, Endless()).steps == 3


def test_one_batch_is_looked_at_and_none_is_gone(tmp_path: Path) -> None:
    """Of a dataset from all over it; of others the first."""
    seen: list[Any] = []

    class Watched(Agent):
        async def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(batch[0])
            return await super().training_step(batch, batch_idx)

    agent, made = Watched(ScriptedClient(replies)), trainer(tmp_path, max_epochs=1)
    spread = loader(10, 3, shuffle=True)
    before = spread.state_dict()
    estimated(agent, made, spread)
    assert seen[0] == ["m0", "m3", "m6"]
    assert before == spread.state_dict()
    estimated(agent, made, [(["m1", "m2"], ["m1", "m2"]), (["m3"], ["m3"])])
    assert seen[1] == ["m1", "m2"]
    with pytest.raises(TypeError, match="iterated over twice"):
        estimated(agent, trainer(tmp_path, limit_train_batches=1), iter([(["m1"], ["m1"])]))
    with pytest.raises(ValueError, match="no batch|gave none"):
        estimated(agent, made, [])


def test_an_agent_without_a_step_is_told(tmp_path: Path) -> None:
    """As fit does."""
    with pytest.raises(AttributeError, match="training_step"):
        trainer(tmp_path).estimate(cog.Module(), loader(4))


def test_it_says_what_batches_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds and dollars, in a block of `batch_api`: what takes hours is the batches that wait for each other."""
    prices = tmp_path / "prices.toml"
    rows = [("", 1, 2), ("batch", 0.5, 1)]
    prices.write_text(
        "".join(
            f'[[price]]\nmodel = "*"\ntier = "{tier}"\ninput = {asked}\noutput = {written}\n'
            for tier, asked, written in rows
        )
    )
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    agent = Agent(ScriptedClient(replies))
    made = trainer(tmp_path, max_epochs=3)
    plain = estimated(agent, made, loader(10, seed=1), loader(6))
    with afnio.batch_api():
        found = estimated(agent, made, loader(10, seed=1), loader(6))
    assert (plain.rounds, found.rounds) == (None, (10, 19))  # 9 steps: forward and backward; and a validation
    assert found.batch_cost[0] == found.cost[0] / 2
    assert found.cost[1] / 2 < found.batch_cost[1] < found.cost[1]  # the optimizer's calls are sent at once
    line = "By batch: 10 to 19 batches one after the other, up to 4:45:00 at 15 minutes each and 19:00:00 at an hour; "
    assert (line in str(found), "By batch" in str(plain)) == (True, False)
