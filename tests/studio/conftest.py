"""A studio as a user starts it: a process of its own, with a token of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from studio.visitor import Studio


@contextmanager
def started(home: Path, *arguments: str) -> Iterator[Studio]:
    """Run `afnio studio` on a folder while the block lasts."""
    command = [sys.executable, "-m", "afnio.cli", "studio", "--dir", str(home), *arguments]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().strip()
        try:
            yield Studio(line, time.monotonic() - began)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                _, errors = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
    assert "" == errors
    assert 130 == process.returncode


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., Studio]]:
    """Start studios that end with the module."""
    with ExitStack() as stack:

        def enter(home: Path, *arguments: str) -> Studio:
            return stack.enter_context(started(home, *arguments))

        yield enter
