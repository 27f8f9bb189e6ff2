"""Trainer: what it trains, counts, reports, and refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from trainer import scenarios
from trainer.scenarios import Agent, ReadingAgent, afitted, fitted, items, loader, told, trainer

import afnio
import afnio.cognitive as cog
from afnio import tellurio as te
from afnio.cli import main
from afnio.errors import BatchError, BlockingReadError, ScoreError
from afnio.testing import ScriptedClient
from afnio.trainer import Checkpoint, StopTraining, Trainer
from afnio.utils.data import DataLoader


@pytest.fixture
def agent() -> Agent:
    return Agent(ScriptedClient(scenarios.replies))


def test_fit_trains_validates_and_tells(agent: Agent, tmp_path: Path) -> None:
    """Three levels are enough for every message; what the run saw is in its history, in order."""
    made = fitted(agent, trainer(tmp_path, max_epochs=2), loader(8), loader(6))
    assert agent.prompt.data == "Level 3."
    assert tuple(made.metrics[name] for name in ("train_score", "val_score", "val_score_sum")) == (
        7 / 8,
        1.0,
        6.0,
    )
    kinds = ["step", "step", "epoch", "val"] * 2
    assert kinds == [entry["kind"] for entry in made.history]
    assert [made.history[n]["metrics"]["score"][:2] for n in range(4)] == [[1, 4], [2, 4], [3, 8], [5, 6]]
    assert (
        made.stopped, made.current_epoch, made.global_step, made.best_score,
    ) == ("max_epochs=2 reached", 2, 4, 1.0)  # fmt: skip


def test_both_step_forms_give_the_same(tmp_path: Path) -> None:
    """A `def` that reads trains as an `async def` does; its text is logged, not averaged."""
    agents = [kind(ScriptedClient(scenarios.replies)) for kind in (Agent, ReadingAgent)]
    one, other = (
        fitted(agent, trainer(tmp_path / str(n), max_epochs=2), loader(10), loader(6))
        for n, agent in enumerate(agents)
    )
    assert one.metrics.items() <= other.metrics.items()
    assert one.metrics["val_score"] == pytest.approx(other.metrics["val_accuracy"])
    assert agents[0].prompt.data == agents[1].prompt.data
    assert other.history[0]["values"]["first"] == "m0"


def test_test_weighs_by_samples(agent: Agent, tmp_path: Path) -> None:
    """33, 33 and 2: the two wrong ones of the last batch are two of 68."""
    data = [(f"m{4 * n}", f"m{4 * n}") for n in range(66)] + [("m1", "m1"), ("m2", "m2")]
    found = trainer(tmp_path).test(agent=agent, test_dataloader=DataLoader(data, batch_size=33))
    assert (found["score"], found["score_sum"], found["failed"]) == (66 / 68, 66.0, 0.0)
    assert found["score_low"] < 66 / 68 < found["score_high"]
    assert all(isinstance(value, float) for value in found.values())


def test_failed_samples_are_left_out_and_counted(agent: Agent, tmp_path: Path) -> None:
    """The mean is over the others, in training and in tests."""
    data = [*items(15), ("bad", "bad")]
    made = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fitted(agent, made, DataLoader(data, batch_size=16))
    assert {name: made.history[0][name] for name in ("samples", "failed")} == {"samples": 16, "failed": 1}
    assert made.history[0]["metrics"]["score"] == [4, 15, True]
    found = made.test(agent, DataLoader(data, batch_size=3))
    assert found["failed"] == 1.0
    assert found["score"] == 8 / 15


def test_too_many_failed_samples_end_a_test(agent: Agent, tmp_path: Path) -> None:
    """The quorum is counted over the whole pass; below it the error says how many failed."""
    data = [*items(8), *[("bad", "bad")] * 2]
    assert trainer(tmp_path, quorum=0.8).test(agent, DataLoader(data, batch_size=1))["failed"] == 2.0
    with pytest.raises(BatchError, match=r"2 of 10 samples of the test pass failed"):
        trainer(tmp_path, quorum=0.9).test(agent, DataLoader(data, batch_size=1))
    with pytest.raises(BatchError, match="sample 0"):
        trainer(tmp_path, quorum=None).test(agent, DataLoader(data, batch_size=1))


def test_a_bad_batch_costs_its_step_and_three_in_a_row_the_training(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The prompt keeps its value, the run goes on; what always fails ends it."""
    bad = [("bad", "bad")] * 4
    made = fitted(
        agent, trainer(tmp_path, max_epochs=1), DataLoader([*items(4), *bad, *items(4)], batch_size=4)
    )
    assert [(e["samples"], e["failed"]) for e in made.history[:3]] == [(4, 0), (4, 4), (4, 0)]
    assert "4 of 4 samples" in made.history[1]["error"] or "no luck" in made.history[1]["error"]
    assert agent.prompt.data == "Level 2."
    assert "step 2 was cut short" in caplog.text
    with pytest.raises(BatchError, match="4 of 4 samples"):
        fitted(agent, trainer(tmp_path / "b"), DataLoader(bad * 4, batch_size=4))
    caplog.clear()


