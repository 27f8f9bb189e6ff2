"""The examples with the Trainer: they run, they learn, and one that was killed goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = [
    pytest.mark.skipif(
        "AFNIO_DATA" not in os.environ,
        reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
    ),
    pytest.mark.timeout(120),
]


def run(program: str, environment: dict[str, str], folder: Path) -> str:
    command = [sys.executable, "-W", "error", EXAMPLES / program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_trainer(environment: dict[str, str], tmp_path: Path) -> None:
    """The prompt gets better by more than the intervals overlap; the run and its checkpoints are kept."""
    out = run("trainer.py", environment, tmp_path)
    found = [float(share) for share in re.findall(r"([\d.]+)% right", out)]
    bounds = [tuple(map(float, pair)) for pair in re.findall(r"95 %: ([\d.]+)% to ([\d.]+)%", out)]
    assert found[:1] == [36.8]
    assert bounds[1][0] > bounds[0][1]
    assert {"best", "last", "epoch-1"} <= {path.name for path in (tmp_path / "checkpoints").iterdir()}


def test_facility_support(environment: dict[str, str], tmp_path: Path) -> None:
    """Two prompts learn three targets; started again, the finished program trains no more."""
    out = run("facility_support.py", environment, tmp_path)
    first = float(re.findall(r"score: ([\d.]+) of 3", out)[0])
    assert first > 2.1
    assert "Determine the sentiment and the urgency of the message.\nAnswer" in out
    assert out == run("facility_support.py", environment, tmp_path)
