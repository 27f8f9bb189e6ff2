"""The command line, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import afnio
from afnio.cli import COMMANDS
from afnio.testing import ScriptedClient

AFNIO = [str(Path(sys.executable).parent / "afnio")]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*AFNIO, *arguments], capture_output=True, text=True, timeout=60)


def journal(path: Path) -> Path:
    with afnio.journal(path):
        for word in ("a", "b"):
            ScriptedClient("hello").chat(messages=[{"role": "user", "content": word}], model="m")
    return path


def test_help_has_examples() -> None:
    """Help shows what to type, and so does no command at all."""
    done = run("--help")
    assert done.returncode == 0
    assert "afnio journal stat" in done.stdout
    bare = run()
    assert (0, done.stdout, "") == (bare.returncode, bare.stdout, bare.stderr)
    unknown = run("rnus")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "rnus" in unknown.stderr


def test_version() -> None:
    """The version of the package, as it can be read by a script."""
    done = run("--version")
    assert (0, f"afnio {afnio.__version__}\n") == (done.returncode, done.stdout)


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    """Where there are no runs because of a wrong folder, the answer says so and what to do."""
    missing = str(tmp_path / "nowhere")
    listed = run("runs", "list", "--dir", missing)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"No runs in {missing}: the folder doesn't exist" in listed.stdout
    assert "--dir" in listed.stdout
    for command in (["runs", "show"], ["report"]):
        done = run(*command, "calm", "--dir", missing)
        assert (done.returncode, done.stdout) == (1, "")
        assert "the folder doesn't exist" in done.stderr
    assert run("runs", "list", "--dir", str(tmp_path)).stdout == f"No runs in {tmp_path}.\n"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_every_command_has_help(command: str) -> None:
    """And the dispatcher finds it."""
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: afnio {command}" in done.stdout


def test_journal_stat(tmp_path: Path) -> None:
    """A journal's contents as a text and as JSON."""
    path = journal(tmp_path / "j")
    text = run("journal", "stat", str(path))
    assert text.returncode == 0
    assert "2 records" in text.stdout
    found = json.loads(run("journal", "stat", str(path), "--json").stdout)
    assert (
        found["records"], found["spent"][0]["purpose"], found["spent"][0]["model"], found["spent"][0]["calls"],
    ) == (2, "chat", "m", 2)  # fmt: skip


def test_journal_stat_of_something_else(tmp_path: Path) -> None:
    """What is no journal, or isn't there, is one sentence and exit code 1."""
    (tmp_path / "text").write_text("no journal")
    for path in (tmp_path / "text", tmp_path / "missing"):
        done = run("journal", "stat", str(path))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert str(path) in done.stderr


def test_provider() -> None:
    """`afnio provider` serves until its input ends."""
    process = subprocess.Popen(
        [*AFNIO, "provider", "--port", "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["base_url"]
    from afnio.models.openai import AsyncOpenAI

    reply = AsyncOpenAI(base_url=url, api_key="any").chat(
        messages=[{"role": "user", "content": "hello"}], model="m"
    )
    assert reply.content
    process.communicate()
    assert process.returncode == 0
