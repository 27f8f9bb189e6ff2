"""cross_fit: two trainings, and each row held out once."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optimize.task import agent_of, check_killed, client, equal, level, optimized, rows

import afnio
from afnio.testing import ScriptedClient


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def crossed(model: ScriptedClient | None = None, count: int = 50, **changes: Any) -> afnio.Result:
    return optimized(model, count, **{"cross_fit": True} | changes)


def echoes(text: str, system: str) -> str:
    return f"{system} | {text}"


def numbered(best: int = 10) -> ScriptedClient:
    """A critic that writes another text each time, with this level."""
    numbers = itertools.count(1)
    return ScriptedClient(
        lambda request: {
            "edits": [
                {"op": "replace", "block": 1, "text": f"level {best} text {next(numbers)}", "samples": [1]}
            ]
        }
    )


def right(output: str, expected: str) -> bool:
    prompt, text = output.split(" | ")
    return int(text.split()[1]) % 10 < level(prompt)


def test_each_row_is_held_out_once_and_two_trainings_are_claimed() -> None:
    result = crossed()
    assert result.verdict == (
        "Better: two trainings gained +80.0 points on average (95 %: 64.3 to 89.6) on 50 rows, each held out once."
    )
    assert (result.prompts, result.splits) == ({"system": "level 10"}, {"train": 50, "held": 50})
    assert result.before is not None
    assert result.before.rows == 50
    assert result.calls <= 400
    assert result.card.verdict == result.verdict
    assert "cross-fitted: each of two trainings took one half" in str(result)


def test_a_row_is_scored_with_prompts_that_were_trained_without_it() -> None:
    result = crossed(numbered(), agent=echoes, metric=right, makes_calls=False)
    free = {text for text, _ in result.test_rows}
    scored: dict[bool, set[str]] = {True: set(), False: set()}
    for example in result.examples:
        scored[example.inputs in free].add(example.outputs[-1].split(" | ")[0])
    assert len(free) == 25
    assert scored[True] == {result.prompts["system"]}
    (other,) = scored[False]
    assert other not in (result.prompts["system"], result.start["system"])
    assert len(result.trained) == 25


def halves() -> list[set[str]]:
    """The inputs of the half that the seed's prompts aren't trained on, and those of the other."""
    free = {text for text, _ in crossed(name="halves").test_rows}
    return [free, {text for text, _ in rows(50)} - free]


def test_evidence_of_harm_on_the_rows_of_the_picked_prompts_stops() -> None:
    """Each training learns its own half by heart, and loses what was right on the other one."""
    parts = halves()

    def propose(request: Any) -> Any:
        read = set(re.findall(r"row \d+", str(request.messages[-1]["content"])))
        number = next(number for number, part in enumerate(parts) if read & part)
        return {"edits": [{"op": "replace", "block": 1, "text": f"half {number}", "samples": [1]}]}

    def learned(output: str, expected: str) -> bool:
        prompt, text = output.split(" | ")
        return text in parts[int(prompt[-1])] if "half" in prompt else int(text.split()[1]) % 2 == 0

    result = crossed(ScriptedClient(propose), agent=echoes, metric=learned, makes_calls=False)
    assert result.gate is not None
    assert (result.gate.stopped, result.gate.wins, len(result.gate.rows)) == (True, 0, 25)
    assert (result.candidate, result.prompts) == ({"system": "half 1"}, {"system": "level 2"})
    assert (result.gain, result.before) == (None, None)
    assert "evidence that the new prompts do harm" in result.verdict


def test_a_training_that_finds_nothing_counts_as_no_gain() -> None:
    """The other one's prompts are tested, and the rows that have only the start prompts run once."""
    mine, _ = halves()  # the rows of the training that isn't picked, which are all right now
    runs: list[str] = []

    def agent(text: str, system: str) -> str:
        runs.append(text)
        return f"level 10 | {text}" if text in mine else f"{system} | {text}"

    result = crossed(numbered(), agent=agent, metric=right, makes_calls=False, seed=0)
    assert {text for text, _ in result.test_rows} == mine
    assert result.verdict.startswith(
        "No gain beyond noise: two trainings gained +0.0 points on average (95 %"
    )
    assert (result.prompts["system"], result.candidate["system"][:8]) == ("level 2", "level 10")
    assert sorted(runs[-25:]) == sorted({text for text, _ in rows(50)} - mine)


