"""The demo as a user runs it: a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo.process import Demo


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment without what a developer may have set for LMs, with a cache of its own."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "AFNIO_HOME"))
    }
    return {**kept, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "80"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


@pytest.fixture
def demo(folder: Path, environment: dict[str, str]) -> Demo:
    """Run the demo with arguments, further variables and what is typed; returns it when it has ended."""

    def run(*arguments: str, typed: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "afnio.demo", *arguments],
            cwd=folder,
            env={**environment, **variables},
            input=typed,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )

    return run
