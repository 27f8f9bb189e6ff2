"""optimize: what it finds, what it refuses, what it costs, and that it goes on where it was."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import kit
import openai
import pytest
from optimize.task import agent_of, answer, check_killed, client, equal, is_right, optimized, rows

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, FinalModelError, MetricError, UnknownPriceError
from afnio.runtime.events import StepEnded
from afnio.testing import Provider, ScriptedClient


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


WHOLE = 308
"""Requests of a run that nothing interrupts."""


class Labels(cog.Module):
    """An agent written for Afnio, called once a batch."""

    def __init__(self, model: ScriptedClient) -> None:
        super().__init__()
        self.model = model
        self.system = cog.Parameter("level 2", role="system prompt")
        self.user = afnio.Variable("{text}", role="input template")
        self.chat = cog.ChatCompletion()

    def forward(self, text: Any) -> Any:
        messages = [{"role": "system", "content": [self.system]}, {"role": "user", "content": [self.user]}]
        return self.chat(self.model, messages, inputs={"text": text}, model="student")


class NumpyScalar:
    """A number as NumPy has it."""

    shape = ()

    def __init__(self, value: Any) -> None:
        self._value = value

    def item(self) -> Any:
        return self._value


# What it finds


def test_a_function_gets_better_prompts_and_a_verdict(folder: Path) -> None:
    """Ten lines: the new prompt, the paired gain with its interval, and an agent that has it."""
    result = optimized()
    assert result.prompts == {"system": "level 10"}
    assert result.start == {"system": "level 2"}
    assert result.gain is not None
    assert result.verdict.startswith("Better: +")
    assert result.gain.low is not None
    assert 0 < result.gain.low < result.gain.difference < 1
    assert str(result.after) == "100.0 % (50 of 50 right; 91.1 to 100.0)"
    assert result.splits == {"train": 50, "held": 50}
    assert afnio.run(result.agent("row 9")) == "yes"
    assert result.calls > 100
    assert result.tokens > 0
    assert result.cost is None


def test_a_module_is_optimized_as_a_copy() -> None:
    """The user's module keeps its prompt; the result's agent is another module with the new one."""
    model = client()
    agent = Labels(model)
    result = optimized(model, agent=agent, prompts=None)
    assert result.prompts == {"system": "level 10"}
    assert agent.system.data == "level 2"
    assert result.agent(["row 9"]).data == ["yes"]


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 17))]
)
def test_nothing_to_gain_keeps_the_old_prompts(seed: int) -> None:
    """With labels that no prompt predicts the verdict says so, and says how often a gain would have been seen."""
    draw = random.Random(seed)
    labels = [(f"row {number}", draw.choice(["yes", "no"])) for number in range(100)]
    budget = afnio.budget(max_calls=600)
    result = optimized(rows=labels, prompts={"system": "level 5"}, seed=seed, budget=budget)
    assert result.verdict.startswith("No gain beyond noise")
    if result.gate is None or not result.gate.passed:
        assert result.prompts == result.start == {"system": "level 5"}
    assert (result.gate is None or result.gate.stopped) == (result.gain is None)
    power = (
        "power     a true gain of 15 points is seen in 56 % of runs with 50 held-out rows; 109 make it 90 %"
    )
    assert (power in str(result)) == (result.gain is not None)


def test_the_evidence_is_in_the_result() -> None:
    """Rows, wins, losses and p: in the object, in the text, and in what is read from the run again."""
    result = optimized()
    gate = result.gate
    assert gate is not None
    assert gate.passed
    assert len(gate.rows) == result.splits["held"] == gate.wins + gate.losses + gate.ties
    assert gate.p < 0.01
    assert f"gate      passed: {gate.wins} of 50 rows better, {gate.losses} worse, p = {gate.p:.2g}" in str(
        result
    )
    again = optimized()
    assert again.gate == gate
    assert isinstance(again.gate.rows, tuple)


def harmful(count: int, calls: int = 430) -> dict[str, Any]:
    """Arguments of a search that finds a text which its own rows like, and the held-out rows don't."""
    train, held = (range(at, at + count) for at in (0, 1000))
    return {
        "rows": [(f"row {number}", "yes") for number in train],
        "testset": [(f"row {number}", "no") for number in held],
        "budget": afnio.budget(max_calls=calls),
    }


def test_evidence_of_harm_on_the_first_rows_stops_a_result() -> None:
    """The others are not scored, the old prompts stay, and there is no interval."""
    model = client()
    result = optimized(model, **harmful(100))
    assert result.gate is not None
    assert (result.gate.passed, result.gate.stopped, len(result.gate.rows)) == (False, True, 40)
    assert result.prompts == {"system": "level 2"}
    said = "No gain beyond noise: the first held-out rows are evidence that the new prompts do harm (0 of 40 rows"
    assert result.verdict.startswith(said)
    assert (result.gain, result.before, result.after) == (None, None, None)
    assert "95 %" not in str(result)
    seen = [str(request.messages[-1]["content"]) for request in model.requests if request.model == "student"]
    assert len({text for text in seen if int(text.split()[1]) >= 1000}) == 40
    assert f"gate      stopped early: 0 of 40 rows better, {result.gate.losses} worse" in str(result)