def test_it_is_another_call_than_the_one_without_it() -> None:
    model = client()
    plain = optimized(model, 50)
    with_it = crossed(model)
    assert with_it.run != plain.run
    requests = len(model.requests)
    again = crossed(model)
    assert (again.earlier != "", again.verdict, again.test_rows) == (True, with_it.verdict, with_it.test_rows)
    assert len(model.requests) == requests


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(40, marks=pytest.mark.nightly, id="first training"),
        pytest.param(190, id="second training"),
        pytest.param(300, marks=pytest.mark.nightly, id="held-out rows"),
    ],
)
async def test_killed_anywhere_it_goes_on_with_the_same_calls(cut: int) -> None:
    expected, result = await check_killed(cut, crossed)
    assert (result.prompts, result.verdict, result.steps) == (
        expected.prompts,
        expected.verdict,
        expected.steps,
    )


@pytest.mark.parametrize(
    ("count", "changes", "said"),
    [
        (50, {"cross_fit": 1}, "cross_fit must be True or False (got 1)"),
        (
            50,
            {"testset": rows(70)[50:]},
            "cross_fit must be False with a testset (got True); leave testset out",
        ),
        (19, {}, "cross_fit must have at least 20 rows with different inputs (got 19); leave it out"),
        (50, {"budget": afnio.budget(max_calls=40)}, "one step of each training; give more"),
    ],
)
def test_arguments_that_cannot_work(count: int, changes: dict[str, Any], said: str) -> None:
    model = client()
    with pytest.raises((TypeError, ValueError), match=re.escape(said)):
        crossed(model, count, **changes)
    assert model.requests == []


def test_a_budget_is_divided_between_the_trainings() -> None:
    """Half of the budget pays for fewer rows than there are, of both halves; the rest trains twice."""
    result = crossed(count=95, budget=afnio.budget(max_calls=200))
    assert result.calls <= 200
    assert result.before is not None
    assert 40 <= result.before.rows < 95
    assert any("held-out rows are used" in note for note in result.notes)


def test_the_check_counts_all_rows_as_held_out() -> None:
    model = client()
    found = afnio.check(
        agent_of(model),
        rows(50),
        equal,
        prompts={"system": "level 2"},
        critic=(model, "critic"),
        budget=afnio.budget(max_calls=400),
        cross_fit=True,
    )
    assert (found.ok, found.splits) == (True, {"train": 50, "held": 50})
    assert any("cross-fitted" in note for note in found.notes)
    assert found.gains[0] == 0.18


AGENT = """
import openai

PROMPTS = {"system": "Say yes or no."}
client = openai.AsyncOpenAI(api_key="any", base_url="http://127.0.0.1:1/v1")

async def odd(number, system):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": number}]
    return (await client.chat.completions.create(model="m", messages=messages)).choices[0].message.content
"""


def test_from_a_shell(folder: Path) -> None:
    (folder / "agent.py").write_text(AGENT)
    lines = ["number,expected", *(f"{number},{['no', 'yes'][number % 2]}" for number in range(50))]
    (folder / "rows.csv").write_text("\n".join(lines))
    command = [
        "optimize",
        "agent.py:odd",
        "rows.csv",
        "--metric",
        "exact",
        "--prompts",
        "agent.py:PROMPTS",
        "--critic",
        "openai/gpt-5",
        "--max-calls",
        "400",
        "--cross-fit",
        "--check",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "afnio.cli", *command],
        capture_output=True, text=True, check=False, env={**os.environ, "OPENAI_API_KEY": "any"},
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], said["splits"]) == (0, True, {"train": 50, "held": 50})
    assert any("cross-fitted" in note for note in said["notes"])
