"""The page "A day with Afnio": its program runs as it stands, from the first look to the watch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afnio.testing import Provider

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "a-day.md"


def day(folder: Path, base_url: str) -> tuple[str, str]:
    """Run the page's program in a folder; returns what it printed, and its standard error."""
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (folder / "day.py").write_text(program)
    shutil.copy(HERE / "tickets.csv", folder)
    environment = {
        **os.environ,
        "OPENAI_BASE_URL": base_url,
        "OPENAI_API_KEY": "any",
        "AFNIO_HOME": str(folder),
    }
    command = [sys.executable, "day.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def until(text: str, mark: str) -> list[str]:
    """The lines before the first one that begins so, but for those with a time or the name of a run."""
    lines = text.partition(f"\n{mark}")[0].splitlines()
    return [line for line in lines if not line.startswith(("spent", "run"))]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("starts", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_day_runs_as_the_page_has_it(
    starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the figures that the page begins with. Started again, it pays for the watch alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    (shown,) = re.findall(r"^```\n(route: .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    with Provider.process(lm="routing:Router") as provider:
        said, _ = day(tmp_path, provider.base_url)
        assert until(said, "row ") == until(shown, "row ")
        verdicts = re.findall(r"^(Better|Worse|No .*?):", said, re.MULTILINE)
        assert verdicts[:2] == ["Better", "Better"]  # of the optimization, and by the comparison
        assert re.search(r"changed: .*\ntakes: tokens ×\d", said) is not None
        if starts == 2:
            before = provider.stats()["requests"]
            again, errors = day(tmp_path, provider.base_url)
            assert "optimize returns the result of" in errors
            assert until(again, "earlier ") == until(said, "run   ")
            assert provider.stats()["requests"] - before == 480