def test_what_a_stopped_result_leaves_pays_for_a_second_attempt() -> None:
    """It is tested on the rows that no look has used, and each attempt has half of the error."""
    model = client()
    result = optimized(model, **harmful(100, 1000))
    (note,) = [note for note in result.notes if "second attempt" in note]
    assert "stopped a first result (0 of 40 rows better" in note
    assert result.gain is not None
    assert (result.gain.rows, result.gain.confidence) == (60, 0.975)
    assert result.verdict.startswith("Worse: -")
    assert "(97.5 %: " in result.verdict
    assert "on 60 held-out rows" in result.verdict
    assert result.prompts == {"system": "level 2"}
    seen = Counter(
        str(request.messages[-1]["content"]) for request in model.requests if request.model == "student"
    )
    assert {count for text, count in seen.items() if int(text.split()[1]) >= 1000} == {2}
    assert len(model.requests) <= 1000
    assert optimized(**harmful(100, 1000)).gain == result.gain


def test_with_few_rows_one_pass_decides_and_measures() -> None:
    """40 % of fewer than 48 rows would hardly ever be evidence of harm."""
    result = optimized(**harmful(47))
    assert result.gate is not None
    assert (result.gate.passed, result.gate.stopped, len(result.gate.rows)) == (False, False, 47)
    assert result.prompts == {"system": "level 2"}
    assert result.verdict.startswith("Worse: -")


@pytest.mark.parametrize(
    ("metric", "stopped"), [(lambda output, expected: True, "no mistakes"), (lambda *_: False, "no")]
)
def test_nothing_is_gained_where_all_rows_are_right_or_all_wrong(metric: Any, stopped: str) -> None:
    """Right rows ask no critic. Where nothing helps, the races keep the start, and the training ends early."""
    model = client()
    result = optimized(model, metric=metric)
    assert result.verdict.startswith("No gain beyond noise: no other prompts won a race")
    assert result.stopped.startswith(stopped)
    assert result.gate is None
    assert any(request.model == "critic" for request in model.requests) is (stopped == "no")


def test_small_gains_of_several_steps_count_together() -> None:
    """A step that is worth one row in a race of 24 is progress, if the steps before were, too."""

    def creeping(request: Any) -> Any:
        system = str(request.messages[0]["content"])
        if system.startswith("level "):
            return system.removeprefix("level ")
        found = re.search(r"level (\d+)", json.dumps(list(request.messages)))
        assert found is not None
        return {
            "edits": [{"op": "replace", "block": 1, "text": f"level {int(found[1]) + 1}", "samples": [1]}]
        }

    def metric(output: str, expected: str, inputs: str) -> float:
        return int(inputs.split()[1]) % 2 / 2 + int(output) / 200

    result = optimized(ScriptedClient(creeping), metric=metric, budget=afnio.budget(max_calls=700))
    assert result.stopped == "the budget for training is used up"
    assert result.steps > 3


@pytest.mark.parametrize(("by_batch", "raced"), [(False, {8, 24}), (True, {20})])
def test_by_batch_a_race_takes_one_round(by_batch: bool, raced: set[int]) -> None:
    """All candidates run on all of its samples at once. Else those that do badly on the first ones are out."""
    levels = itertools.count(3)

    def proposes(request: Any) -> Any:
        found = answer(request)
        if isinstance(found, dict) and "edits" in found:  # no two chains the same
            found["edits"][0]["text"] = f"level {next(levels)}"
        return found

    with ExitStack() as stack:
        steps = stack.enter_context(kit.events(StepEnded))
        if by_batch:
            stack.enter_context(afnio.batch_api())
        result = optimized(ScriptedClient(proposes), budget=afnio.budget(max_calls=700))
    candidates = [candidate for step in steps if step.optimizer == "EditTGD" for candidate in step.candidates]
    assert result.prompts != result.start
    assert {len(candidate.scores) for candidate in candidates} - {0} == raced


def test_prompts_that_break_the_agent_are_not_kept() -> None:
    """A row that crashes counts as wrong, or what a prompt breaks would count in its favour."""
    model = client()
    plain = agent_of(model)

    async def agent(text: str, system: str) -> str:
        if system != "level 2" and int(text.split()[1]) >= 100:
            raise ValueError("cannot read the reply")
        return await plain(text, system)

    testset = [(f"row {n}", "yes") for n in range(100, 140)]
    result = optimized(model, agent=agent, rows=rows(60), testset=testset)
    assert result.gate is not None
    assert (result.gate.passed, result.gate.wins, result.gate.losses) == (False, 0, 8)
    assert (result.prompts, result.failed) == ({"system": "level 2"}, 40)
    assert str(result.after) == "0.0 % (0 of 40 right; 0.0 to 10.9)"
    assert "crashed   40 rows, which count as wrong" in str(result)


def test_of_two_prompts_the_one_at_fault_changes() -> None:
    """Critics read the trace of a row and say which one is to blame; the other stays."""
    model = ScriptedClient(
        lambda request: (
            {"feedback": [{"variable": "v1", "text": ""}, {"variable": "v2", "text": "Raise the level."}]}
            if "critic of a system" in str(request.messages[0]["content"])
            else answer(request)
        )
    )
    plain = agent_of(model)

    async def agent(text: str, style: str, system: str) -> str:
        return await plain(text, system)

    result = optimized(model, agent=agent, prompts={"style": "Be polite.", "system": "level 2"})
    assert result.prompts == {"style": "Be polite.", "system": "level 10"}


