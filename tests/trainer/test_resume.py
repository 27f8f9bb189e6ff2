"""Resume: a training that was killed or stopped anywhere ends as one that was left alone."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from kit.programs import Program
from trainer import scenarios
from trainer.scenarios import Agent, afitted, fitted, loader, told, trainer

import afnio
from afnio.errors import CheckpointError
from afnio.testing import Provider, ScriptedClient
from afnio.trainer import Callback, Checkpoint, EarlyStopping

KILLS = 2 if "AFNIO_NIGHTLY" not in os.environ else 60
IN_FLIGHT = 24

PROGRAM = """
import json, pathlib, sys
import afnio
from afnio import cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.trainer import Trainer
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader

class Agent(SentimentAnalyzer):
    def __init__(self, client):
        super().__init__()
        self.client, self.loss = client, cog.ExactMatchEvaluator()

    async def training_step(self, batch, batch_idx):
        texts, golds = batch
        pred = self(self.client, inputs={"message": texts}, model="m")
        return self.loss(pred.map(lambda reply: json.loads(reply)["sentiment"]), golds)

    def validation_step(self, batch, batch_idx):
        texts, golds = batch
        pred = self(self.client, inputs={"message": texts}, model="m")
        score, explanation = self.loss(pred.map(lambda reply: json.loads(reply)["sentiment"]), golds)
        return {"score": (score, explanation), "accuracy": score.data / len(texts)}

    test_step = training_step

    def configure_optimizers(self):
        return afnio.optim.TGD(self.parameters(), self.client, momentum=2, model="m")

kinds = ["love", "hate", "schedule"]
data = [(f"Message {n}: I {kinds[n % 3]} this.", ["positive", "negative", "neutral"][n % 2]) for n in range(40)]
afnio.set_backward_model_client("openai/m")
agent = Agent(AsyncOpenAI())
trainer = Trainer(max_epochs=2, seed=3, val_check_interval=2, enable_progress_bar=False)
trainer.fit(agent, DataLoader(data, batch_size=12, shuffle=True), DataLoader(data[:10], batch_size=4), ckpt_path="last")
tested = trainer.test(agent, DataLoader(data[10:22], batch_size=5))
end = {
    "tested": tested,
    "prompt": agent.sentiment_task.data, "history": trainer.history, "metrics": trainer.metrics,
    "momentum": str(trainer.optimizers[0].state_dict()["state"]), "best": trainer.best_score,
    "calls": trainer.ledger.total.calls,
}
pathlib.Path("end.json").write_text(json.dumps(end))
"""


@pytest.mark.longer
def test_kill_and_go_on(tmp_path: Path) -> None:
    """After kills at random points it ends with the same bytes, and pays again for no more than was in flight."""
    chance = random.Random(os.environ.get("AFNIO_SEED", "11"))
    with Provider.process(latency=0.04) as provider:
        whole = Program(tmp_path / "whole", PROGRAM, provider.base_url)
        began = time.monotonic()
        whole.finish()
        took = time.monotonic() - began
        alone = provider.stats()["requests"]
        killed = Program(tmp_path / "killed", PROGRAM, provider.base_url)
        kills = killed.kill_until_it_ends(chance, took, KILLS)
        if not killed.ended():
            killed.finish()
        paid_again = provider.stats()["requests"] - 2 * alone
    assert whole.end() == killed.end()
    assert 0 <= paid_again <= kills * IN_FLIGHT
    for name in ("last", "best", "epoch-1", "epoch-2"):
        mine, other = (Checkpoint.read(p.folder / "checkpoints" / name) for p in (whole, killed))
        assert _bytes(mine) == _bytes(other)


def _bytes(checkpoint: Checkpoint) -> bytes:
    checkpoint.ledger = {}  # attempts that a kill cut off count there
    return checkpoint.to_bytes()


class _Stop(Callback):
    """Stops or breaks a training after some step."""

    critical = True

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer: Any, agent: Any, metrics: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            if self.error is not None:
                raise self.error
            trainer.stop("here")


def _agent(**options: Any) -> Agent:
    return Agent(ScriptedClient(scenarios.replies, **options))


def _loaders() -> tuple[Any, Any]:
    return loader(20, shuffle=True), loader(6, shuffle=True)


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what a training of three epochs comes to, and how many calls it made."""
    agent = _agent()
    made = fitted(agent, trainer(tmp_path_factory.mktemp("alone"), max_epochs=3), *_loaders())
    return told(made, agent), len(agent.client.requests)


WRITTEN = afnio.__version__


