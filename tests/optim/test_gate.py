"""Gate: one test of the result against the start, on rows that nothing else saw."""

from __future__ import annotations

import io
import json
import random
import threading
from collections import Counter

import anyio
import anyio.to_thread
import kit
import pytest
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ScoreError
from afnio.optim import TGD, Gate
from afnio.runtime.events import StepEnded
from afnio.testing import ScriptedClient
from afnio.trainer import Trainer
from afnio.utils.data import DataLoader


class Task:
    """A prompt whose quality is the number in it: row n is answered rightly if n % 100 is below it."""

    def __init__(self, text="q=40", *, latency=0.0, answer=None, limits=None):
        self.prompt = cog.Parameter(text, role="prompt", requires_grad=True)
        self.user = afnio.Variable("{row}", role="row")
        self.client = ScriptedClient(answer or self.answer, latency=latency, limits=limits)

    def answer(self, request):
        quality, row = (int(str(m["content"]).rpartition("=")[2]) for m in request.messages)
        return "yes" if row * 37 % 100 < quality else "no"

    def evaluate(self, batch):
        messages = [{"role": "system", "content": [self.prompt]}, {"role": "user", "content": [self.user]}]
        inputs = {"row": afnio.Variable(list(batch))}
        pred = cog.functional.chat_completion(self.client, messages, inputs=inputs, model="m", temperature=0)
        return cog.functional.exact_match_evaluator(pred, ["yes"] * len(batch))

    async def aevaluate(self, batch):
        return await self.evaluate(batch)

    def gate(self, rows=64, **options):
        return Gate(
            options.pop("evaluate", self.evaluate), [f"row={n}" for n in range(rows)], seed=0, **options
        )


@pytest.mark.parametrize("how", ["evaluate", "aevaluate"])
@pytest.mark.parametrize(
    ("result", "kept"), [("q=80", True), ("q=44", True), ("q=40", True), ("q=20", False)]
)
def test_a_result_that_is_worse_is_replaced_by_the_start(how, result, kept):
    """A better one stays; equal texts cost no call."""
    task = Task()
    gate = task.gate(evaluate=getattr(task, how))
    gate.start([task.prompt])
    task.prompt.data = result
    verdict = gate.judge().wait()
    assert (kept, result if kept else "q=40") == (verdict.passed, task.prompt.data)
    assert gate.verdicts == [verdict]
    assert (0 if result == "q=40" else 128) == len(task.client.requests)


def test_the_evidence_is_reported():
    """In the verdict, and as a step with both candidates and their scores by row, for a run's record."""
    task = Task()
    gate = task.gate(40)
    gate.start(TGD([task.prompt], ScriptedClient([]), model="m"))
    task.prompt.data = "q=20"
    with kit.events() as events:
        verdict = gate.judge().wait()
    assert len(verdict.rows) == verdict.wins + verdict.losses + verdict.ties == 40
    assert (0, verdict.losses) == (verdict.wins, round(40 * (verdict.start - verdict.result)))
    assert f"p={verdict.p:.2g}, level 0.5" in str(verdict)
    (step,) = [event for event in events if isinstance(event, StepEnded)]
    assert (step.optimizer, [c.name for c in step.candidates]) == ("Gate", ["incumbent", "result"])
    assert {candidate.samples for candidate in step.candidates} == {verdict.rows}
    assert [len(candidate.scores) for candidate in step.candidates] == [40, 40]
    (change,) = step.changes
    assert (change.before, change.after) == ("q=20", "q=40")
    assert change.rejected.startswith("the start is kept: ")


def passes_by_chance(score, rows, runs=200):
    """Return the share of runs in which a result that is no better passes; scores are drawn by run, text and row."""
    prompt, passed = cog.Parameter("start"), 0
    for run in range(runs):

        def evaluate(batch, run=run):
            return [score(row, random.Random(f"{run} {prompt.data} {row}")) for row in batch]

        prompt.data = "start"
        gate = Gate(evaluate, list(range(rows)), seed=0)
        gate.start([prompt])
        prompt.data = "no better"
        passed += gate.judge().wait().passed
        assert ("no better" if gate.verdicts[0].passed else "start") == prompt.data
    return passed / runs


@pytest.mark.parametrize("rows", [16, 48])
def test_without_a_gain_the_start_is_replaced_in_half_of_the_runs_at_most(rows):
    """Or as often as the level says."""
    passed = passes_by_chance(lambda row, draw: float(draw.random() < 0.6), rows)
    assert 0.3 < passed <= 0.5


def test_graded_scores_without_a_gain_pass_in_half_of_the_runs_at_most():
    """A few rows may differ much more than the others."""

    def score(row, draw):
        return draw.choice([0.0, 1.0]) if row < 4 else 0.5 + 0.01 * draw.randrange(3)

    assert 0.3 < passes_by_chance(score, 40) <= 0.5 + 2 * (0.5 * 0.5 / 200) ** 0.5