def test_a_frozen_prompt_stays() -> None:
    """It is neither trained nor part of the result."""

    class Frozen(Labels):
        def __init__(self, model: ScriptedClient) -> None:
            super().__init__(model)
            self.kept = cog.Parameter("Be polite.", role="style", requires_grad=False)

    model = client()
    result = optimized(model, agent=Frozen(model), prompts=None)
    assert result.prompts == {"system": "level 10"}
    assert result.agent.kept.data == "Be polite."


@pytest.mark.parametrize(
    ("start", "most"), [("level 2", 1_000), (f"level 2 {'Mind the tone. ' * 80}", 1_208)]
)
def test_prompts_keep_to_their_length(start: str, most: int) -> None:
    """1,000 characters, or the start's length if that is more. The proposer is told; what is longer isn't made."""

    def wordy(request: Any) -> Any:
        reply = answer(request)
        if isinstance(reply, dict) and "edits" in reply:
            reply["edits"][0]["text"] += " Be kind." * 70
        return reply

    model = ScriptedClient(wordy)
    result = optimized(model, prompts={"system": start}, budget=afnio.budget(max_calls=250))
    assert len(result.prompts["system"]) <= most
    asked = [str(request.messages) for request in model.requests if request.model == "critic"]
    assert asked
    assert all(f"Use at most {most} characters." in text for text in asked)


def test_draws_score_each_held_out_row_several_times() -> None:
    """In points, by row: three answers to one row are no three rows. Answers that never differ say no more."""
    model = client()
    result = optimized(model, draws=3, budget=afnio.budget(max_calls=800))
    asked = Counter(
        str(request.messages[-1]["content"]) for request in model.requests if request.model == "student"
    )
    assert all(asked[example.inputs] == 6 for example in result.examples)
    assert len(result.examples) == 50
    assert result.verdict.endswith("on 50 held-out rows, 3 draws each.")
    assert str(result.after).startswith("100.0 % (50 rows, 150 answers; ")
    assert optimized(draws=3, budget=afnio.budget(max_calls=800)).after == result.after


def test_a_result_says_what_a_row_takes_now() -> None:
    """Tokens and calls of the agent's rows alone, by the held-out rows; a judge in the metric doesn't count."""
    model = client()

    async def judged(output: str, expected: str) -> bool:
        await model.achat(
            messages=[{"role": "user", "content": "A long question to a judge. " * 9}], model="judge"
        )
        return output == expected

    def answered(request: Any) -> Any:
        return "fine" if request.model == "judge" else answer(request)

    model = ScriptedClient(answered)
    result = optimized(model, metric=judged, budget=afnio.budget(max_calls=900))
    assert result.takes["calls"] == 1
    assert 1 <= result.takes["tokens"] < 1.2
    assert "takes     tokens ×1." in str(result)
    same = optimized(prompts={"system": "level 10"})
    assert (same.gate, same.takes) == (None, {})


def test_few_rows_are_enough_for_a_claim() -> None:
    """With 40 rows 20 are held out."""
    result = optimized(count=40)
    assert result.splits == {"train": 20, "held": 20}
    assert result.verdict == "Better: +80.0 points (95 %: 50.3 to 95.2) on 20 held-out rows."


def test_an_own_testset_is_held_out_in_place_of_half_of_the_rows() -> None:
    testset = [(f"row {number}", "yes") for number in range(1000, 1040)]
    result = optimized(count=60, testset=testset)
    assert result.splits == {"train": 60, "held": 40}
    assert {example.inputs for example in result.examples} == {text for text, _ in testset}


def test_the_power_of_the_rows_is_told_before_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    """For right and wrong answers; that of graded scores depends on how they spread."""
    optimized()
    optimized(metric=lambda output, expected: 0.8 if output == expected else 0.3, perfect=0.8, name="graded")
    told = [line for line in capsys.readouterr().err.splitlines() if "held-out" in line]
    assert told == [
        "afnio: 50 rows train; a true gain of 15 points is seen in 56 % of runs with 50 held-out rows; 109 make it 90 %"
    ]


