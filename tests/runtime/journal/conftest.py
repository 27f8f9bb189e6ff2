"""What the journal's tests share: a path, records, programs of their own, no thread left behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import Record

Reply = Callable[..., Record]
Script = Callable[..., Any]

PRELUDE = """
import itertools, os, sys, threading
from afnio.errors import JournalError, JournalForkedError, JournalLockedError
from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import Record
path = sys.argv[1]
def reply(address, payload=b"", **fields):
    return Record(**{"address": address, "scope": "", "key": "aa", "model": "m", "purpose": "forward",
                     "payload": payload, **fields})
"""


def make(address: str, payload: bytes = b"", **fields: Any) -> Record:
    """Return a reply; its scope is what comes before the address's last slash."""
    given = {"scope": address.rpartition("/")[0], "key": "aa", "model": "m", "purpose": "forward"}
    return Record(**{"address": address, "payload": payload, **given, **fields})


@pytest.fixture
def reply() -> Reply:
    return make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.journal"


@pytest.fixture
def record(path: Path) -> Callable[..., None]:
    """A function that appends records in a session of their own."""

    def append(*records: Record) -> None:
        with Journal.open(path) as journal:
            for one in records:
                journal.append(one, acknowledged)

    return append


def acknowledged(error: BaseException | None) -> None:
    assert error is None


@pytest.fixture
def script(path: Path) -> Iterator[Script]:
    """A function that starts a program, in which every warning is an error, with pipes to it."""
    started: list[Any] = []

    def start(code: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name == "afnio-journal"] == []
