"""Callbacks: when they are called, and what becomes of their errors."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from trainer import scenarios
from trainer.scenarios import Agent, fitted, loader, trainer

from afnio.testing import ScriptedClient
from afnio.trainer import Callback, EarlyStopping, LengthWatch, StopTraining, Trainer


@pytest.fixture
def agent() -> Agent:
    return Agent(ScriptedClient(scenarios.replies))


def test_hooks_come_in_order(agent: Agent, tmp_path: Path) -> None:
    """Objects' hooks, `def` or `async def`; a function at the end of each epoch, with its validation."""
    seen: list[str] = []

    class Watch:
        def on_fit_start(self, made: Any, agent: Any) -> None:
            seen.append("fit")

        async def on_train_epoch_start(self, made: Any, agent: Any) -> None:
            seen.append(f"epoch {made.current_epoch}")

        def on_train_batch_end(self, made: Any, agent: Any, metrics: Any, batch: Any, batch_idx: int) -> None:
            seen.append(f"batch {batch_idx}: {metrics['score']}, {agent.prompt.data}")

        def on_train_epoch_end(self, made: Any, agent: Any) -> None:
            seen.append("epoch ended")

        def on_validation_end(self, made: Any, agent: Any) -> None:
            seen.append(f"val {made.metrics['val_score']}")

        def on_fit_end(self, made: Any, agent: Any) -> None:
            seen.append("fit ended")

    def function(made: Trainer) -> None:
        seen.append(f"function {made.metrics['val_score']}")

    made = trainer(tmp_path, max_epochs=2, callbacks=[Watch(), function])
    fitted(agent, made, loader(4), loader(4))
    assert seen == [
        "fit", "epoch 0", "batch 0: 0.25, Level 1.", "epoch ended", "epoch 1", "batch 0: 0.5, Level 2.",
        "val 0.5", "function 0.5", "epoch ended", "val 0.75", "function 0.75", "fit ended",
    ]  # fmt: skip


def test_a_failing_callback_is_reported_once(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And stops nothing, unless it says so."""

    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("oops")

    with caplog.at_level(logging.ERROR):
        made = fitted(agent, trainer(tmp_path, max_epochs=2, callbacks=Fails()), loader(8))
    assert made.global_step == 4
    assert caplog.text.count("callback Fails failed in on_train_batch_end") == 1
    failing = Fails()
    failing.critical = True
    caplog.clear()
    with pytest.raises(KeyError, match="oops"):
        fitted(agent, trainer(tmp_path / "b", callbacks=failing), loader(8))


def test_stop_training_stops_after_the_step(agent: Agent, tmp_path: Path) -> None:
    """Raised in a callback, unless the least has not been done."""

    class Stop(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise StopTraining("enough")

    made = fitted(agent, trainer(tmp_path, max_epochs=2, callbacks=[Stop()]), loader(8))
    assert (made.stopped, made.global_step) == ("enough", 1)
    made = fitted(agent, trainer(tmp_path / "b", max_epochs=5, min_steps=3, callbacks=[Stop()]), loader(8))
    assert (made.stopped, made.global_step) == ("enough", 3)


def test_early_stopping(agent: Agent, tmp_path: Path) -> None:
    """It stops with the parameters of the pass that decided it: no step more."""
    made = trainer(tmp_path, max_epochs=20, callbacks=[EarlyStopping("val_score", patience=2)])
    fitted(agent, made, loader(4), loader(4))
    assert [entry["metrics"]["score"][0] / 4 for entry in made.history if entry["kind"] == "val"] == [
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    assert (
        made.global_step, made.current_epoch, made.stopped,
    ) == (5, 5, "val_score has not improved on 1 in 2 validation passes")  # fmt: skip
    made = trainer(tmp_path / "b", max_epochs=20, callbacks=[EarlyStopping(stopping_threshold=0.7)])
    agent.prompt.data = "Level 0."
    fitted(agent, made, loader(4), loader(4))
    assert (made.current_epoch, made.stopped) == (2, "val_score has reached 0.75, and 0.7 was asked for")


def test_length_watch(agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It warns once for each parameter, or stops."""
    with caplog.at_level(logging.WARNING):
        fitted(agent, trainer(tmp_path, max_epochs=1, callbacks=[LengthWatch(max_tokens=1)]), loader(8))
    assert caplog.text.count("parameter prompt has grown to about 2 tokens, more than max_tokens=1") == 1
    made = trainer(tmp_path / "b", max_epochs=9, callbacks=[LengthWatch(max_tokens=1, action="stop")])
    assert fitted(agent, made, loader(8)).global_step == 1


def test_what_is_no_callback_is_refused() -> None:
    """At the line that gives it."""
    with pytest.raises(TypeError, match="a callback is a function or has an on_"):
        Trainer(callbacks=[5])
    with pytest.raises(TypeError, match=r"write EarlyStopping\(\)"):
        Trainer(callbacks=[EarlyStopping])