@pytest.mark.parametrize(
    ("count", "calls", "said"),
    [
        (
            40,
            500,
            "with 20 training rows, races compare texts on 10 rows, where luck decides more than prompts do",
        ),
        (200, 100, "calls to train, races compare texts on 6 rows, where luck decides more than prompts do"),
    ],
)
def test_a_training_whose_races_are_small_is_warned_of(
    count: int, calls: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it starts, and in the result."""
    result = optimized(count=count, budget=afnio.budget(max_calls=calls))
    (note,) = [note for note in result.notes if "races" in note]
    assert said in note
    assert f"afnio: {note}" in capsys.readouterr().err
    assert not [note for note in optimized(name="large").notes if "races" in note]


def test_held_out_rows_take_half_of_the_budget_at_most() -> None:
    """Which ones are left out is drawn, not the last ones of a testset; a note has the number."""
    testset = [(f"row {number}", "yes") for number in range(1000, 1200)]
    result = optimized(count=60, testset=testset, budget=afnio.budget(max_calls=208))
    numbers = [int(example.inputs.split()[1]) for example in result.examples]
    assert max(numbers) > 1100
    assert len(numbers) == 50
    assert result.notes[0] == "50 of 200 held-out rows are used, as half of the budget pays for no more"
    assert result.calls <= 208


def test_each_row_has_one_job() -> None:
    """Test rows are seen at the end only, and exact copies of a row are no evidence of their own."""
    model = client()
    result = optimized(model, rows=rows(100) + rows(100))
    seen = [str(request.messages[-1]["content"]) for request in model.requests if request.model == "student"]
    tested = {example.inputs for example in result.examples}
    last = max(number for number, text in enumerate(seen) if text not in tested)
    assert not {*seen[: last + 1]} & tested
    assert sum(result.splits.values()) == 100
    assert "100 of 200 rows repeat another one's inputs" in result.notes[0]


def test_inputs_are_the_unit_of_evidence() -> None:
    """Rows with equal inputs and other labels stay in one part, and count once in sizes, gate and interval."""
    data = [(text, label) for text, _ in rows(100) for label in ("yes", "yes, please")]
    result = optimized(rows=data, budget=afnio.budget(max_calls=900))
    numbers = [example.inputs for example in result.examples]
    assert all(numbers.count(text) == 2 for text in numbers)
    assert result.after is not None
    assert result.after.rows == 50
    assert result.gate is not None
    assert result.gate.wins + result.gate.losses + result.gate.ties == 50
    assert result.on == "50 held-out inputs"


def test_a_testset_that_repeats_rows_takes_them_out_of_the_training() -> None:
    """A prompt that memorised test rows would get a gain for that."""
    model = client()
    result = optimized(model, testset=rows(40))
    assert result.splits == {"train": 60, "held": 40}
    assert "rows 0, 1, 2, 3, 4 and others have inputs of testset" in result.notes[0]
    assert result.notes[0] in str(result)


def test_labels_are_spread_evenly() -> None:
    """Each split has its share of a rare label."""
    data = [(f"row {number}", "rare" if number % 10 == 0 else "yes") for number in range(200)]
    result = optimized(rows=data)
    assert sum(example.expected == "rare" for example in result.examples) == 10


@pytest.mark.parametrize(
    "make",
    [
        lambda text, expected: (text, expected),
        lambda text, expected: [text, expected],
        lambda text, expected: {"inputs": text, "expected": expected},
        lambda text, expected: {"inputs": {"text": text}, "expectations": expected},
        lambda text, expected: {"text": text, "expected": expected},
        lambda text, expected: (afnio.Variable(text), afnio.Variable(expected)),
    ],
)
def test_forms_of_rows(make: Callable[[str, str], Any]) -> None:
    """Pairs, MLflow's rows, and dicts with the key expected."""
    result = optimized(rows=[make(*row) for row in rows(100)])
    assert result.prompts == {"system": "level 10"}


def test_inputs_and_outputs_of_any_kind() -> None:
    """Inputs may be data that no Variable holds, and outputs too; the metric gets them as they are."""
    got: list[Any] = []

    def agent(*, row: dict[str, Any], limit: int, system: str) -> dict[str, Any]:
        return {"answer": is_right(row["text"], system), "limit": limit}

    def metric(output: Any, expected: Any, inputs: Any) -> bool:
        got.append((output, inputs))
        return bool(output["answer"]) == expected

    data = [{"row": {"text": f"row {number}"}, "limit": 3, "expected": True} for number in range(96)]
    model = client()
    result = optimized(model, agent=agent, rows=data, metric=metric, makes_calls=False)
    assert result.verdict.startswith("Better")
    assert got[0][0]["limit"] == 3
    assert set(got[0][1]) == {"row", "limit"}


def test_prompts_may_stand_before_the_inputs() -> None:
    """Inputs fill the parameters that are no prompts, also when the result's agent is called."""

    def agent(system: str, text: str) -> str:
        return "yes" if is_right(text, system) else "no"

    result = optimized(agent=agent, makes_calls=False)
    assert result.prompts == {"system": "level 10"}
    assert result.agent("row 9") == "yes"
    assert result.agent(text="row 9") == "yes"


# The metric


@pytest.mark.parametrize(
    "metric",
    [
        lambda output, expected: float(output == expected),
        lambda output, expected: NumpyScalar(output == expected),
        lambda output, expected: NumpyScalar(float(output == expected)),
        lambda output, expected: (output == expected, "Raise the level, please."),
        lambda output, expected, inputs, trace: output == expected and trace[0].reply is not None,
    ],
)
def test_kinds_of_scores(metric: Callable[..., Any]) -> None:
    """Bools, numbers, NumPy's, and a score with feedback."""
    assert optimized(metric=metric).prompts == {"system": "level 10"}


def test_the_metrics_feedback_reaches_the_critic() -> None:
    """What the metric says about a row is what the critic reads."""
    model = client()

    async def metric(output: str, expected: str) -> tuple[bool, str]:
        return output == expected, "far too shy"

    optimized(model, metric=metric)
    asked = [str(request.messages) for request in model.requests if request.model == "critic"]
    assert any("far too shy" in text for text in asked)


def test_graded_scores_have_a_mean_with_its_interval() -> None:
    """`perfect` makes a row right, and the figures are means."""
    result = optimized(metric=lambda output, expected: 5.0 if output == expected else 2.5, perfect=5.0)
    assert result.after is not None
    assert result.after.mean == 5.0
    assert result.gain is not None
    assert result.gain.graded
    assert 0 < result.gain.difference <= 2.5
    assert "points" not in result.verdict


@pytest.mark.parametrize(
    ("score", "said"), [("good", "'good'"), (math.nan, "nan"), (None, "None"), ([1], "[1]")]
)
def test_a_score_that_is_no_number_is_refused_with_its_row(score: Any, said: str) -> None:
    """It is a TypeError before the critic is paid, and names the row."""
    model = client()
    with pytest.raises(TypeError, match=r"for row \d+") as caught:
        optimized(model, metric=lambda output, expected: score)
    assert isinstance(caught.value, MetricError)
    assert said in str(caught.value)
    assert not [request for request in model.requests if request.model == "critic"]


@pytest.mark.parametrize(
    ("score", "said"),
    [(-1e308, "-1e\\+308"), (10**400, "1000"), (10, "at most perfect=1 .got 10 for row .*pass perfect=")],
)
def test_a_score_out_of_range_is_refused_with_its_row(score: Any, said: str) -> None:
    """Sums of squares would overflow; and what is above perfect must be given."""
    with pytest.raises(MetricError, match=rf"{said}.*row \d+|row \d+.*{said}|{said}"):
        optimized(metric=lambda output, expected: score)


def test_a_metric_that_exits_is_refused_with_its_row() -> None:
    """It must not look like a row that crashed."""
    with pytest.raises(MetricError, match=r"got sys.exit\(\) for row \d+"):
        optimized(metric=lambda output, expected: sys.exit(3))


def test_a_numpy_array_of_one_number_is_a_score() -> None:
    """As models and libraries return them."""
    np = pytest.importorskip("numpy")
    assert optimized(metric=lambda output, expected: np.array([output == expected])).prompts == {
        "system": "level 10"
    }


@pytest.mark.parametrize("make", [str, lambda text: (text,), lambda text: {"text": text}])
def test_a_metric_without_labels_takes_bare_inputs(make: Callable[[str], Any]) -> None:
    """A second parameter named inputs gets the inputs, not what was expected."""
    got: list[Any] = []

    def metric(output: str, inputs: Any) -> bool:
        got.append(inputs)
        return output == "yes"

    result = optimized(rows=[make(text) for text, _ in rows(100)], metric=metric)
    assert result.prompts == {"system": "level 10"}
    assert got[0] in ([text for text, _ in rows(100)] + [{"text": text} for text, _ in rows(100)])


# What it refuses


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": rows(7)}, "at least 8 rows"),
        ({"rows": iter(rows(100))}, "must be a sequence"),
        ({"rows": [{"text": "a", "label": "b"}] * 100}, "which column is expected"),
        ({"rows": ["just text"] * 100}, "row 0"),
        ({"rows": [("a", "b", "c")] * 100}, "row 0"),
        ({"rows": [*rows(99), ({"text": "a"}, "b")]}, "row 99"),
        ({"prompts": None}, "needs prompts="),
        ({"prompts": {"systm": "level 2"}}, "systm"),
        ({"prompts": {"system": 1}}, "texts by name"),
        ({"agent": "gpt"}, "must be a function"),
        ({"critic": "gpt-5"}, "provider/model"),
        ({"critic": ("openai", "gpt-5")}, r"\(client, model\)"),
        ({"budget": None}, "must be dollars"),
        ({"budget": 0}, "must be dollars"),
        ({"metric": lambda: True}, r"\(output, expected\)"),
        ({"metric": lambda output, expected, label: True}, r"\(output, expected\)"),
        ({"patience": 0}, "patience"),
        ({"perfect": "1"}, "perfect"),
        ({"seed": 1.5}, "seed"),
        (
            {"budget": afnio.budget(max_calls=40)},
            r"at least 45 calls \(got 40\): 8 to begin, 24 for 12 held-out rows, and 13 for one step; give more",
        ),
        ({"rows": rows(30), "testset": rows(41)[30:]}, r"testset must have at least 12 rows \(got 11\)"),
        ({"draws": 0}, r"draws must be a whole number, 1 or more \(got 0\)"),
        ({"limits": 4}, r"limits must be an afnio.Limits .got 4"),
        ({"makes_calls": None}, "makes_calls must be True or False"),
        ({"rows": [({"other": "a"}, "b")] * 100}, "must fit agent"),
        ({"testset": rows(5)}, "testset must have at least 12 rows"),
        ({"rows": rows(2) * 50}, r"8 rows with different inputs.*got 2"),
        ({"rows": [*rows(99), ("a \ud800", "b")]}, r"row 99 must have text that UTF-8 can express"),
        ({"prompts": {"system": "level \udc00"}}, r"prompt 'system' must have text that UTF-8"),
    ],
)
def test_arguments_that_cannot_work(changes: dict[str, Any], said: str) -> None:
    """They are refused at the caller's line, and nothing is called."""
    model = client()
    with pytest.raises((TypeError, ValueError), match=said):
        optimized(model, **changes)
    assert model.requests == []


