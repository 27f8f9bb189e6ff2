"""The README's program runs and gives the figures that the README shows; its commands and links exist."""

from __future__ import annotations

import csv
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import afnio
from afnio.testing import Provider
from afnio.utils.datasets import FacilitySupport

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
(PROGRAM,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PRICES = 'version = 1\n[[price]]\nmodel = "*"\ninput = 1.0\noutput = 4.0\n'


@pytest.mark.skipif(
    "AFNIO_DATA" not in os.environ,
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)
def test_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program as it stands: the verdict, both scores and both prompts are those of the README's table."""
    monkeypatch.chdir(tmp_path)
    messages = [
        (m.data, s.data) for split in ("train", "val", "test") for m, (_, s, _) in FacilitySupport(split)
    ]
    with open("messages.csv", "w", newline="") as file:
        csv.writer(file).writerows([("message", "sentiment"), *messages])
    Path("prices.toml").write_text(PRICES)
    monkeypatch.setenv("AFNIO_PRICES", "prices.toml")
    names: dict[str, Any] = {"__name__": "__main__"}
    with Provider.process() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        exec(PROGRAM, names)
        result: afnio.Result = names["result"]
        assert afnio.run(answered(result, names["client"])) == "negative"
    assert f"**{result.verdict}**" in TEXT
    before, after = (
        line.split(" | ") for line in re.findall(r"^\| (?:before|after) \|.*$", TEXT, re.MULTILINE)
    )
    assert before[1:] == [result.start["system"], "39 (39.0 %) |"]
    assert after[1] == result.prompts["system"].replace("\n", "<br>")
    assert str(result.before).startswith("39.0 % (39 of 100")
    assert str(result.after).startswith("79.0 % (79 of 100")
    assert after[2] == "79 (79.0 %) |"
    assert result.verdict in capsys.readouterr().out
    assert result.verdict.partition("+")[2] in Path("optimize.html").read_text()
    assert result.cost is not None
    assert 0 < result.cost < 5


async def answered(result: afnio.Result, client: Any) -> str:
    """Call the result's agent, and close the connections that it opened on this loop."""
    async with client:
        return str(await result.agent("Unfortunately I am frustrated."))


def test_it_is_short() -> None:
    """A first screen, not a manual."""
    assert len(TEXT.splitlines()) < 150


def test_commands_are_in_the_makefile() -> None:
    """Every make target that the README names exists."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", TEXT)) - {"this"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_install_line_names_extras_that_exist() -> None:
    """The line itself is walked, with other extras, by tests/test_newcomer.py."""
    (extras,) = re.findall(r'^pip install -e "\.\[(.*)\]"$', TEXT, re.MULTILINE)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= set(known)


def test_links() -> None:
    """Every relative link leads to a file."""
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
