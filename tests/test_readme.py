"""The README's program, typed from the page into a new folder, prints what it shows; commands and links exist."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import pytest

import afnio
from afnio.testing import Provider

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
DEMO, INSTALL, RUN = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
(PRINTED,) = re.findall(r"```\n(Better.*?)```", TEXT, re.DOTALL)
VARYING = re.compile(r"[\d,]+ tokens.*|(?<=^run       )optimize/classify/.*", re.MULTILINE)
"""Tokens, which retries change, the time, and the run's name."""
NUMBER = re.compile(r"[\d.]+")
needs_data = pytest.mark.skipif(
    "AFNIO_DATA" not in os.environ,
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that types lines into a shell, where the page's install lines were typed before.

    Packages are those of this environment, found by PYTHONPATH; pip neither fetches nor builds apart.
    """
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("src", "pyproject.toml", "README.md", "LICENSE"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, checkout / name)
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "AFNIO_DATA") if name in os.environ}
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1", "PIP_QUIET": "1"}

    def typed(lines: str, folder: Path, **variables: str) -> str:
        done = subprocess.run(
            ["bash", "-e", "-c", lines], cwd=folder, capture_output=True, text=True, timeout=100,
            env={**kept, **offline, "PYTHONPATH": sysconfig.get_path("purelib"), **variables},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    typed(INSTALL, checkout)
    return lambda lines, folder, **others: typed(
        f". {checkout}/.venv/bin/activate\n{lines}", folder, **others
    )


@needs_data
def test_the_program_without_a_key(shell: Any, tmp_path: Path) -> None:
    """What it prints is what the page shows; so is the demo's program."""
    (tmp_path / "classify.py").write_text(PROGRAM)
    printed = shell(RUN.splitlines()[0], tmp_path)
    lines, shown = (VARYING.sub("", text).splitlines() for text in (printed, PRINTED))
    first = lines.index(shown[0])
    assert lines[first : first + len(shown)] == shown
    assert (tmp_path / "optimize.html").exists()
    assert (ROOT / "src" / "afnio" / "demo" / "_classify.py").read_text() == PROGRAM


@needs_data
def test_the_program_with_a_key(shell: Any, tmp_path: Path) -> None:
    """Against an endpoint of the user's, which asks for the key."""
    (tmp_path / "classify.py").write_text(PROGRAM)
    with Provider.process(api_key="sk-mine") as provider:
        line = RUN.splitlines()[1].replace("…", "sk-mine")
        printed = shell(line, tmp_path, OPENAI_BASE_URL=provider.base_url)
        asked = provider.stats()["requests"]
    assert printed.startswith(PRINTED.splitlines()[0])
    assert f"spent     {asked} calls" in printed


@needs_data
def test_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The scores of the e-mails are those that the program prints; the counting is run here."""
    monkeypatch.chdir(tmp_path)
    rows = [row.split(" | ") for row in re.findall(r"^\| .*(?:before|after) \|.*$", TEXT, re.MULTILINE)]
    assert [sorted(NUMBER.findall(right)) for *_, right in rows[:2]] == [
        sorted(NUMBER.findall(line))
        for line in re.findall(r"^(?:before|after) .*right", PRINTED, re.MULTILINE)
    ]
    data = json.loads((Path(os.environ["AFNIO_DATA"]) / "bbh_object_counting.json").read_text())
    with Provider.process() as provider:
        client = afnio.models.openai.AsyncOpenAI(base_url=provider.base_url, api_key="any")

        async def count(question: str, system: str) -> str:
            messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
            return (await client.achat(messages=messages, model="gpt-5-nano")).content

        result = afnio.optimize(
            count,
            [(one["input"], one["target"]) for one in data["examples"]],
            lambda output, expected: re.findall(r"\d+", output)[-1:] == [expected],
            prompts={"system": rows[2][1]},
            critic=(client, "gpt-5"),
            budget=afnio.budget(max_calls=700),
        )
    assert result.prompts["system"].replace("\n", "<br>") == rows[3][1]
    scores = [sorted(NUMBER.findall(str(score).partition(";")[0])) for score in (result.before, result.after)]
    assert scores == [sorted(NUMBER.findall(right)) for *_, right in rows[2:]]


def test_it_is_short() -> None:
    """A first screen, not a manual."""
    assert len(TEXT.splitlines()) < 120


def test_commands_are_in_the_makefile() -> None:
    """Every make target that the README names exists."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_install_line_names_extras_that_exist() -> None:
    (extras,) = re.findall(r'^pip install -e "\.\[(.*)\]"$', TEXT, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_links() -> None:
    """Every relative link leads to a file."""
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