def test_a_module_that_needs_its_client_as_an_argument() -> None:
    """The error says to keep it in the module, or to pass a function."""

    class Agent(Labels):
        def forward(self, client: Any, text: Any) -> Any:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"self\.client"):
        optimized(agent=Agent(client()), prompts=None)


def test_rows_of_a_frame() -> None:
    """A data frame is told how to become rows."""

    class Frame:
        columns = ("a", "b")

        def to_dict(self, kind: str) -> Any:
            raise NotImplementedError

    with pytest.raises(TypeError, match=r'\.to_dict\("records"\)'):
        optimized(rows=Frame())


# Failures


def test_rows_that_crash_count_as_wrong_with_both_prompts() -> None:
    """A few may crash. They stay in all figures, before and after."""
    model = client()
    plain = agent_of(model)

    async def agent(text: str, system: str) -> str:
        if int(text.split()[1]) % 25 == 3:
            raise ValueError("no such row")
        return await plain(text, system)

    result = optimized(model, agent=agent, rows=rows(200), budget=afnio.budget(max_calls=600))
    crashed = [example for example in result.examples if None in example.scores]
    assert all(example.scores == (None, None) for example in crashed)
    assert result.failed == len(crashed) > 0
    assert result.after is not None
    assert (result.after.rows, result.after.mean) == (100, 1 - len(crashed) / 100)
    assert f"crashed   {result.failed} rows, which count as wrong" in str(result)


