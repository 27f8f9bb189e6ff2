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


def figures(text: str) -> list[str]:
    """What doesn't depend on the clock, or on the name of a run."""
    return re.findall(r"[+-]?\d+\.\d (?:%|points)|×\d\.\d\d(?= \([^)]*\), seconds)", text)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("starts", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_day_runs_as_the_page_has_it(
    starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the figures that the page shows. Started again, it pays for the watch alone."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
    (shown,) = re.findall(r"^```\n(route: .*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    with Provider.process(lm="routing:Router") as provider:
        said, _ = day(tmp_path, provider.base_url)
        assert figures(said)[: len(figures(shown))] == figures(shown)
        assert (tmp_path / "store" / "router").exists()
        if starts == 2:
            before = provider.stats()["requests"]
            again, errors = day(tmp_path, provider.base_url)
            assert "optimize returns the result of" in errors
            assert (
                figures(again)[:9] == figures(said)[:9]
            )  # the evaluation of the start, and the optimization
            assert provider.stats()["requests"] - before == 480