def test_a_step_may_skip(agent: Agent, tmp_path: Path) -> None:
    """A batch for which the step returns None counts in nothing, and no update is made for it."""

    async def step(batch: Any, batch_idx: int) -> Any:
        return None if batch_idx == 0 else agent.loss(agent(batch[0]), batch[1])

    object.__setattr__(agent, "training_step", step)
    made = fitted(agent, trainer(tmp_path, max_epochs=1), loader(8))
    assert [entry["skipped"] for entry in made.history[:2]] == [1, 0]
    assert agent.prompt.data == "Level 1."
    assert made.history[2]["metrics"]["score"][1] == 4


def test_manual_optimization(agent: Agent, tmp_path: Path) -> None:
    """The step does everything itself, as a `def` in a thread that may wait."""

    def step(batch: Any, batch_idx: int) -> Any:
        optimizer = agent.optimizers()
        for _ in range(2):
            optimizer.clear_grad()
            score, explanation = agent.loss(agent(batch[0]), batch[1])
            explanation.backward()
            optimizer.step()
        agent.log("correct", score.data)
        return None

    object.__setattr__(agent, "training_step", step)
    agent.automatic_optimization = False
    made = fitted(agent, trainer(tmp_path, max_epochs=1), loader(4))
    assert agent.prompt.data == "Level 2."
    assert made.history[0]["metrics"] == {"correct": [8.0, 4, False]}
    with pytest.raises(AttributeError, match="only while Trainer.fit runs"):
        agent.optimizers()


def test_accumulated_batches_make_one_step_with_their_feedback_in_order(tmp_path: Path) -> None:
    """Three batches run side by side; the optimizer is asked once, and hears them in the loader's order."""
    agent = Agent(ScriptedClient(scenarios.replies, latency=0.05))
    made = fitted(agent, trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3), loader(16))
    assert [entry["batch"] for entry in made.history[:2]] == [3, 4]
    assert agent.prompt.data == "Level 2."
    assert agent.client.peak == 12
    proposals = [str(r.messages) for r in agent.client.requests if "afnio_feedback" not in str(r.params)]
    asked = next(text for text in proposals if "higher, for" in text)
    assert asked.count("higher, for") == 9


def test_several_optimizers(tmp_path: Path) -> None:
    """Each steps on its own parameters."""

    class Two(Agent):
        def __init__(self, client: Any) -> None:
            super().__init__(client)
            self.other = afnio.Parameter("Level 5.", role="other prompt")

        def configure_optimizers(self) -> Any:
            return [afnio.optim.TGD([p], self.client, model="m") for p in (self.prompt, self.other)]

        async def training_step(self, batch: Any, batch_idx: int) -> Any:
            texts, golds = batch
            before = self.prompt
            self.prompt = self.other if batch_idx else before
            score = self.loss(self(texts), golds)
            self.prompt = before
            return score

    agent = Two(ScriptedClient(scenarios.replies))
    made = fitted(agent, trainer(tmp_path, max_epochs=1), DataLoader([("m1", "x"), ("m5", "y")]))
    assert [agent.prompt.data, agent.other.data] == ["Level 1.", "Level 6."]
    assert len(made.optimizers) == 2