def test_a_graded_row_that_crashes_has_the_lowest_score() -> None:
    """0 would be a good score where all are negative."""
    model = client()
    plain = agent_of(model)

    async def agent(text: str, system: str) -> str:
        if int(text.split()[1]) % 25 == 3:
            raise ValueError("no such row")
        return await plain(text, system)

    def metric(output: str, expected: str) -> float:
        return 0.0 if output == expected else -2.0

    result = optimized(
        model, agent=agent, rows=rows(200), metric=metric, perfect=0.0, budget=afnio.budget(max_calls=600)
    )
    assert result.after is not None
    assert result.failed > 0
    assert result.after.mean == pytest.approx(-2.0 * result.failed / 100)


def test_an_outage_at_the_held_out_rows_is_no_verdict_on_prompts() -> None:
    """The call stops; the same call goes on when the provider is back."""
    model = client()
    plain = agent_of(model)
    testset = [(f"row {number}", "yes") for number in range(1000, 1040)]
    is_away = True

    async def agent(text: str, system: str) -> str:
        if is_away and system != "level 2" and int(text.split()[1]) >= 1000:
            raise FinalModelError("refused", status=400)
        return await plain(text, system)

    with pytest.raises(BatchError, match="40 of 40 rows crashed.*refused"):
        optimized(model, agent=agent, count=60, testset=testset, name="outage")
    is_away = False
    assert optimized(model, agent=agent, count=60, testset=testset, name="outage").verdict.startswith(
        "Better"
    )


def test_more_than_a_tenth_stops_at_the_first_batch() -> None:
    """The first error is shown, and no critic was paid."""
    model = client()

    async def agent(text: str, system: str) -> str:
        raise ValueError("the tool is broken")

    with pytest.raises(BatchError, match=r"8 of 8 rows crashed.*ValueError: the tool is broken"):
        optimized(model, agent=agent)
    assert model.requests == []


def test_an_unpriced_model_with_dollars_is_refused_before_the_first_call() -> None:
    """The error says what else to give."""
    model = client()
    with pytest.raises(UnknownPriceError, match="max_calls"):
        optimized(model, budget=5.00)
    assert model.requests == []


@pytest.mark.parametrize("study", [afnio.optimize, afnio.headroom])
def test_an_agent_whose_calls_are_not_seen_stops_before_a_critic_is_paid(study: Callable[..., Any]) -> None:
    """Budget and limits wouldn't hold for it. Who says that it makes none gets a result."""
    model = client()

    def agent(text: str, system: str) -> str:
        return "yes" if is_right(text, system) else "no"

    given: dict[str, Any] = {
        "prompts": {"system": "level 2"}, "critic": (model, "critic"), "budget": afnio.budget(max_calls=400)
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"got none on \d+ rows.*bridge\.url\(\).*bridge\.register.*makes_calls"
    ):
        study(agent, rows(100), equal, **given)
    assert model.requests == []
    assert study(agent, rows(100), equal, **given, makes_calls=False).verdict


def test_a_metrics_judge_does_not_stand_for_an_agent_whose_calls_are_not_seen() -> None:
    model, judge = client(), ScriptedClient("yes")

    def agent(text: str, system: str) -> str:
        return "yes"

    async def metric(output: str, expected: str) -> bool:
        reply = await judge.achat(messages=[{"role": "user", "content": output}], model="judge")
        return reply.content == expected

    with pytest.raises(ValueError, match="got none on 8 rows"):
        optimized(model, agent=agent, metric=metric)
    assert (len(model.requests), len(judge.requests)) == (0, 8)


TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def with_tools(model: ScriptedClient) -> Callable[..., Any]:
    """An agent of three calls a row, two of them after replies that call a tool."""

    async def agent(text: str, system: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        content = ""
        for turn in range(3):
            reply = (await model.achat(messages=messages, model="student", tools=TOOLS, seed=turn)).content
            if reply not in ("yes", "no"):  # a made-up one, which calls no tool
                return "no"
            content = reply
        return content

    return agent


def test_an_agent_with_tools_has_its_first_row_counted_for_real() -> None:
    """Made-up replies call no tools, so they show one call of three; a budget too small stops after that row."""
    model = client()
    with pytest.raises(ValueError, match=r"budget must pay for at least \d+ calls \(got 120\)"):
        optimized(model, agent=with_tools(model), rows=rows(40), budget=afnio.budget(max_calls=120))
    assert len(model.requests) == 3
    result = optimized(model, agent=with_tools(model), rows=rows(40), budget=afnio.budget(max_calls=500))
    (note,) = [text for name, text in result.figures() if name == "note" and "tools" in text]
    assert note == (
        "the agent offers tools, which made-up replies can't call, so its first row was run and paid for to count its "
        "calls: 3"
    )


@pytest.mark.parametrize("by_block", [True, False])
def test_limits_hold_for_the_agents_own_sdk(by_block: bool) -> None:
    """Those of the argument and those of a block around the call."""
    limits = afnio.Limits(max_in_flight=3)
    with Provider.process(latency=0.02) as provider:
        sdk = openai.AsyncOpenAI(base_url=provider.base_url, api_key="any")

        async def agent(text: str, system: str) -> str:
            messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
            return str(
                (await sdk.chat.completions.create(model="m", messages=messages)).choices[0].message.content
            )

        def metric(output: str, expected: str) -> bool:
            return len(output) % 2 == 0

        with afnio.bridge.installed(limits=limits if by_block else None):
            optimized(
                agent=agent, rows=rows(40), metric=metric, budget=afnio.budget(max_calls=150), patience=1,
                limits=None if by_block else limits,
            )  # fmt: skip
        assert provider.stats()["peak_in_flight"] == 3


# Budgets


def test_a_budget_ends_in_a_result_with_its_test() -> None:
    """The looks were reserved, so the training ends early and the test is still done."""
    model = client()
    result = optimized(model, rows=rows(200), budget=afnio.budget(max_calls=300), patience=50)
    assert len(model.requests) <= 300
    assert result.stopped == "the budget for training is used up"
    assert result.gain is not None
    assert result.verdict.startswith("Better")


def test_dollars(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget in dollars holds, and a result has its cost."""
    prices = folder / "prices.toml"
    prices.write_text('version = 1\n[[price]]\nmodel = "*"\ninput = 1000.0\noutput = 1000.0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    result = optimized(budget=20.0)
    assert result.cost is not None
    assert 0 < result.cost <= 20.0
    assert "$" in str(result)
    with pytest.raises(ValueError, match=r"budget must be at least \$.* 12 held-out rows and one step"):
        optimized(budget=0.5, seed=1)


def test_a_budget_that_a_look_exceeds_ends_in_a_result_too(folder: Path) -> None:
    """Rows that cost far more than the first ones did: nothing is measured, so nothing is changed."""
    model = client()
    plain = agent_of(model)

    async def agent(text: str, system: str) -> str:
        for number in range(6 if int(text.split()[1]) >= 1000 else 0):
            await plain(f"{text} {number}", system)
        return await plain(text, system)

    testset = [(f"row {number}", "yes") for number in range(1000, 1040)]
    budget = afnio.budget(max_calls=450)
    result = optimized(model, agent=agent, testset=testset, budget=budget, patience=50)
    assert result.verdict.startswith("Not measured")
    assert result.prompts == {"system": "level 2"}
    assert "budget ended" in result.stopped
    assert result.before is None
    assert len(model.requests) <= 450
    assert "Not measured" in result.report(folder / "result.html").read_text()


@pytest.mark.nightly
def test_seconds() -> None:
    """A budget of time ends the training, and leaves time for the test."""
    model = client(latency=0.1)
    budget = afnio.budget(max_seconds=20.0)
    result = optimized(model, rows=rows(200), budget=budget, patience=500, prompts={"system": "level 0"})
    assert result.gain is not None
    assert result.verdict.startswith("Better")


# Going on


def test_a_finished_call_is_answered_from_its_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The same call again sends nothing, also in another process; another seed starts anew."""
    first = optimized()
    model = client()
    again = optimized(model)
    assert model.requests == []
    assert (again.verdict, again.prompts, again.run) == (first.verdict, first.prompts, first.run)
    assert first.earlier == ""
    assert again.earlier
    assert str(again) == f"{first}".replace(
        f"run       {first.run}",
        f"run       {first.run}\nearlier   read from this run, which ended {again.earlier}",
    )
    assert "returns the result of" in capsys.readouterr().err
    assert afnio.run(again.agent("row 9")) == "yes"
    optimized(model, seed=1)
    assert model.requests


def test_a_changed_function_is_not_answered_from_the_run() -> None:
    """A result of other code would be wrong."""
    optimized()
    model = client()
    plain = agent_of(model)

    async def agent(text: str, system: str) -> str:
        return (await plain(text, system)).strip()

    optimized(model, agent=agent, name="agent")
    assert model.requests


def test_an_interrupted_call_continues_and_pays_nothing_twice() -> None:
    """A run that errors ended is continued by the same call, from its journal, as often as it takes."""

    def equal_until(at: int) -> Callable[..., Any]:
        stops = itertools.chain([False] * at, itertools.repeat(True))  # an object that shows no value

        def equal(output: str, expected: str) -> Any:
            return "a mistake" if next(stops) else output == expected

        return equal

    whole = client()
    expected = optimized(whole, name="whole")
    sent = 0
    for at in (60, 130):
        model = client()
        with pytest.raises(MetricError):
            optimized(model, metric=equal_until(at), budget=afnio.budget(max_calls=300))
        sent += len(model.requests)
    model = client()
    result = optimized(model, metric=equal_until(10**5), budget=afnio.budget(max_calls=300))
    assert result.prompts == expected.prompts
    assert result.verdict == expected.verdict
    # Calls that were in flight at an error had no reply.
    assert sent + len(model.requests) <= len(whole.requests) + 16
    assert sent > 60


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(3, marks=pytest.mark.nightly, id="first look"),
        pytest.param(20, marks=pytest.mark.nightly, id="chain"),
        pytest.param(60, marks=pytest.mark.nightly, id="race"),
        pytest.param(120, marks=pytest.mark.nightly, id="second step"),
        pytest.param(230, id="first held-out rows"),
        pytest.param(280, marks=pytest.mark.nightly, id="other held-out rows"),
    ],
)
async def test_killed_anywhere_it_goes_on_with_the_same_calls(cut: int) -> None:
    """In a chain, in a race, on held-out rows: all runs together get as many replies as one that nothing stops."""
    expected, result = await check_killed(cut, optimized)
    assert (result.prompts, result.verdict, result.gate) == (
        expected.prompts,
        expected.verdict,
        expected.gate,
    )


