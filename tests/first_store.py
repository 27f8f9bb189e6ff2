"""A run store as version 1 wrote it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from afnio.tellurio._schema import FIRST

CALL = {
    "address": "run/1/0/forward", "account": "http://h", "model": "m", "purpose": "forward", "attempts": 2,
    "seconds": 1.5, "waited": 0.5, "error": None,
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 1, "reasoning_tokens": 0},
}  # fmt: skip


def first_version(path: Path, events: list[tuple[str, str]]) -> None:
    """Write a file as version 1 did, with one run, one metric and these events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in FIRST:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO runs VALUES ('r', 'old', NULL, 'me', 'emails', 'COMPLETED', '{}', '', 1, 'h', 1, 5, 6)"
        )
        connection.execute("INSERT INTO metrics VALUES (NULL, 'r', 'loss', 0, '0.5', 5)")
        connection.executemany("INSERT INTO events VALUES (NULL, 'r', ?, ?, 10)", events)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