def test_a_level_that_is_chosen_holds_and_too_few_rows_are_an_error():
    """Before the first call."""
    task = Task()
    strict = task.gate(20, level=0.05)
    strict.start([task.prompt])
    task.prompt.data = "q=50"
    assert strict.judge().wait().level == 0.05
    with pytest.raises(ValueError, match="must have at least 12 rows"):
        task.gate(11)


@pytest.mark.parametrize(("budget", "rows"), [(150, 25), (240, 32), (300, 37), (1000, 64)])
def test_more_than_32_rows_cost_a_quarter_of_the_budget_at_most(budget, rows):
    """Fewer cost a third."""
    task = Task()
    gate = task.gate(64, budget=budget)
    gate.start([task.prompt])
    task.prompt.data = "q=80"
    assert len(gate.judge().wait().rows) == rows


def test_both_looks_cost_a_third_of_the_budget_at_most():
    """Fewer rows are used; if it can't pay for twelve, the sum is told before the first call."""
    task = Task()
    gate = task.gate(64, budget=120)
    gate.start([task.prompt])
    task.prompt.data = "q=80"
    assert len(gate.judge().wait().rows) == 20
    assert len(task.client.requests) == 40
    with afnio.budget(max_calls=60):
        again = task.gate(64)
        with pytest.raises(ValueError, match=r"two looks of 1 calls a row are 24, so 72 calls \(got 60\)"):
            again.start([task.prompt])
    assert (task.prompt.data, len(task.client.requests)) == ("q=80", 40)


def test_a_second_look_uses_other_rows_or_a_lower_level(caplog):
    """The state lists those that are used up."""
    task = Task()
    gate = task.gate(96, size=40)
    gate.start([task.prompt])
    seen, levels = [], []
    for result in ("q=50", "q=60", "q=70", "q=80"):
        task.prompt.data = result
        verdict = gate.judge().wait()
        seen.append(set(verdict.rows))
        levels.append(verdict.level)
        gate.restart()
    assert not seen[0] & seen[1]
    assert levels == [0.5, 0.5, 0.25, 0.125]
    assert [len(rows) for rows in seen] == [40, 40, 40, 40]
    assert "uses rows again and halves its level to 0.25" in caplog.text


def test_a_resumed_gate_knows_the_first_start_and_the_used_rows():
    """Through a file."""
    task = Task()
    gate = task.gate(96, size=40)
    gate.start([task.prompt])
    task.prompt.data = "q=50"
    first = gate.judge().wait()
    file = io.BytesIO()
    afnio.save(gate.state_dict(), file)
    file.seek(0)
    state = afnio.load(file)
    json.dumps(state)
    assert sorted(first.rows) == state["rows_used"]
    other = Task("q=50")
    resumed = other.gate(96, size=40)
    resumed.load_state_dict(state)
    resumed.start([other.prompt])
    other.prompt.data = "q=20"
    verdict = resumed.judge().wait()
    assert not set(first.rows) & set(verdict.rows)
    assert resumed.verdicts == [first, verdict]
    assert other.prompt.data == "q=40", "the start of the run, not of the resumption"


def test_a_second_training_is_compared_with_its_own_start():
    """The text of another agent must not come back."""
    one, other = Task("q=40"), Task("q=60")
    gate = one.gate(96, size=40)
    gate.start([one.prompt])
    one.prompt.data = "q=80"
    assert gate.judge().wait().passed
    gate.start([other.prompt])
    other.prompt.data = "q=20"
    assert (gate.judge().wait().passed, other.prompt.data) == (False, "q=60")


def test_a_score_that_is_no_number_ends_the_look():
    """No comparison with NaN is true, so such a row would decide for the result."""
    task = Task()
    gate = task.gate(evaluate=lambda batch: [float("nan"), *[1.0] * (len(batch) - 1)])
    gate.start([task.prompt])
    task.prompt.data = "q=80"
    with pytest.raises(ScoreError, match=r"must be a finite number or None \(got nan\); return None"):
        gate.judge().wait()
    assert (task.prompt.data, gate.verdicts) == ("q=80", [])


def test_failed_rows_are_left_out_and_too_many_leave_the_values():
    """An outage must not cost a training; the rows aren't used up."""
    broken = 3

    def answer(request):
        row = int(str(request.messages[-1]["content"]).rpartition("=")[2])
        if row < broken:
            raise FinalModelError("refused", status=400)
        return Task.answer(None, request)

    task = Task(answer=answer)
    gate = task.gate(64)
    gate.start([task.prompt])
    task.prompt.data = "q=80"
    assert (gate.judge().wait().passed, gate.verdicts[0].failed) == (True, 3)
    broken = 40
    gate = task.gate(64)
    gate.start([task.prompt])
    task.prompt.data = "q=10"
    with pytest.raises(BaseException, match="64"):
        gate.judge()
    assert (task.prompt.data, gate.verdicts, gate.state_dict()["rows_used"]) == ("q=10", [], [])
    broken = 0
    assert not gate.judge().wait().passed