# Entrances


async def test_on_asyncio_it_is_awaited() -> None:
    """Without an await, reading says what to do."""
    pending = optimized()
    with pytest.raises(AttributeError, match="await afnio.optimize"):
        _ = pending.verdict
    assert (await pending).verdict.startswith("Better")


def test_on_trio_it_is_awaited(folder: Path) -> None:
    """The same on trio."""

    async def main() -> afnio.Result:
        return await optimized()

    assert anyio.run(main, backend="trio").verdict.startswith("Better")


def test_in_a_thread() -> None:
    """A thread without a loop blocks."""
    found: list[afnio.Result] = []
    thread = threading.Thread(target=lambda: found.append(optimized()))
    thread.start()
    thread.join()
    assert found[0].verdict.startswith("Better")


async def test_cancelled_it_can_go_on() -> None:
    """An app that cancels it leaves a run that the same call continues."""
    started = asyncio.Event()
    loop = asyncio.get_running_loop()
    calls = itertools.count()

    def slow(request: Any) -> Any:
        if next(calls) == 120:
            loop.call_soon_threadsafe(started.set)
        return answer(request)

    task = asyncio.ensure_future(_awaited(ScriptedClient(slow, latency=0.001)))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    model = client()
    assert (await _awaited(model)).verdict.startswith("Better")
    assert 0 < len(model.requests) < WHOLE


async def _awaited(model: ScriptedClient, **changes: Any) -> afnio.Result:
    # A budget counts what it was used for before, so each run has its own.
    budget = changes.pop("budget", None)
    limits = {} if budget is None else {"budget": afnio.budget(max_calls=budget.caps.calls)}
    return await optimized(model, **changes, **limits)


# The result


def test_save_report_and_text(folder: Path) -> None:
    """Texts as files, the page with the gain and the rows, a text that a person can read."""
    result = optimized()
    assert (result.save("prompts") / "system.txt").read_text() == "level 10"
    assert (folder / "prompts" / "system.txt").stat().st_mode & 0o077 == 0
    assert afnio.load_prompts("prompts") == {"system": "level 10"}
    page = result.report("result.html").read_text()
    assert result.verdict.replace("+", "&#43;") in page or result.verdict in page
    assert "</strong> better" in page
    assert "row" in page
    assert "<ins>" in page
    assert (folder / "result.html").stat().st_mode & 0o077 == 0
    text = str(result)
    for part in ("before ", "after ", "gain ", "spent ", "level 10"):
        assert part in text
    assert "Better" in repr(result)


def test_a_cell_of_a_notebook_shows_it_escaped() -> None:
    """Prompts are strangers' text."""
    hostile = "level 2 <script>alert(1)</script>"
    html = optimized(prompts={"system": hostile})._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_rows_won_and_lost_are_on_the_page() -> None:
    """Of each kind a reader sees the input, what is expected, and both outputs."""
    result = optimized()
    assert {example.outputs for example in result.examples} <= {("no", "yes"), ("yes", "yes")}
    assert result.gain is not None
    assert sum(example.outputs == ("no", "yes") for example in result.examples) == result.gain.won


def test_the_run_records_what_the_held_out_rows_decided() -> None:
    """Two phases, and candidates under the numbers that they have in the search: 0 is the start."""
    result = optimized()
    namespace, project, name = result.run.split("/")
    with afnio.tellurio.StoreReader(f".afnio/{namespace}/{project}.db") as reader:
        (run,) = [run for run in reader.runs() if run.name == name]
        last = reader.step_count(run.id)
        start, kept = reader.race(run.id, last)
        found = [one for one in reader.candidates(run.id, 1_000) if one.accepted and one.step < last]
        assert (start.number, start.texts) == (0, ("level 2",))
        assert (kept.number, kept.parents) == (found[-1].number, found[-1].parents)
        assert (kept.texts, kept.accepted, len(kept.scores)) == (("level 10",), True, 50)
        choice = reader.last_choice(run.id)
        assert choice is not None
        assert (choice.before, choice.after) == (start, kept)
        phases = Counter(phase.partition("/batch")[0] for phase, _, _ in reader.scores(run.id))
        assert (phases["held/start"], phases["held/result"], phases[""]) == (50, 50, 0)


def test_its_run_is_in_the_store(folder: Path) -> None:
    """`afnio runs list` has it, named after the function."""
    result = optimized(name="mails")
    listed = subprocess.run(
        [sys.executable, "-m", "afnio.cli", "runs", "list", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    runs: list[Mapping[str, Any]] = json.loads(listed.stdout)
    assert result.run.startswith("optimize/mails/")
    assert runs[0]["name"] == result.run.rpartition("/")[2]
