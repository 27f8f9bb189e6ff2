"""A run store as version 1 wrote it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

TABLES = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    description TEXT,
    namespace TEXT NOT NULL,
    project TEXT NOT NULL,
    status TEXT NOT NULL,
    config TEXT NOT NULL,
    identity TEXT NOT NULL,
    seed INTEGER NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    date_created REAL NOT NULL,
    date_updated REAL NOT NULL
);
CREATE TABLE metrics (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    name TEXT NOT NULL,
    step INTEGER NOT NULL,
    value TEXT NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX metrics_by_name ON metrics (run_id, name, step);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    payload TEXT NOT NULL,
    time REAL NOT NULL
);
CREATE INDEX events_by_kind ON events (run_id, kind)
"""
"""The tables as version 1 made them, spelled out: later versions must still read them."""
CALL = {
    "address": "run/1/0/forward", "account": "http://h", "model": "m", "purpose": "forward", "attempts": 2,
    "seconds": 1.5, "waited": 0.5, "error": None,
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 1, "reasoning_tokens": 0},
}  # fmt: skip


def first_version(path: Path, events: list[tuple[str, str]]) -> None:
    """Write a file as version 1 did, with one run, one metric and these events."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(TABLES)
        connection.execute(
            "INSERT INTO runs VALUES ('r', 'old', NULL, 'me', 'emails', 'COMPLETED', '{}', '', 1, 'h', 1, 5, 6)"
        )
        connection.execute("INSERT INTO metrics VALUES (NULL, 'r', 'loss', 0, '0.5', 5)")
        connection.executemany("INSERT INTO events VALUES (NULL, 'r', ?, ?, 10)", events)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("PRAGMA journal_mode = WAL")
