"""What the tests of tracking share."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

import afnio.tellurio as te

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Read = Callable[[Path, str], list[tuple[Any, ...]]]


def pytest_configure() -> None:
    """Say that the main thread has no event loop; else the plugins make one that nobody closes."""
    asyncio.set_event_loop(None)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder, and leave neither a run nor a thread behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFNIO_HOME", raising=False)
    yield
    with pytest.raises(ValueError, match="no run is active"):
        te.get_active_run()
    assert not [thread for thread in threading.enumerate() if thread.name == "afnio-store"]


@pytest.fixture
def read() -> Read:
    """Query a project's file as another program would."""

    def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(sql).fetchall()

    return query
