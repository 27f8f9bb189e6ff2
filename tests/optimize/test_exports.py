"""Prompts leave a run: kept, found and after each step, by `load_prompts` and from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kit.environments import interpreter
from optimize.task import client
from optimize.task import optimized as optimized_on

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.cli import main
from afnio.errors import ChoiceError
from afnio.optim import Change
from afnio.runtime.events import StepEnded, emit
from afnio.testing import ScriptedClient

optimized = partial(optimized_on, count=60)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFNIO_HOME", raising=False)
    return tmp_path


def recorded(*steps: Sequence[tuple[str, str, str]], name: str = "calm") -> None:
    """Record a training as the run me/project/NAME: for each step role, old and new text of each prompt."""
    with te.init("me", "project", name=name, resume=False):
        for step in steps:
            emit(StepEnded("run/1", "TGD", tuple(Change(*change, 1) for change in step), None))


# What a run has


def test_the_kept_prompts_are_the_results() -> None:
    """By name, by path, and with @kept; the others are what the training had after each step."""
    result = optimized()
    assert result.prompts == {"system": "level 10"}
    name = result.run.rpartition("/")[2]
    for address in (name, result.run, f"{name}@kept", f"{name}@found"):
        assert afnio.load_prompts(f"run:{address}") == {"system": "level 10"}
    assert afnio.load_prompts(f"run:{name}@0", prompts=["system"]) == {"system": "level 2"}
    after = afnio.load_prompts(f"run:{name}@1")["system"]
    assert after in ("level 4", "level 6", "level 8", "level 10")
    with pytest.raises(LookupError, match=r"must have a step 99 \(got \d+ steps\)"):
        afnio.load_prompts(f"run:{name}@99")
    with pytest.raises(LookupError, match="must have the prompt 'tool'"):
        afnio.load_prompts(f"run:{name}", prompts=["tool"])
    with pytest.raises(ValueError, match="which prompts of a run must be @kept, @found or .* .got @best"):
        afnio.load_prompts(f"run:{name}@best")
    with pytest.raises(ChoiceError, match="there is no run 'none'"):
        afnio.load_prompts("run:none")
    with pytest.raises(TypeError, match="write run:NAME@kept"):
        afnio.load_prompts(f"run:{name}", alias="kept")


@pytest.mark.parametrize("held", [40, 100])
def test_found_is_what_the_held_out_rows_refused(held: int) -> None:
    """The start is kept; what the training led to can still be read."""
    result = optimized(
        testset=[(f"row {n}", "no") for n in range(1000, 1000 + held)], budget=afnio.budget(max_calls=500)
    )
    assert result.verdict.startswith("Worse: ")
    assert afnio.load_prompts(f"run:{result.run}@kept") == result.prompts == {"system": "level 2"}
    assert afnio.load_prompts(f"run:{result.run}@found") == result.candidate
    assert result.candidate != result.start


def test_a_call_that_failed_has_found_prompts_only() -> None:
    def broken(output: str, expected: str) -> bool:
        broken.calls = getattr(broken, "calls", 0) + 1  # type: ignore[attr-defined]
        if broken.calls > 150:  # type: ignore[attr-defined]
            raise SystemExit
        return output == expected

    with pytest.raises(Exception, match=r"sys.exit\(\)"):
        optimized(metric=broken, name="broken")
    with pytest.raises(
        LookupError, match="must have a result .got status FAILED.; @found has what it led to"
    ):
        afnio.load_prompts("run:optimize/broken/")
    assert afnio.load_prompts("run:optimize/broken/@found")["system"].startswith("level ")


def test_a_training_keeps_its_last_values() -> None:
    """Without a result; prompts of one role are told apart by a number."""
    recorded([("prompt", "one", "more"), ("prompt", "two", "two")], [("prompt", "more", "most")])
    assert afnio.load_prompts("run:calm") == {"prompt 1": "most", "prompt 2": "two"}
    assert afnio.load_prompts("run:calm@1") == {"prompt 1": "more", "prompt 2": "two"}
    recorded(name="empty")
    with pytest.raises(LookupError, match="must have prompts .got none."):
        afnio.load_prompts("run:empty")


def test_a_modules_prompts_have_its_names() -> None:
    """A run knows them by their roles; the result knows better."""

    class Labels(cog.Module):
        def __init__(self, model: ScriptedClient) -> None:
            super().__init__()
            self.model = model
            self.instructions = cog.Parameter("level 2", role="system prompt")
            self.user = afnio.Variable("{text}", role="input template")
            self.chat = cog.ChatCompletion()

        def forward(self, text: Any) -> Any:
            system, user = ({"role": "system", "content": [self.instructions]},
                            {"role": "user", "content": [self.user]})  # fmt: skip
            return self.chat(self.model, [system, user], inputs={"text": text}, model="student")

    result = optimized(agent=Labels(client()), prompts=None)
    assert afnio.load_prompts(f"run:{result.run}@found") == {"instructions": "level 10"}


# The command line


def exported(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["prompts", "export", *arguments]) == 0
    return capsys.readouterr().out


def test_export_in_each_form(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """To standard output, or to files that only their user can read."""
    result = optimized()
    assert exported(capsys, result.run) == "level 10"
    assert exported(capsys, f"{result.run}@0") == "level 2"
    assert json.loads(exported(capsys, result.run, "--format", "json")) == result.prompts
    assert "level 10" in exported(capsys, result.run, "--format", "prompty")
    assert exported(capsys, result.run, "--format", "python", "-o", "prompts.py") == "prompts.py\n"
    names: dict[str, Any] = {}
    exec((folder / "prompts.py").read_text(), names)
    assert names["PROMPTS"] == result.prompts
    assert result.verdict in (folder / "prompts.py").read_text()
    assert exported(capsys, result.run, "-o", "prompts") == "prompts\n"
    assert afnio.load_prompts("prompts") == result.prompts
    assert (folder / "prompts.py").stat().st_mode & 0o777 == 0o600


def test_an_export_that_can_not_be_is_one_sentence(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    recorded([("prompt", "one", "more"), ("prompt", "two", "two")])
    for arguments, said in [
        (["calm"], "text is a file for each prompt, and the run has 2 (prompt 1, prompt 2)"),
        (["calm@best"], "(got @best)"),
        (["none"], "there is no run 'none'"),
        (["calm", "--format", "json", "-o", "missing/prompts.json"], "No such file"),
    ]:
        assert main(["prompts", "export", *arguments]) == 1
        output = capsys.readouterr()
        assert (output.out, output.err.count("\n")) == ("", 1)
        assert said in output.err


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3))
@example(['""" + \'x\'\n\x0c\u2028\r\n \\ \U0001f600'])
def test_each_form_has_the_texts_as_they_are(
    capsys: pytest.CaptureFixture[str], folder: Path, texts: list[str]
) -> None:
    """Whatever is in them: quotes, line ends of all kinds, characters beyond 16 bits."""
    prompts = {f"p{number}": text for number, text in enumerate(texts)}
    shutil.rmtree(folder / ".afnio", ignore_errors=True)
    recorded([(name, "", text) for name, text in prompts.items()])
    assert afnio.load_prompts("run:calm") == prompts
    assert json.loads(exported(capsys, "calm", "--format", "json")) == prompts
    names: dict[str, Any] = {}
    exec(exported(capsys, "calm", "--format", "python"), names)
    assert names["PROMPTS"] == prompts
    exported(capsys, "calm", "-o", "texts")
    assert afnio.load_prompts("texts", prompts=prompts) == prompts


def test_a_prompty_file_has_no_second_message(capsys: pytest.CaptureFixture[str]) -> None:
    """A line that begins one there is refused, and so is the end of a block that keeps braces."""
    for text in ("Answer.\n user:\nHi", "{% endraw %}"):
        recorded([("prompt", "", text)])
        assert main(["prompts", "export", "calm", "--format", "prompty"]) == 1
        assert "choose another form" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_prompty_reads_its_files(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The package itself: braces, dashes and colons are in the message as they are."""
    text = "Fill {{x}} and {y}, {% if %}.\n---\nName: value\nuser: no message\n# heading"
    recorded([("prompt", "", text)])
    exported(capsys, "calm", "--format", "prompty", "-o", "made")
    code = "import prompty; print(prompty.prepare(prompty.load('made/prompt.prompty'), {})[0].text, end='')"
    python = interpreter("prompty", "prompty[jinja2]==2.1.0")
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == text
