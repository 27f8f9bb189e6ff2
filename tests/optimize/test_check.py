"""check: what an optimization would do and need, without a paid call; and `afnio optimize --check`, its exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optimize.task import agent_of, client, equal, rows

import afnio
from afnio.cli import main
from afnio.stats import power
from afnio.testing import Provider, ScriptedClient


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of these tests don't belong into the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(model: ScriptedClient | None = None, **changes: Any) -> afnio.Check:
    model = client() if model is None else model
    given: dict[str, Any] = {
        "agent": agent_of(model),
        "rows": rows(100),
        "metric": equal,
        "prompts": {"system": "level 2"},
        "critic": (model, "critic"),
        "budget": afnio.budget(max_calls=400),
    }
    found = afnio.check(**given | changes)
    assert model.requests == []  # it is free
    return found


def test_what_can_start_says_rows_calls_and_the_smallest_gain() -> None:
    found = checked()
    assert (found.ok, found.splits, found.calls_per_row) == (True, {"train": 50, "held": 50}, 1)
    assert (found.labels_right, found.labels_tried) == (100, 100)
    least, most = found.calls
    assert 100 < least < 200
    assert most == 400
    half, four_fifths = found.gains
    assert half is not None
    assert four_fifths is not None
    assert power(50, half, losing=0.1) >= 0.5 > power(50, half - 0.01, losing=0.1)
    assert power(50, four_fifths, losing=0.1) >= 0.8
    assert found.dollars is None
    text = str(found)
    assert text.startswith("Can start.\n")
    assert "rows      50 to train, 50 held out" in text
    assert json.loads(json.dumps(found.to_json()))["ok"] is True


def test_few_rows_can_start_and_measure_nothing() -> None:
    found = checked(rows=rows(12), budget=afnio.budget(max_calls=150))
    assert found.ok
    assert found.gains == (None, None)
    assert "not measured, as no rows are held out" in str(found)


def test_a_run_that_measures_new_prompts_makes_a_number_of_calls_in_the_range() -> None:
    model = client()
    fewest, most = checked().calls
    result = afnio.optimize(
        agent_of(model), rows(100), equal, prompts={"system": "level 3"}, critic=(model, "critic"),
        budget=afnio.budget(max_calls=400),
    )  # fmt: skip
    assert result.prompts != result.start
    assert fewest <= len(model.requests) <= most


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": lambda output, expected: output == expected.upper()}, "the metric calls no label right"),
        (
            {"metric": lambda output, expected: 1 / 0},
            "row .*, fails with ZeroDivisionError: division by zero",
        ),
        ({"budget": afnio.budget(max_cost=5)}, "a model has no price"),
    ],
)
def test_what_cannot_work_is_a_problem(changes: dict[str, Any], problem: str) -> None:
    found = checked(**changes)
    assert not found.ok
    (said,) = found.problems
    assert re.search(problem, said)


def test_prompts_that_are_not_sent_and_calls_that_are_not_seen_are_problems() -> None:
    async def silent(text: str, system: str) -> str:
        return "yes"

    model = client()

    async def forgetful(text: str, system: str) -> str:
        return (await model.achat(messages=[{"role": "user", "content": text}], model="student")).content

    assert "makes no call that Afnio sees" in checked(agent=silent).problems[0]
    found = checked(model, agent=forgetful)
    assert found.unsent == ("system",)
    assert "no request of the first row contains a prompt (system)" in found.problems[0]


def test_rows_that_contradict_each_other_are_named() -> None:
    data = [*rows(100), ("row 7", "no"), ("row 8", "yes")]
    found = checked(rows=data)
    assert found.contradictions == (7, 100)
    assert any("2 rows have the inputs of another row and another label" in note for note in found.notes)
    assert any("1 of 102 rows repeat" in note for note in found.notes)


def test_a_judge_is_not_asked() -> None:
    model = client()

    async def judge(output: str, expected: str) -> bool:
        reply = await model.achat(messages=[{"role": "user", "content": output}], model="judge")
        return reply.content == "yes"

    assert checked(model, metric=judge).labels_tried == 0


def test_prices_give_dollars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewest calls at the first row's price, and the budget's most."""
    (tmp_path / "prices.toml").write_text('version = 1\n[[price]]\nmodel = "*"\ninput = 1.0\noutput = 4.0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(tmp_path / "prices.toml"))
    found = checked(budget=afnio.budget(max_cost=5))
    assert found.ok
    assert found.dollars is not None
    low, high = found.dollars
    assert 0 < low < 1
    assert high == 5.0
    assert found.calls[1] is None


# The command

AGENT = """
import openai

client = openai.AsyncOpenAI()
PROMPTS = {"system": "Say the kind: question or complaint."}
print("hello from the user's code")

async def route(text, system):
    reply = await client.chat.completions.create(
        model="m", messages=[{"role": "system", "content": system}, {"role": "user", "content": text}]
    )
    return reply.choices[0].message.content
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an agent and rows, and an endpoint."""
    (tmp_path / "agent.py").write_text(AGENT)
    kinds = [
        ("Where is parcel {}?", "question"),
        ("Parcel {} is broken again, I am frustrated!", "complaint"),
    ]
    table = [
        f"{text.format(number)},{kind}\n".replace("again,", "again")
        for number in range(30)
        for text, kind in kinds
    ]
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(table))
    monkeypatch.chdir(tmp_path)
    with Provider.process() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        yield tmp_path