def test_limits_of_batches_steps_and_epochs(agent: Agent, tmp_path: Path) -> None:
    """Each ends the training where it says."""
    made = fitted(
        agent,
        trainer(tmp_path, max_epochs=2, limit_train_batches=0.5, limit_val_batches=1),
        loader(16),
        loader(8),
    )
    assert (made.global_step, made.history[2]["samples"], made.history[3]["samples"]) == (4, 8, 4)
    made = fitted(agent, trainer(tmp_path / "b", max_steps=3), loader(8))
    assert (made.current_epoch, made.global_step, made.stopped) == (1, 3, "max_steps=3 reached")
    made = fitted(agent, trainer(tmp_path / "c", max_steps=2, max_epochs=9), loader(8), loader(4))
    assert made.history[-1]["kind"] == "val"


def test_validation_within_an_epoch(agent: Agent, tmp_path: Path) -> None:
    """After every second batch, with the parameters of that moment, and at the epoch's end."""
    made = fitted(agent, trainer(tmp_path, max_epochs=1, val_check_interval=2), loader(20), loader(4))
    assert [e["kind"] for e in made.history] == ["step"] * 2 + ["val"] + ["step"] * 2 + [
        "val",
        "step",
        "epoch",
        "val",
    ]
    assert [e["metrics"]["score"][0] for e in made.history if e["kind"] == "val"] == [3, 4, 4]
    assert [e["step"] for e in made.history if e["kind"] == "val"] == [2, 4, 5]


async def test_validation_overlaps_with_the_step_that_follows(agent: Agent, tmp_path: Path) -> None:
    """The pass sees the values from before the step, in evaluation mode, while the step trains."""
    seen: list[Any] = []
    validating = anyio.Event()
    training = anyio.Event()

    async def validate(batch: Any, batch_idx: int) -> Any:
        validating.set()
        await training.wait()  # a step that begins later
        seen.append((agent.training, agent.prompt.data))
        return agent.loss(agent(batch[0]), batch[1])

    async def train(batch: Any, batch_idx: int) -> Any:
        if agent.client.requests:  # it is the second epoch's
            await validating.wait()
            training.set()
            seen.append((agent.training, agent.prompt.data))
        return await Agent.training_step(agent, batch, batch_idx)

    object.__setattr__(agent, "validation_step", validate)
    object.__setattr__(agent, "training_step", train)
    made = await afitted(agent, trainer(tmp_path, max_epochs=2), loader(4), loader(4))
    assert seen == [(True, "Level 1."), (False, "Level 1."), (False, "Level 2.")]
    assert [entry["metrics"]["score"][0] for entry in made.history if entry["kind"] == "val"] == [2, 3]


def test_predict_gives_what_the_step_gives_in_order(agent: Agent, tmp_path: Path) -> None:
    """One entry for each batch; Variables are done."""
    found = trainer(tmp_path).predict(agent, loader(6))
    assert [batch.data for batch in found] == [["m0", "wrong", "wrong", "wrong"], ["m4", "wrong"]]


async def test_a_pass_is_one_pool_of_samples(tmp_path: Path) -> None:
    """All batches are under way at once."""
    agent = Agent(ScriptedClient(scenarios.replies, latency=0.2))
    await trainer(tmp_path).atest(agent, loader(40))
    assert agent.client.peak == 40


def test_fast_dev_run_keeps_nothing(agent: Agent, tmp_path: Path) -> None:
    """One batch each, no file."""
    made = fitted(agent, trainer(tmp_path, fast_dev_run=True), loader(8), loader(8))
    assert (made.global_step, [entry["samples"] for entry in made.history]) == (1, [4, 4, 4])
    assert list(tmp_path.iterdir()) == []


def test_metrics_go_to_the_active_run(agent: Agent, tmp_path: Path) -> None:
    """With the step, or the epoch, as their step; the run's journal is used, none beside the checkpoints."""
    logged: list[Any] = []
    with te.init("me", "p", dir=tmp_path / "runs", resume=False) as run:
        log = run.log
        run.log = lambda *given, **more: (logged.append((given, more)), log(*given, **more))  # type: ignore[method-assign]
        made = fitted(agent, trainer(tmp_path, max_epochs=1), loader(4), loader(4))
        made.test(agent, loader(4))
    assert [more for _, more in logged] == [{"step": 1}, {"step": 1}, {"step": 1}, {}]
    assert [next(iter(g[0])) for g, _ in logged] == [
        "train_score_step",
        "train_score",
        "val_score",
        "test_score",
    ]
    assert not (tmp_path / "checkpoints" / "calls.journal").exists()


