"""The README's code runs, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import afnio
from afnio.testing import Provider

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Both forms of the example run against the bundled provider, and the prompt changes."""
    with Provider.process() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "any")
        names: dict[str, Any] = {}
        exec(BLOCKS[0], names)
        exec(BLOCKS[1], names)
        assert afnio.run(names["train"]())
    assert "good or bad" in capsys.readouterr().out


def test_commands_are_in_the_makefile() -> None:
    """Every make target that the README names exists."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", TEXT)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links() -> None:
    """Every relative link leads to a file."""
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (ROOT / link).exists(), link