def optimize(*others: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "afnio.cli",
        "optimize",
        "agent.py:route",
        "rows.csv",
        "--metric",
        "exact",
    ]
    given = ["--expected", "label", "--prompts", "agent.py:PROMPTS", "--critic", "openai/critic"]
    return subprocess.run([*command, *given, *others], capture_output=True, text=True, timeout=100)


def test_the_command_checks_and_then_optimizes(place: Path) -> None:
    """One JSON object each, whatever the user's code prints."""
    check = optimize("--max-calls", "300", "--check", "--json")
    assert check.returncode == 0, check.stderr
    assert json.loads(check.stdout)["splits"] == {"train": 30, "held": 30}
    assert not (place / ".afnio").exists()
    (place / "guards.csv").write_text("text,label\nWhere is parcel 99?,question\nParcel 98?,question\n")
    rules = ("--guards", "guards.csv", "--draws", "2", "--max-chars", "300")
    check = optimize("--max-calls", "400", *rules, "--check", "--json")
    assert json.loads(check.stdout)["splits"] == {"train": 32, "held": 30}
    done = optimize("--max-calls", "300", "--out", "prompts", "--json")
    said = json.loads(done.stdout)
    assert said["exit"] == done.returncode
    assert done.returncode == (0 if said["verdict"].startswith("Better") else 3)
    assert (place / "prompts").is_dir()
    assert "hello from the user's code" in done.stderr


@pytest.mark.parametrize(
    ("others", "code", "error"),
    [
        (["--max-calls", "20", "--check"], 2, "budget must pay for at least"),
        (["--max-calls", "300", "--expected", "kind"], 2, "--expected must be a column of rows.csv"),
        (["--max-calls", "300", "--guards", "no.csv"], 2, "no.csv"),
        (["--max-calls", "300", "--draws", "0"], 2, "draws must be a whole number"),
        (["--max-cost", "5", "--check"], 2, "a model has no price"),
        (["--max-calls", "300", "--chek"], 2, "did you mean --check?"),
    ],
)
def test_what_cannot_work_is_exit_code_2(place: Path, others: list[str], code: int, error: str) -> None:
    done = optimize(*others)
    assert (done.returncode, error in done.stdout + done.stderr) == (code, True), done.stderr


def test_the_skill_is_written_once_and_its_commands_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["skill"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\nname: afnio\ndescription: ")
    assert main(["skill", str(tmp_path / "afnio")]) == 0
    assert (tmp_path / "afnio" / "SKILL.md").read_text() == text
    assert main(["skill", str(tmp_path / "afnio")]) == 0
    (tmp_path / "afnio" / "SKILL.md").write_text("mine")
    assert main(["skill", str(tmp_path / "afnio")]) == 1
    commands = [line.split() for line in text.splitlines() if line.startswith("afnio ")]
    assert [command[1] for command in commands] == ["evaluate", "optimize", "optimize", "prompts", "evaluate"]
    for command in commands:
        words = command[1:3] if command[1] == "prompts" else command[1:2]
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        known = capsys.readouterr().out
        assert [word for word in command if word.startswith("-") and word not in known] == []
