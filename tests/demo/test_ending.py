"""The demo ends in one line when it is interrupted or its provider goes away, and leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from demo.process import needs_data

pytestmark = [needs_data, pytest.mark.slow]


@pytest.fixture
def running(folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A demo whose training has begun, in a process group of its own as in a terminal."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "afnio.demo", "--epochs", "500"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "  epoch 1/500" in line:
            break
    with process:
        yield process
        process.kill()


def test_ctrl_c_ends_it_in_one_line(running: subprocess.Popen[str]):
    children = psutil.Process(running.pid).children()
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Interrupted" in errors
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in children)


def test_the_death_of_the_provider_is_noticed_at_once(running: subprocess.Popen[str]):
    (provider,) = psutil.Process(running.pid).children()
    provider.kill()
    # Its calls alone would be tried again for a minute.
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "the bundled provider's process ended" in errors
    assert "Traceback" not in errors
