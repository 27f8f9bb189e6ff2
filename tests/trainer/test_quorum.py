"""Quorum: a refused sample costs a training nothing but itself, too many cost a step or a pass, an outage ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit.virtual import virtual_runtime
from trainer import scenarios
from trainer.scenarios import Agent, ReadingAgent, fitted, items, told, trainer

from afnio.errors import BatchError, FinalModelError, TransientModelError
from afnio.testing import ScriptedClient
from afnio.trainer import Callback, EarlyStopping
from afnio.utils.data import DataLoader

REFUSED = ("refused", "refused")


class Replies:
    """A model that refuses some messages and, once `down` is set, every call."""

    def __init__(self) -> None:
        self.down = False
        self.refused_critics = 0

    def __call__(self, request: Any) -> Any:
        if self.down:
            return TransientModelError("connection refused")
        if request.messages[-1]["content"] == "refused":
            return FinalModelError("content filter")
        shape = request.params.get("response_format")
        if shape is not None and shape["json_schema"]["name"] == "afnio_feedback" and self.refused_critics:
            self.refused_critics -= 1
            return FinalModelError("content filter")
        return scenarios.replies(request)


def batches(*rows: tuple[str, str]) -> DataLoader:
    return DataLoader(list(rows), batch_size=4)


@pytest.mark.parametrize("kind", [Agent, ReadingAgent])
def test_one_sample_of_a_small_batch_may_fail(
    tmp_path: Path, kind: type[Agent], caplog: pytest.LogCaptureFixture
) -> None:
    """A tenth of four is none, yet a refused sample is left out, in steps and in passes, and nothing is said."""
    agent = kind(ScriptedClient(Replies()))
    rows = [*items(3), REFUSED]
    made = fitted(agent, trainer(tmp_path, max_epochs=3), batches(*rows), batches(*rows))
    assert agent.prompt.data == "Level 2."
    assert [(e["samples"], e["failed"]) for e in made.history if e["kind"] == "val"] == [(4, 1)] * 3
    assert {"train_failed": 1.0, "val_failed": 1.0, "val_score": 1.0}.items() <= made.metrics.items()
    assert caplog.text == ""


@pytest.mark.parametrize("kind", [Agent, ReadingAgent])
def test_a_step_and_a_pass_below_the_quorum_are_cut_short(
    tmp_path: Path, kind: type[Agent], caplog: pytest.LogCaptureFixture
) -> None:
    """Alike: the parameters stay, no score counts, the line says how many of how many and why; training goes on."""
    agent = kind(ScriptedClient(Replies()))
    rows = [*items(2), REFUSED, REFUSED]
    stopper = EarlyStopping(patience=1)
    made = trainer(tmp_path, max_epochs=2, callbacks=[stopper])
    fitted(agent, made, batches(*rows, *items(4)), batches(*rows))
    assert agent.prompt.data == "Level 2."
    cut = [entry for entry in made.history if "error" in entry]
    assert [(e["kind"], e["samples"], e["failed"]) for e in cut] == [("step", 4, 2), ("val", 4, 2)] * 2
    assert all(entry["metrics"] == {} for entry in cut)
    assert "val_score" not in made.metrics
    assert made.metrics["val_failed"] == 2.0
    assert (stopper.best, stopper.waited) == (None, 0)
    said = (
        "2 of 4 samples of {} failed (2 x FinalModelError: content filter), and quorum=0.9 allows 1; take these "
        "samples out of the data, or give a lower Trainer(quorum=…)"
    )
    messages = [record.getMessage() for record in caplog.records]
    assert f"step 1 was cut short: {said.format('step 1')}" in messages
    assert f"validation after step 2 was cut short: {said.format('the validation pass')}" in messages
    caplog.clear()


def test_the_end_is_the_same_after_a_stop(tmp_path: Path) -> None:
    """Also where passes gave nothing."""
    rows = [*items(2), REFUSED, REFUSED]

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Any, agent: Any) -> None:
            if trainer.current_epoch == 2:
                trainer.stop("here")

    ends = []
    for name, callbacks in (("a", []), ("b", [Stop()])):
        for _ in range(1 + len(callbacks)):
            agent = Agent(ScriptedClient(Replies()))
            made = trainer(tmp_path / name, max_epochs=4, callbacks=callbacks)
            fitted(agent, made, batches(*items(4), *rows), batches(*rows), ckpt_path="last")
            callbacks = []
        ends.append(told(made, agent))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("quorum", [1.0, None])
def test_a_strict_quorum_lets_no_sample_fail(tmp_path: Path, quorum: float | None) -> None:
    """Neither in a step nor in a pass."""
    agent = Agent(ScriptedClient(Replies()))
    rows = [*items(3), REFUSED]
    made = trainer(tmp_path, max_epochs=1, quorum=quorum)
    fitted(agent, made, batches(*rows, *items(4)), batches(*rows))
    assert [entry["kind"] for entry in made.history if "error" in entry] == ["step", "val"]
    with pytest.raises(BatchError, match="1 of 4 samples"):
        made.test(agent, batches(*rows))


def test_half_of_the_critics_may_fail(tmp_path: Path) -> None:
    """Feedback is no score: what the others say moves the prompt; with less than half of it, the step is cut short."""
    for refused, level in ((1, 1), (2, 0)):
        replies = Replies()
        replies.refused_critics = refused
        agent = Agent(ScriptedClient(replies))
        rows = [("m1", "m1"), ("m5", "m5"), ("m9", "m9")]
        made = trainer(tmp_path / str(refused), max_epochs=1)
        fitted(agent, made, batches(*rows))
        assert agent.prompt.data == f"Level {level}."
        assert level == ("error" not in made.history[0])


def test_a_server_that_is_down_ends_the_training(tmp_path: Path) -> None:
    """After three steps in a row, with their counts in the error."""
    replies = Replies()
    replies.down = True
    agent = Agent(ScriptedClient(replies))
    with (
        virtual_runtime(),
        pytest.raises(
            BatchError, match=r"4 of 4 samples of step 3 failed \(4 x Trans.*server is up"
        ) as caught,
    ):
        fitted(agent, trainer(tmp_path), batches(*items(16)), batches(*items(4)))
    assert "connection refused" in str(caught.value)


def test_a_last_validation_that_an_outage_took_is_made_up_for(tmp_path: Path) -> None:
    """It ends the fit with an error, and going on repeats that pass alone."""

    replies, rows = Replies(), items(4)

    class Unplug(Callback):
        def on_train_epoch_end(self, trainer: Any, agent: Any) -> None:
            replies.down = trainer.current_epoch == 2

    whole, first, again = (Agent(ScriptedClient(script)) for script in (Replies(), replies, Replies()))
    one = fitted(whole, trainer(tmp_path / "a", max_epochs=2), batches(*rows), batches(*rows))
    with virtual_runtime(), pytest.raises(BatchError, match="4 of 4 samples of the validation pass failed"):
        broken = trainer(tmp_path / "b", max_epochs=2, callbacks=[Unplug()])
        fitted(first, broken, batches(*rows), batches(*rows))
    other = trainer(tmp_path / "b", max_epochs=2)
    fitted(again, other, batches(*rows), batches(*rows), ckpt_path="last")
    assert told(one, whole) == told(other, again)
    assert len(again.client.requests) == 4
