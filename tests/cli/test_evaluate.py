"""`afnio evaluate`, as a shell, a CI job or a coding agent runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afnio.cli import main

AFNIO = [str(Path(sys.executable).parent / "afnio"), "evaluate"]
AGENT = """
import pathlib

from afnio.testing import ScriptedClient

print("hello from the agent")
PROMPTS = {"system": "Repeat."}
NUMBER = 7


def reply(request):
    with pathlib.Path("sent").open("a") as file:
        file.write("x")
    system, user = (message["content"] for message in request.messages)
    return user if system == "Repeat." else "no"


client = ScriptedClient(reply)


async def repeat(text, system):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return (await client.achat(messages=messages, model="m")).content


def two(first, second):
    return f"{first}{second}"


def broken(output, expected):
    return "great"


def crashing(text):
    if text in "ab":
        raise RuntimeError("no")
    return text


def short(output):
    return len(output) < 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "agent.py").write_text(AGENT)
    rows = "".join(
        f"{letter},{letter if number < 9 else 'x'}\n" for number, letter in enumerate("abcdefghijkl")
    )
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "wide.jsonl").write_text('{"first": "a", "second": "b", "expected": "ab"}\n')
    (tmp_path / "worse.py").write_text('PROMPTS = {"system": "Say no."}')
    return tmp_path


def run(folder: Path, *arguments: str, agent: str = "agent.py:repeat", rows: str = "rows.csv") -> Any:
    command = [*AFNIO, agent, rows, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


BASE = ("--metric", "exact", "--expected", "label", "--prompts", "agent.py:PROMPTS")


def test_it_prints_the_score_and_the_worst_rows(folder: Path) -> None:
    done = run(folder, *BASE)
    assert done.stdout.startswith("repeat: 75.0 % (9 of 12 right; 42.8 to 93.3)\nspent: 12 calls, ")
    assert "row 9: 0  'j' → 'j', expected 'x'" in done.stdout
    assert "hello from the agent" in done.stderr
    assert done.returncode == 0


def test_json_is_one_object_and_the_exit_code_decides(folder: Path) -> None:
    """Below a threshold, worse than a baseline, at the end of a budget: and nothing is paid twice on the way."""
    good = run(folder, *BASE, "--json", "--fail-under", "0.7", "--out", "base.json")
    said = json.loads(good.stdout)
    assert (good.returncode, said["score"]["mean"], said["rows"], said["failed"]) == (0, 0.75, 12, 0)
    assert said["fail_under"] == {"below": False, "within_noise": True}
    assert len(said["worst"]) == 3
    below = run(folder, *BASE, "--fail-under", "0.99")
    assert "The score is below the threshold." in below.stdout
    assert (below.returncode, (folder / "sent").read_text()) == (3, "x" * 12)
    same = run(folder, *BASE, "--baseline", "base.json", "--fresh", "--json")
    assert (same.returncode, json.loads(same.stdout)["baseline"]["worse"]) == (0, False)
    worse = run(folder, *BASE[:4], "--prompts", "worse.py:PROMPTS", "--baseline", "base.json")
    assert "Worse: -75.0 points (95 %: " in worse.stdout
    assert worse.returncode == 3
    ended = run(
        folder, *BASE[:4], "--prompts", "agent.py:PROMPTS", "--name", "new", "--max-calls", "10", "--json"
    )
    assert json.loads(ended.stdout)["error"].endswith("; the same command with a larger budget continues")
    assert (ended.returncode, json.loads(ended.stdout)["exit"]) == (4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--metric", "exact", "--expected", "tool"],
            "--expected must be a column of rows.csv (got 'tool'; row 0 has text,",
        ),
        (["--metric", "exact", "--inputs", "txt"], "--inputs must be a column of rows.csv (got 'txt'"),
        (
            ["--metric", "agent.py:missing"],
            "--metric must name something in agent.py (got 'missing'; it has NUMBER",
        ),
        (["--metric", "other.py:m"], "--metric must name a file that exists (got other.py)"),
        (["--metric", "agent"], "--metric must be file.py:name or package.module:name (got 'agent')"),
        (["--metric", "agent.py:broken"], "the metric must return True, False, a number"),
        (
            ["--metric", "exact", "--prompts", "agent.py:NUMBER"],
            "--prompts must be a dict of texts by name (got int",
        ),
        (["--metric", "exact", "--prompts", "nowhere"], "nowhere"),
        (["--metric", "exact", "--baseline", "agent.py"], "agent.py must be a file of Evaluation.save"),
        (["--metric", "exact", "--draws", "0"], "draws must be a whole number, 1 or more (got 0)"),
    ],
)
def test_what_can_not_work_is_said_in_one_line(
    folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = main(["evaluate", "agent.py:repeat", "rows.csv", *BASE, *arguments])
    said, errors = capsys.readouterr()
    *_, line = errors.splitlines()
    assert line.startswith("afnio: ")
    assert message in line
    assert (code, said, (folder / "sent").exists()) == (2, "", "broken" in arguments[1])


def test_several_inputs_go_by_name_and_rows_need_no_label(folder: Path) -> None:
    done = run(folder, "--metric", "exact", agent="agent.py:two", rows="wide.jsonl")
    assert done.stdout.startswith("two: 100.0 % (1 of 1 right; ")
    (folder / "bare.csv").write_text("text\na\nbb\n")
    bare = run(folder, "--metric", "agent.py:short", "--prompts", "agent.py:PROMPTS", rows="bare.csv")
    assert bare.stdout.startswith("repeat: 50.0 % (1 of 2 right; ")


def test_rows_that_fail_are_exit_1(folder: Path) -> None:
    done = run(folder, "--metric", "exact", "--expected", "label", agent="agent.py:crashing")
    assert "failed: 2 of 12 rows failed" in done.stdout
    assert "first row 0: RuntimeError: no" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\n\xff,x\n", "ROWS must be CSV in UTF-8 (got 'utf-8' codec can't decode"),
        ("a.csv", b"text,label\na\n", "each row of a.csv must have a value for each column (row 0 has not)"),
        ("a.json", b"[" * 200_000, "ROWS must be JSON in UTF-8 (got maximum recursion depth"),
        ("a.jsonl", b'{"text": "a"}\n{"text', "ROWS must be JSONL in UTF-8 (got Unterminated string"),
        ("a.json", b"7", "ROWS must be a list of objects"),
    ],
)
def test_rows_that_are_no_table_are_one_line(
    folder: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (folder / name).write_bytes(content)
    code = main(["evaluate", "agent.py:repeat", name, *BASE])
    *_, line = capsys.readouterr().err.splitlines()
    assert (code, line.partition(message)[0]) == (2, "afnio: ")


def test_rows_may_be_long_and_have_line_separators_in_their_texts(folder: Path) -> None:
    (folder / "long.csv").write_text(f"text\n{'a' * 200_000}\nb\n")
    (folder / "lines.jsonl").write_text('{"text": "a\\u2028b"}\n\n{"text": "a\u2028b c"}\n')
    for rows, right in (("long.csv", "1 of 2"), ("lines.jsonl", "0 of 2")):
        done = run(folder, "--metric", "agent.py:short", "--prompts", "agent.py:PROMPTS", rows=rows)
        assert f"({right} right; " in done.stdout
