"""The command line, as a user runs it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import afnio
import afnio.tellurio as te
from afnio.cli import COMMANDS, main
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


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("stduio", "studio"), ("runs lsit", "list"), ("runs list --jsn", "--json"), ("xyz", "")],
)
def test_a_mistyped_word_is_corrected(typed: str, meant: str) -> None:
    done = run(*typed.split())
    assert done.returncode == 2
    assert done.stderr.rstrip().partition("; did you mean ")[2] == (f"{meant}?" if meant else "")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("afnio st", {"studio"}),
        ("afnio runs sh", {"show"}),
        ("afnio runs show k", {"keen", "kind"}),
        ("afnio doctor --ap", {"--api-key"}),
        ("afnio provider --lat", {"--latency"}),
        ("afnio demo --", {"--help"}),
    ],
)
def test_a_shell_completes_commands_options_and_runs(line: str, offered: set[str], tmp_path: Path) -> None:
    """As argcomplete's function in the shell asks."""
    for name in ("keen", "kind", "calm"):
        with te.init("me", "emails", name=name, dir=tmp_path / ".afnio"):
            pass
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"),
    }  # fmt: skip
    subprocess.run(
        AFNIO, env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, timeout=60, check=False
    )
    assert set((tmp_path / "offered").read_text().split()) == offered


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_while_a_shell_completes(command: str, tmp_path: Path) -> None:
    line = f"afnio {command} --he"
    asked = {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line)),
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"),
    }  # fmt: skip
    done = subprocess.run(AFNIO, env={**os.environ, **asked}, cwd=tmp_path, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert (tmp_path / "offered").read_text().strip() == "--help"


def test_bash_takes_what_completion_prints() -> None:
    script = f'eval "$({AFNIO[0]} completion bash)" && complete -p afnio'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[-2:] == ["_python_argcomplete", "afnio"]
    for shell in ("zsh", "fish"):
        assert "afnio" in run("completion", shell).stdout


@pytest.fixture
def keen(tmp_path: Path) -> Path:
    """A folder with a run that is done."""
    with te.init("me", "emails", name="keen", dir=tmp_path):
        pass
    return tmp_path


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Return what a command shows on a terminal."""
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [*AFNIO, *arguments], stdout=theirs, timeout=60, check=True, env={**plain, **environment}
        )
        return os.read(ours, 65536).decode()
    finally:
        for end in (ours, theirs):
            os.close(end)


def test_a_person_is_told_what_to_do_next_and_a_pipe_is_not(keen: Path) -> None:
    command = ("runs", "list", "--dir", str(keen))
    assert "\r\nNext:\r\n  afnio runs show keen  its result" in on_a_terminal(*command, NO_COLOR="1")
    assert "Next" not in run(*command).stdout


def test_colour_is_for_a_terminal_that_has_it(keen: Path) -> None:
    """The words are the same with and without, and a table's columns stay where they are."""
    command = ("runs", "list", "--dir", str(keen))
    coloured = on_a_terminal(*command, TERM="xterm-256color", COLUMNS="100")
    assert re.search(r"\x1b\[1mRUN .* RESULT\x1b\[0m", coloured)
    assert "\x1b[32mCOMPLETED\x1b[0m" in coloured
    assert "\x1b[36m  afnio runs show keen\x1b[0m" in coloured
    words = re.sub(r"\x1b\[\d+m", "", coloured)
    assert on_a_terminal(*command, TERM="dumb", COLUMNS="100") == words
    uncoloured = on_a_terminal(*command, TERM="xterm-256color", COLUMNS="100", NO_COLOR="1")
    assert re.sub(r"\x1b\[[01]m", "", uncoloured) == words
    assert "\x1b" not in run(*command).stdout


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


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_the_studio_without_its_extra(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says what to install, before anything is served. Its help needs nothing."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="0"):
        main(["studio", "--help"])
    assert "--port" in capsys.readouterr().out
    assert main(["studio"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"afnio: the studio needs {package}; run pip install 'afnio[studio]'\n"