@pytest.mark.parametrize("changed", [True, False])
def test_settings_that_changed_are_said_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, changed: bool
) -> None:
    """The batch size, the seed, the versions: the training goes on, and the log has why it may differ."""
    fitted(
        Agent(ScriptedClient(scenarios.replies)),
        trainer(tmp_path, max_epochs=1, seed=1),
        loader(8, batch_size=4),
    )
    if changed:
        monkeypatch.setattr(afnio, "__version__", "99.0")
    size, seed = (2, 5) if changed else (4, 1)
    caplog.clear()
    agent = Agent(ScriptedClient(scenarios.replies))
    made = trainer(tmp_path, max_epochs=2, seed=seed)
    fitted(agent, made, loader(8, batch_size=size), ckpt_path="last")
    said = [record.getMessage() for record in caplog.records if "other settings" in record.getMessage()]
    assert made.global_step == (6 if changed else 4)
    sentence = (
        "the training is resumed with other settings: the batch size is 2 (was 4), the seed is 5 (was 1, which it "
        f"goes on with), afnio is 99.0 (was {WRITTEN})"
    )
    assert said == ([sentence] if changed else [])


@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 14])
@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_going_on_in_another_process_ends_the_same(
    tmp_path: Path, left_alone: Any, step: int, how: str
) -> None:
    """Within an epoch, at its end, with a validation pass under way: same history, no reply paid twice."""
    first, again = _agent(), _agent()
    error = RuntimeError("broken") if how == "failed" else None
    broken = trainer(tmp_path, max_epochs=3, callbacks=[_Stop(step, error)])
    if error is None:
        fitted(first, broken, *_loaders())
        assert broken.stopped == "here"
    else:
        with pytest.raises(RuntimeError, match="broken"):
            fitted(first, broken, *_loaders())
    made = fitted(again, trainer(tmp_path, max_epochs=3), *_loaders(), ckpt_path="last")
    expected, calls = left_alone
    assert told(made, again) == expected
    assert calls == len(first.client.requests) + len(again.client.requests)


