"""Run stores as versions 1 and 2 wrote them. The statements are copies, so that they never change."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

FIRST = (
    """CREATE TABLE runs (
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
    )""",
    """CREATE TABLE metrics (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (id),
        name TEXT NOT NULL,
        step INTEGER NOT NULL,
        value TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX metrics_by_name ON metrics (run_id, name, step)",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        run_id TEXT NOT NULL REFERENCES runs (id),
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX events_by_kind ON events (run_id, kind)",
)

SECOND = (
    "ALTER TABLE runs ADD COLUMN git_commit TEXT",
    "ALTER TABLE runs ADD COLUMN versions TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN platform TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE runs ADD COLUMN in_flight INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE runs ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0",
    """CREATE TABLE texts (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        name TEXT NOT NULL, step INTEGER NOT NULL, text TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX texts_by_name ON texts (run_id, name, step)",
    """CREATE TABLE tables (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        name TEXT NOT NULL, step INTEGER NOT NULL, columns TEXT NOT NULL, rows TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX tables_by_name ON tables (run_id, name, step)",
    """CREATE TABLE steps (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        number INTEGER NOT NULL, address TEXT NOT NULL, optimizer TEXT NOT NULL, error TEXT, time REAL NOT NULL
    )""",
    "CREATE UNIQUE INDEX steps_by_number ON steps (run_id, number)",
    """CREATE TABLE parameters (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        number INTEGER NOT NULL, step INTEGER NOT NULL, role TEXT NOT NULL, value TEXT NOT NULL
    )""",
    "CREATE INDEX parameters_by_number ON parameters (run_id, number, step)",
    """CREATE TABLE changes (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        step_id INTEGER NOT NULL REFERENCES steps (id), parameter INTEGER NOT NULL,
        role TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, gradients INTEGER NOT NULL, rejected TEXT
    )""",
    "CREATE INDEX changes_by_step ON changes (run_id, step_id)",
    """CREATE TABLE evidence (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        change_id INTEGER NOT NULL REFERENCES changes (id),
        number INTEGER NOT NULL, text TEXT NOT NULL, samples TEXT NOT NULL
    )""",
    "CREATE INDEX evidence_by_change ON evidence (run_id, change_id)",
    """CREATE TABLE candidates (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        step_id INTEGER NOT NULL REFERENCES steps (id), number INTEGER NOT NULL,
        parents TEXT NOT NULL, vals TEXT NOT NULL, scores TEXT NOT NULL, verdict TEXT NOT NULL
    )""",
    "CREATE INDEX candidates_by_number ON candidates (run_id, number)",
    """CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        address TEXT NOT NULL, name TEXT NOT NULL, line TEXT NOT NULL, kind TEXT NOT NULL,
        lanes INTEGER, parents TEXT NOT NULL, phase TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX nodes_by_address ON nodes (run_id, address)",
    """CREATE TABLE samples (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        node TEXT NOT NULL, lane INTEGER, phase TEXT NOT NULL, key TEXT,
        prediction TEXT, target TEXT, score REAL, note TEXT, explanation TEXT, success INTEGER NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX samples_by_node ON samples (run_id, node, lane)",
    "CREATE INDEX samples_by_phase ON samples (run_id, phase, key)",
    "CREATE INDEX samples_by_run ON samples (run_id)",
    """CREATE TABLE bodies (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        digest BLOB NOT NULL, packed INTEGER NOT NULL, body BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX bodies_by_digest ON bodies (run_id, digest)",
    """CREATE TABLE calls (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        address TEXT NOT NULL, node TEXT NOT NULL, lane INTEGER, phase TEXT NOT NULL, purpose TEXT NOT NULL,
        account TEXT NOT NULL, model TEXT NOT NULL, status TEXT NOT NULL, replayed INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL, seconds REAL NOT NULL, waited REAL NOT NULL, started REAL NOT NULL,
        ended REAL NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL, cost REAL, error TEXT,
        params INTEGER REFERENCES bodies (id), messages TEXT NOT NULL, reply INTEGER REFERENCES bodies (id)
    )""",
    "CREATE UNIQUE INDEX calls_by_address ON calls (run_id, address)",
    "CREATE INDEX calls_by_purpose ON calls (run_id, purpose)",
    "CREATE INDEX calls_by_run ON calls (run_id)",
    "CREATE INDEX calls_that_failed ON calls (run_id) WHERE status = 'failed'",
    """CREATE TABLE retries (
        id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs (id),
        address TEXT NOT NULL, attempt INTEGER NOT NULL, error TEXT NOT NULL, wait REAL NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX retries_by_address ON retries (run_id, address)",
)
"""What version 2 added."""

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


def second_version(path: Path) -> None:
    """Write a file as version 2 did, with one run and one metric."""
    first_version(path, [])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in SECOND:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 2")