@pytest.mark.parametrize("outage", [False, True])
def test_a_result_whose_replies_cannot_be_used_is_replaced_by_the_start(outage):
    """A text may break what the agent reads; a call that failed beside it says nothing about the text."""

    def answer(request):
        if "q=90" not in str(request.messages):
            return Task.answer(None, request)
        if outage and "row=7'" in str(request.messages):
            raise FinalModelError("refused", status=400)
        return "I think so, yes" if "row=1" in str(request.messages) else "yes"

    def read(reply):
        if reply not in ("yes", "no"):
            raise ValueError(f"yes or no (got {reply!r})")
        return reply

    def evaluate(batch):
        inputs = {"row": afnio.Variable(list(batch))}
        messages = [{"role": "system", "content": [task.prompt]}, {"role": "user", "content": [task.user]}]
        pred = cog.functional.chat_completion(task.client, messages, inputs=inputs, model="m", temperature=0)
        return cog.functional.exact_match_evaluator(pred.map(read), ["yes"] * len(batch))

    task = Task(answer=answer)
    gate = task.gate(64, evaluate=evaluate)
    gate.start([task.prompt])
    task.prompt.data = "q=90"
    if outage:
        with pytest.raises(ExceptionGroup):
            gate.judge()
        assert (task.prompt.data, gate.state_dict()["rows_used"]) == ("q=90", [])
        return
    verdict = gate.judge().wait()
    assert (verdict.passed, verdict.result, verdict.failed, task.prompt.data) == (False, None, 11, "q=40")
    assert "with the result 11 of 64 held-out rows have no score (0.4" in str(verdict)
    assert len(gate.state_dict()["rows_used"]) == 64
    again = task.gate(64, evaluate=evaluate)
    again.load_state_dict(json.loads(json.dumps(gate.state_dict())))
    assert again.verdicts == [verdict]


def test_both_looks_run_side_by_side():
    """One latency."""
    with virtual_runtime() as clock:
        task = Task(latency=1.0, limits=afnio.Limits(max_in_flight=256))
        gate = task.gate(64, evaluate=task.aevaluate)
        gate.start([task.prompt])
        task.prompt.data = "q=80"
        began = clock.now
        gate.judge()
        _ = task.prompt.data
        assert clock.now - began <= 1.1


async def test_a_gate_that_is_killed_goes_on_from_the_journal(tmp_path):
    """In the middle of its looks; nothing is paid for twice, and until the verdict the values stay."""
    calls, begun = Counter(), threading.Event()

    async def run(most):
        async def answer(request):
            if calls["answered"] >= most:
                begun.set()
                await anyio.sleep_forever()
            calls["answered"] += 1
            return Task.answer(None, request)

        task = Task(answer=answer)
        gate = task.gate(32, evaluate=task.aevaluate)
        async with afnio.journal(tmp_path / "calls.journal"), afnio.scope(name="run"):
            await gate.start([task.prompt])
            task.prompt.data = "q=20"
            verdict = await gate.judge()
        return verdict, task.prompt.data

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, 21)
        assert await anyio.to_thread.run_sync(begun.wait, 20)
        tasks.cancel_scope.cancel()
    verdict, value = await run(10**9)
    assert (verdict.passed, value, calls["answered"]) == (False, "q=40", 64)


def test_a_trainer_calls_it():
    """At the start and at the end of `fit`; a checkpoint keeps its state."""

    class Module(cog.Module):
        def __init__(self):
            super().__init__()
            self.task = Task()
            self.prompt = self.task.prompt

        def training_step(self, batch, index):
            return self.task.evaluate(batch)

        def configure_optimizers(self):
            return TGD([self.prompt], ScriptedClient({"value": "q=10"}), model="m")

    module = Module()
    gate = module.task.gate(40)
    critic = ScriptedClient({"feedback": [{"variable": "v1", "text": "lower"}]})
    with afnio.set_backward_model_client(critic, completion_args={"model": "c"}):
        trainer = Trainer(
            max_steps=1, callbacks=[gate], enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, DataLoader([f"row={n}" for n in range(8)], batch_size=8))
    assert (module.prompt.data, gate.verdicts[0].passed) == ("q=40", False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": 0}, "level must be above 0 and below 1 (got 0)"),
        ({"quorum": 2}, "quorum must be above 0 and at most 1 (got 2)"),
        ({"size": 0}, "size must be a whole number, 1 or more (got 0)"),
        ({"budget": 1.5}, "budget must be a whole number"),
        ({"size": 8}, "a gate must have at least 12 rows (got 8)"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, words):
    """On the line that gives them."""
    with pytest.raises(ValueError) as caught:
        Task().gate(**options)
    assert words in str(caught.value)


def test_a_gate_without_a_start_is_told():
    """It would have nothing to go back to."""
    with pytest.raises(RuntimeError, match=r"call gate.start\(parameters\) before the training"):
        Task().gate().judge()
    with pytest.raises(TypeError, match="put it in a list"):
        Task().gate().start(cog.Parameter("a"))