def test_an_error_is_raised_where_there_is_no_stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program without a console: how to go on can't be said, and the training's own error comes out."""
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(RuntimeError, match="broken"):
        fitted(_agent(), trainer(tmp_path, callbacks=[_Stop(1, RuntimeError("broken"))]), *_loaders())


def test_going_on_from_best_and_from_a_file(tmp_path: Path, left_alone: Any) -> None:
    """Any checkpoint leads to the same end; the journal answers for what was done since."""
    first = _agent()
    fitted(first, trainer(tmp_path, max_epochs=3), *_loaders())
    for name in ("best", "epoch-1", tmp_path / "checkpoints" / "epoch-2"):
        again = _agent()
        made = fitted(again, trainer(tmp_path, max_epochs=3), *_loaders(), ckpt_path=name)
        assert left_alone[0] == told(made, again)
        assert again.client.requests == []


def test_a_finished_training_goes_on_with_more_epochs(tmp_path: Path, left_alone: Any) -> None:
    """Two epochs and one more are three."""
    first, again = _agent(), _agent()
    fitted(first, trainer(tmp_path, max_epochs=2), *_loaders())
    made = fitted(again, trainer(tmp_path, max_epochs=3), *_loaders(), ckpt_path="last")
    assert left_alone[0] == told(made, again)


def test_what_was_spent_before_counts_even_if_nothing_is_called(tmp_path: Path) -> None:
    """A finished training that is taken up again, and a test after it: the ledger has all of it, once."""
    first, again = _agent(), _agent()
    fitted(first, trainer(tmp_path, max_epochs=1), *_loaders())
    made = fitted(again, trainer(tmp_path, max_epochs=1), *_loaders(), ckpt_path="last")
    assert again.client.requests == []
    assert len(first.client.requests) == made.ledger.total.calls
    made.test(again, loader(4))
    assert len(first.client.requests) + 4 == made.ledger.total.calls


def test_a_limited_epoch_is_not_taken_up_again(tmp_path: Path) -> None:
    """An epoch that a limit ended is over; the next one has an order of its own, as without the stop."""
    whole, first, again = _agent(), _agent(), _agent()
    options = {"limit_train_batches": 2}
    one = fitted(whole, trainer(tmp_path / "a", max_epochs=4, **options), *_loaders())
    fitted(first, trainer(tmp_path / "b", max_epochs=2, **options), *_loaders())
    other = fitted(again, trainer(tmp_path / "b", max_epochs=4, **options), *_loaders(), ckpt_path="last")
    assert told(one, whole) == told(other, again)


def test_plain_loaders_go_on_too(tmp_path: Path) -> None:
    """What has no state is passed over as far as it was trained on."""
    batches = list(loader(20))
    whole, first, again = _agent(), _agent(), _agent()
    one = fitted(whole, trainer(tmp_path / "a", max_epochs=2), batches)
    fitted(first, trainer(tmp_path / "b", max_epochs=2, callbacks=[_Stop(7)]), batches)
    other = fitted(again, trainer(tmp_path / "b", max_epochs=2), batches, ckpt_path="last")
    assert told(one, whole) == told(other, again)


def test_callbacks_go_on_where_they_were(tmp_path: Path) -> None:
    """Early stopping counts its patience over a stop."""
    found = []
    for folder, stops in (("a", []), ("b", [_Stop(12)])):
        agent = _agent()
        made = trainer(tmp_path / folder, max_epochs=9, callbacks=[EarlyStopping(patience=3), *stops])
        fitted(agent, made, *_loaders())
        if stops:
            made = trainer(tmp_path / folder, max_epochs=9, callbacks=[EarlyStopping(patience=3)])
            fitted(agent, made, *_loaders(), ckpt_path="last")
        found.append((made.stopped, made.current_epoch))
    assert "has not improved on 1 in 3 validation passes" in found[0][0]
    assert found[0] == found[1]


def test_best_is_made_up_where_a_kill_came_between(tmp_path: Path) -> None:
    """`epoch-N` is written before `best`; going on, the best epoch that counts is the best again."""
    fitted(_agent(), trainer(tmp_path, max_epochs=2), *_loaders())
    folder = tmp_path / "checkpoints"
    (folder / "best").unlink()
    fitted(_agent(), trainer(tmp_path, max_epochs=3), *_loaders(), ckpt_path="last")
    assert (folder / "epoch-1").read_bytes() == (folder / "best").read_bytes()


def test_last_without_a_checkpoint_begins(tmp_path: Path) -> None:
    """So a program can always say "last"; another name must be there."""
    agent = _agent()
    fitted(agent, trainer(tmp_path, max_epochs=1), loader(4), ckpt_path="last")
    with pytest.raises(CheckpointError, match="epoch-9"):
        fitted(agent, trainer(tmp_path), loader(4), ckpt_path="epoch-9")


def test_a_new_training_puts_the_earlier_one_aside(tmp_path: Path) -> None:
    """With its journal, whose replies are no answer to it; nothing is lost."""
    first, second = _agent(), _agent()
    fitted(first, trainer(tmp_path, max_epochs=1), loader(4))
    fitted(second, trainer(tmp_path, max_epochs=1), loader(4))
    assert len(first.client.requests) == len(second.client.requests)
    earlier = tmp_path / "checkpoints" / "earlier" / "1"
    assert {path.name for path in earlier.iterdir()} == {"last", "epoch-1", "best", "calls.journal"}
    third = _agent()
    made = fitted(third, trainer(tmp_path, max_epochs=2), loader(4), ckpt_path=earlier / "last")
    assert made.current_epoch == 2


@pytest.mark.parametrize("umask", [0, 0o022])
def test_only_the_user_may_read_what_a_training_writes(tmp_path: Path, umask: int) -> None:
    """Checkpoints and the journal have prompts, predictions and feedback; those that were put aside too."""
    before = os.umask(umask)
    try:
        for _ in range(2):
            fitted(_agent(), trainer(tmp_path, max_epochs=1), loader(4), loader(4))
    finally:
        os.umask(before)
    below = [tmp_path / "checkpoints", *(tmp_path / "checkpoints").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in below if path.is_dir()} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in below if path.is_file()} == {0o600}
    assert len(below) > 8


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_fit_is_recorded(
    tmp_path: Path, left_alone: Any, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a cancel scope it stops in the middle of a step, says how to go on, and goes on to the same end."""
    first, again = _agent(latency=0.01), _agent()

    async def main() -> None:
        with anyio.CancelScope() as cancel:

            class Cancel(Callback):
                async def on_train_batch_start(
                    self, trainer: Any, agent: Any, batch: Any, batch_idx: int
                ) -> None:
                    if trainer.global_step == 6:
                        cancel.cancel()

            await afitted(first, trainer(tmp_path, max_epochs=3, callbacks=[Cancel()]), *_loaders())
        assert cancel.cancelled_caught
        made = await afitted(again, trainer(tmp_path, max_epochs=3), *_loaders(), ckpt_path="last")
        assert left_alone[0] == told(made, again)

    anyio.run(main, backend=backend)
    assert (
        'stopped after step 6, in epoch 2; trainer.fit(..., ckpt_path="last") goes on'
        in capsys.readouterr().err
    )
