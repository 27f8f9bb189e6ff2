"""The demo as a user runs it, in a process and a folder of its own: what it says, and what must not reach it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "afnio.demo"]
NOWHERE = "http://127.0.0.1:9"
needs_data = pytest.mark.skipif(
    not os.environ.get("AFNIO_DATA"),
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """A folder, and the environment without what a developer may have set for models, with a cache of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AFNIO_HOME"))
    }
    (tmp_path / "work").mkdir()
    environment = {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80"}
    return {"cwd": tmp_path / "work", "env": environment, "text": True}


def demo(place: dict[str, Any], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**place["env"], **variables}
    return subprocess.run(
        [*COMMAND, *arguments], **place | {"env": environment}, capture_output=True, timeout=100, check=False
    )


@needs_data
def test_it_ends_as_a_person_would_tell_it(place: dict[str, Any]) -> None:
    """The program's own output, then the first prompt, the new one, the verdict, "simulated" and two commands."""
    done = demo(place)
    assert done.returncode == 0, done.stderr
    own, _, end = done.stdout.partition(" with a simulated model ")
    assert "The model is SIMULATED" in own
    shown = [
        r"First prompt \(system\), 39.0 % \(39 of 100 right; .*\):\n  Say the sentiment: positive, neutral or neg",
        r"New prompt \(system\), (?:7|8)\d\.\d % \(.* of 100 right; .*\):\n  Say the sentiment: .*\n(?:  .*\n)+",
        r"\nBetter: \+\d\d\.\d points \(95 %: .*\) on 100 held-out rows\.\nThe model was simulated",
        r"browser.*:\n  .*afnio studio\n",
        r"real model:\n  OPENAI_API_KEY=… .*python.* .*classify\.py\n$",
    ]
    for part in shown:
        assert re.search(part, end), part
    assert "\x1b" not in done.stdout + done.stderr
    assert max(map(len, re.split(r"browser", end)[0].splitlines())) <= 80
    assert (place["cwd"] / "optimize.html").exists()
    assert [path.name for path in (place["cwd"] / ".afnio" / "optimize").glob("*.db")] == ["classify.db"]


@needs_data
@pytest.mark.nightly
def test_the_same_again_gives_the_same_result(place: dict[str, Any]) -> None:
    """Another process, another port: a run of its own, with the same figures and texts."""
    ends = [demo(place).stdout.partition(" with a simulated model ")[2] for _ in range(2)]
    assert ends[0] != ""
    assert ends[0] == ends[1]


ASKS = """
import os, sys, openai
assert sys.argv == [__file__], sys.argv
import beside
reply = openai.OpenAI().chat.completions.create(model="m", messages=[{"role": "user", "content": "Say hi: \u2713"}])
print(beside.NAME, os.environ["OPENAI_API_KEY"], type(reply.choices[0].message.content).__name__, "\u2713")
"""


def test_nothing_of_the_user_redirects_a_call(place: dict[str, Any]) -> None:
    """A program of the user's own, which has what `python PROGRAM` gives it."""
    (place["cwd"] / "mine.py").write_text(ASKS)
    (place["cwd"] / "beside.py").write_text('NAME = "a module"')
    done = demo(
        place, "mine.py", OPENAI_BASE_URL=NOWHERE, OPENAI_API_KEY="sk-of-the-user", OPENAI_ORG_ID="organization",
        HTTP_PROXY=NOWHERE, http_proxy=NOWHERE, ALL_PROXY=NOWHERE, no_proxy="example.org", PYTHONIOENCODING="ascii",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "a module any str ?"


def test_a_program_keeps_its_exit_code(place: dict[str, Any]) -> None:
    (place["cwd"] / "mine.py").write_text("raise SystemExit(3)")
    assert demo(place, "mine.py").returncode == 3


def test_without_data_it_says_where_to_put_them(place: dict[str, Any], tmp_path: Path) -> None:
    done = demo(place, AFNIO_DATA=str(tmp_path), https_proxy=NOWHERE, PIP_INDEX_URL=NOWHERE, PIP_RETRIES="0")
    assert done.returncode == 1
    assert "AFNIO_DATA" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_program_that_is_missing_is_refused(place: dict[str, Any]) -> None:
    done = demo(place, "nowhere.py")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "afnio demo: error: PROGRAM must be a file (got nowhere.py)"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(place: dict[str, Any]) -> None:
    place["cwd"].chmod(0o555)
    done = demo(place)
    assert done.returncode == 2
    assert str(place["cwd"]) in done.stderr


@pytest.fixture
def running(place: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """A demo whose training has begun, in a process group of its own as in a terminal."""
    process = subprocess.Popen(
        COMMAND, **place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "  step 1" in line:
            break
    with process:
        yield process
        process.kill()


@needs_data
def test_ctrl_c_ends_the_training_and_a_second_one_all(running: subprocess.Popen[str]) -> None:
    """In one line, and no process is left behind."""
    children = psutil.Process(running.pid).children()
    assert running.stderr is not None
    os.killpg(running.pid, signal.SIGINT)
    for line in running.stderr:
        if "the training ends after this step" in line:
            break
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert errors.splitlines()[-1] == "Interrupted; the demo has stopped all that it started."
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in children)
    assert running.returncode == 130
