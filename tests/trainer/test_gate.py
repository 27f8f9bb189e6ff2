"""A gate in a Trainer: with TGD and EditTGD, killed and resumed, beside early stopping."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest
from kit.together import until

import afnio
import afnio.cognitive as cog
from afnio.optim import TGD, EditTGD, Gate
from afnio.runtime.events import StepEnded
from afnio.testing import ScriptedClient
from afnio.trainer import EarlyStopping, Trainer
from afnio.utils.data import DataLoader

TRAIN, VAL, HELD_OUT = ([f"row={n}" for n in range(at, at + 40)] for at in (0, 1000, 2000))


def quality(text: str) -> int:
    return int(re.search(r"q=(\d+)", text)[1])  # type: ignore[index]


class Meter:
    """Replies, counted; from `most` replies on nobody answers any more."""

    def __init__(self, most: float = float("inf")) -> None:
        self.most = most
        self.begun = False
        self.rows: Counter[str] = Counter()
        self.replies = 0

    async def student(self, request: Any) -> str:
        await self.alive()
        system, row = (str(message["content"]) for message in request.messages)
        self.rows[row] += 1
        return "yes" if int(row.rpartition("=")[2]) * 37 % 100 < quality(system) else "no"

    async def alive(self) -> None:
        if self.replies >= self.most:
            self.begun = True
            await anyio.sleep_forever()
        self.replies += 1

    def proposer(self, form: str, gain: int) -> ScriptedClient:
        async def propose(request: Any) -> Any:
            await self.alive()
            text = f"q={quality(str(request.messages)) + gain}"
            return (
                {"value": text}
                if form == "TGD"
                else {"edits": [{"op": "replace", "block": 1, "text": text, "samples": [1]}]}
            )

        return ScriptedClient(propose)


class Job(cog.Module):
    """A prompt whose quality is the number in it, with either optimizer."""

    def __init__(self, how: str, meter: Meter, *, gain: int = 10) -> None:
        super().__init__()
        self.prompt = cog.Parameter("q=40", role="prompt")
        self.user = afnio.Variable("{row}", role="row")
        self.client = ScriptedClient(meter.student)
        self.how, self.meter, self.gain = how, meter, gain
        self.automatic_optimization = how == "TGD"

    async def evaluate(self, batch: list[str]) -> Any:
        messages = [{"role": "system", "content": [self.prompt]}, {"role": "user", "content": [self.user]}]
        inputs = {"row": afnio.Variable(list(batch))}
        reply = cog.functional.chat_completion(self.client, messages, inputs=inputs, model="m")
        return cog.functional.exact_match_evaluator(reply, ["yes"] * len(batch))

    async def training_step(self, batch: list[str], batch_idx: int) -> Any:
        if self.how == "TGD":
            return await self.evaluate(batch)
        await self.optimizers().step()
        return None

    async def validation_step(self, batch: list[str], batch_idx: int) -> Any:
        return await self.evaluate(batch)

    def configure_optimizers(self) -> Any:
        proposer = self.meter.proposer(self.how, self.gain)
        if self.how == "TGD":
            return TGD([self.prompt], proposer, model="m")
        return EditTGD(
            [self.prompt], proposer, self.evaluate, TRAIN, lr=4, inner=1, minibatch=4, race=12, first=4, model="m"
        )  # fmt: skip


async def fit(
    folder: Path, job: Job, gate: Gate | None, seed: int | None = 1, shuffle: bool = False, **options: Any
) -> Trainer:
    trainer = Trainer(
        max_epochs=2,
        callbacks=[one for one in (gate, EarlyStopping(patience=5)) if one is not None],
        default_root_dir=folder,
        enable_agent_summary=False,
        seed=seed,
    )
    critic = ScriptedClient({"feedback": [{"variable": "v1", "text": "Raise it."}]})
    with afnio.set_backward_model_client(critic, completion_args={"model": "c"}):
        loaders = (DataLoader(rows, batch_size=20, shuffle=shuffle) for rows in (TRAIN, VAL))
        await trainer.afit(job, *loaders, **options)
    return trainer


@pytest.mark.parametrize(
    ("how", "gain", "kept"),
    [("TGD", 10, True), ("TGD", -10, False), ("EditTGD", 10, True)],  # a race never takes what is worse
)
async def test_a_gate_decides_at_the_end_of_a_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, gain: int, kept: bool
) -> None:
    """Early stopping and checkpoints see none of its rows. The verdict is shown, and recorded as a step of the run."""
    job = Job(how, Meter(), gain=gain)
    gate = Gate(job.evaluate, HELD_OUT)
    with kit.events(StepEnded) as steps:
        trainer = await fit(tmp_path, job, gate)
    (verdict,) = gate.verdicts
    assert verdict.passed is kept
    assert (job.prompt.data == "q=40") is not kept
    assert {job.meter.rows[row] for row in HELD_OUT} == {2}
    assert trainer.best_score is not None
    assert f"gate: {verdict}" in capsys.readouterr().err
    assert steps[-1].optimizer == "Gate"


@pytest.mark.parametrize(
    ("how", "cut"),
    [
        ("TGD", "training"),
        pytest.param("TGD", "gate", marks=pytest.mark.nightly),
        pytest.param("EditTGD", "training", marks=pytest.mark.nightly),
        ("EditTGD", "gate"),
    ],
)
async def test_killed_in_the_training_or_at_the_gate_it_resumes(tmp_path: Path, how: str, cut: str) -> None:
    """The same verdict, and all runs together get as many replies as one that nothing stops."""

    async def run(folder: Path, most: float, **options: Any) -> tuple[int, Any]:
        job = Job(how, Meter(most))
        gate = Gate(job.evaluate, HELD_OUT)
        async with anyio.create_task_group() as tasks:

            async def kill() -> None:
                await until(lambda: job.meter.begun)
                tasks.cancel_scope.cancel()

            tasks.start_soon(kill)
            await fit(folder, job, gate, **options)
            tasks.cancel_scope.cancel()
        return job.meter.replies, (job.prompt.data, gate.verdicts)

    whole, expected = await run(tmp_path / "whole", float("inf"))
    most = whole - 30 if cut == "gate" else whole // 3
    before, _ = await run(tmp_path / "cut", most)
    assert before == most
    after, found = await run(tmp_path / "cut", float("inf"), ckpt_path="last")
    assert found == expected
    assert before + after == whole


async def cut_off(folder: Path, most: float, seed: int | None, **options: Any) -> tuple[int, Any]:
    """Train until `most` replies have come. Return how many came, and the end."""
    job = Job("EditTGD", Meter(most))
    gate = Gate(job.evaluate, HELD_OUT)
    trainer: Trainer | None = None
    async with anyio.create_task_group() as tasks:

        async def kill() -> None:
            await until(lambda: job.meter.begun)
            tasks.cancel_scope.cancel()

        tasks.start_soon(kill)
        trainer = await fit(folder, job, gate, seed, shuffle=True, **options)
        tasks.cancel_scope.cancel()
    history = None if trainer is None else trainer.history
    return job.meter.replies, (job.prompt.data, gate.verdicts, history)


CUTS = [25, *(pytest.param(number, marks=pytest.mark.nightly) for number in range(100))]


@pytest.mark.parametrize("cut", CUTS)
async def test_a_search_that_was_cut_anywhere_goes_on_as_itself(tmp_path: Path, cut: int) -> None:
    """In a step, a race or the gate, the first step above all: the same draws, and no reply is paid for twice."""
    whole, expected = await cut_off(tmp_path / "whole", float("inf"), 7)
    most = cut if cut == 25 else random.Random(cut).randrange(1, whole)
    before, _ = await cut_off(tmp_path / "cut", most, 7)
    after, found = await cut_off(tmp_path / "cut", float("inf"), 7, ckpt_path="last")
    assert found == expected
    assert before + after == whole


@pytest.mark.parametrize("cut", [25, pytest.param(90, marks=pytest.mark.nightly)])
async def test_a_training_without_a_seed_goes_on_with_its_own(tmp_path: Path, cut: int) -> None:
    """Nobody has to give one: it is drawn and stored before the first call."""
    before, _ = await cut_off(tmp_path / "one", cut, None)
    assert before == cut
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    ends = [await cut_off(tmp_path / name, float("inf"), None, ckpt_path="last") for name in ("one", "two")]
    assert ends[0] == ends[1]