@pytest.mark.parametrize(
    ("options", "val", "expected"),
    [
        ({}, 4, ("val_score", "max")),
        ({}, 0, ("train_score", "max")),
        ({"mode": "min"}, 4, ("val_score", "min")),
    ],
)
def test_the_run_knows_what_is_monitored(
    agent: Agent,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    val: int,
    expected: tuple[str, str],
) -> None:
    """So that whoever reads it shows that metric, with its best value and the epoch of that."""
    with te.init("me", "p", dir=tmp_path / "runs", resume=False) as run:
        made = trainer(tmp_path, max_epochs=2, **options)
        fitted(agent, made, loader(4), loader(val) if val else None)
    capsys.readouterr()
    assert main(["runs", "show", run.id, "--dir", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["headline"]
    assert (*expected, "epoch") == (found["metric"], found["mode"], found["unit"])
    assert made.metrics[found["metric"]] == found["value"]
    values = [value for _, value in points(made, found["metric"])]
    assert (max if found["mode"] == "max" else min)(values) == found["best"]
    assert 1 + values.index(found["best"]) == found["step"]


def points(made: Trainer, metric: str) -> list[tuple[int, float]]:
    """Return the epochs and values of a metric in a training's history."""
    prefix, _, name = metric.partition("_")
    kind = "epoch" if prefix == "train" else prefix
    entries = [entry for entry in made.history if entry["kind"] == kind]
    sums = [(entry["epoch"], *entry["metrics"][name]) for entry in entries]
    return [(epoch, total / samples) for epoch, total, samples, _ in sums]


def test_stop_training_ends_a_fit_between_steps(agent: Agent, tmp_path: Path) -> None:
    """Raised in a step, that step never was."""

    async def step(batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise StopTraining("that is enough")
        return agent.loss(agent(batch[0]), batch[1])

    object.__setattr__(agent, "training_step", step)
    made = fitted(agent, trainer(tmp_path), loader(8))
    assert (made.stopped, made.global_step, agent.prompt.data) == ("that is enough", 1, "Level 1.")


def test_what_is_wrong_is_said_at_once(agent: Agent, tmp_path: Path) -> None:
    """Arguments that can't work raise before anything is called."""
    with pytest.raises(TypeError, match="must be a cognitive.Module"):
        Trainer().fit("agent", loader(4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a train_dataloader"):
        Trainer().fit(agent)
    with pytest.raises(TypeError, match="must be a DataLoader"):
        Trainer().fit(agent, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ckpt_path must be"):
        Trainer().fit(agent, loader(4), ckpt_path=5)  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="has no training_step"):
        Trainer().fit(afnio.cognitive.Module(), loader(4))
    for wrong in (
        {"max_epochs": 0},
        {"quorum": 0.0},
        {"mode": "up"},
        {"max_cost": -1},
        {"val_check_interval": 2.5},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Trainer(**wrong)  # type: ignore[arg-type]
    assert agent.client.requests == []


def test_wrong_returns_are_named(agent: Agent, tmp_path: Path) -> None:
    """A step's mistake is told in a sentence."""
    for returned, message in [
        (5, "explanation sends the feedback"),
        ({"x": 1}, '"score"'),
        ("text", "training_step must"),
    ]:
        object.__setattr__(agent, "training_step", lambda batch, idx, returned=returned: returned)
        with pytest.raises(TypeError, match=message):
            fitted(agent, trainer(tmp_path), loader(4))


def test_a_logged_metric_can_not_hide_the_score(agent: Agent, tmp_path: Path) -> None:
    """Both would be shown as "score"."""

    async def step(batch: Any, batch_idx: int) -> Any:
        agent.log("score", 1)
        return agent.loss(agent(batch[0]), batch[1])

    object.__setattr__(agent, "training_step", step)
    with pytest.raises(ValueError, match='logged "score"'):
        fitted(agent, trainer(tmp_path), loader(4))


def test_an_empty_loader_is_an_error(agent: Agent, tmp_path: Path) -> None:
    """A generator that is used up gives no second epoch."""
    batches = iter(list(loader(4)))
    with pytest.raises(ValueError, match="gave no batch in epoch 2"):
        fitted(agent, trainer(tmp_path, max_epochs=2), batches)


async def test_fit_on_a_loop_names_the_twin(agent: Agent) -> None:
    """`fit` would block the loop."""
    with pytest.raises(BlockingReadError, match=r"await trainer.afit"):
        Trainer().fit(agent, loader(4))


def test_a_busy_trainer_says_so(agent: Agent, tmp_path: Path) -> None:
    """One thing at a time; a callback that uses the Trainer again is told."""
    errors: list[BaseException] = []

    def again(made: Trainer) -> None:
        try:
            made.test(agent, loader(4))
        except RuntimeError as error:
            errors.append(error)

    fitted(agent, trainer(tmp_path, max_epochs=1, callbacks=[again]), loader(4))
    assert "busy with fit" in str(errors[0])


def test_the_ledger_counts_all_clients_once(agent: Agent, tmp_path: Path) -> None:
    """Fit and test together, though the second opens the journal of the first."""
    made = fitted(agent, trainer(tmp_path, max_epochs=1), loader(4))
    made.test(agent, loader(4))
    assert len(agent.client.requests) == made.ledger.total.calls
    assert made.total_cost is None


def test_a_loader_error_is_raised_bare(agent: Agent, tmp_path: Path) -> None:
    """Not in a group, and not swallowed."""

    class Broken:
        def __len__(self) -> int:
            return 8

        def __getitem__(self, index: int) -> Any:
            if index == 5:
                raise KeyError("no such sample")
            return (f"m{index}", f"m{index}")

    with pytest.raises(KeyError, match="no such sample"):
        fitted(agent, trainer(tmp_path), DataLoader(Broken(), batch_size=4))  # type: ignore[arg-type]


def test_nothing_is_logged_in_a_good_run(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """No failure is left unread."""
    with caplog.at_level(logging.WARNING):
        one = fitted(agent, trainer(tmp_path, max_epochs=1), loader(8), loader(8))
    assert caplog.text == ""
    assert told(one, agent)


def test_what_is_no_number_is_kept_as_plain_data(agent: Agent, tmp_path: Path) -> None:
    """In the history and in the checkpoint; what JSON doesn't know as its text."""

    async def step(batch: Any, batch_idx: int) -> Any:
        agent.log("texts", list(batch[0]))
        return {"score": agent.loss(agent(batch[0]), batch[1]), "where": Path("here"), "pair": ("a", 1)}

    object.__setattr__(agent, "training_step", step)
    made = fitted(agent, trainer(tmp_path, max_epochs=1), loader(2))
    expected = {"texts": ["m0", "m1"], "where": f"{Path('here')!r}", "pair": ["a", 1]}
    assert made.history[0]["values"] == expected
    assert Checkpoint.read(tmp_path / "checkpoints" / "last").history[0]["values"] == expected


class Marked(Agent):
    """Scores out of ten, without a word on it."""

    def judged(self, batch: Any) -> Any:
        texts, golds = batch
        return cog.functional.deterministic_evaluator(
            self(texts), golds, lambda p, t: 10 if p == t else 1, "mark"
        )

    async def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.judged(batch)

    async def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.judged(batch)

    test_step = validation_step


@pytest.mark.parametrize("how", ["fit", "validate", "test"])
def test_a_score_above_max_score_ends_the_run_whatever_the_quorum(how: str, tmp_path: Path) -> None:
    """It is the evaluator's argument that is wrong, not a sample."""
    marked, made = Marked(ScriptedClient(scenarios.replies)), trainer(tmp_path, max_epochs=1, quorum=0.1)
    afnio.set_backward_model_client(marked.client, completion_args={"model": "m"})
    with pytest.raises(ScoreError, match=r"max_score=1 \(got 10\)") as caught:
        getattr(made, how)(marked, loader(8))
    shown = [Path(frame.path).name for frame in caught.traceback]
    assert shown == ["test_trainer.py"], "the user's line alone"
