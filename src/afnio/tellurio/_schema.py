"""The tables of a run store, and opening it for writing.

A new file gets all `TABLES` in one transaction, so no reader sees half of them. A file of another version is refused,
because this Afnio can't know which rules its rows follow. To change the tables after a release, raise `VERSION` and let
`connect` turn a file of the version before into one of this, where it calls `_create`.

Times are seconds since 1970 UTC. JSON is UTF-8 text. `run_id` is `runs.id` everywhere. All other ids are SQLite's
own row numbers: they grow in the order of writing, and pages are keyed by them.

An **address** is the place in the program where something was launched (`run/epoch 1/step 3/7`): the names of
the scopes, then the number of the launch in its scope. A call's address continues with the part, the lane and
the purpose (`run/epoch 1/step 3/7/12/forward`), so `address >= :node || '/' AND address < :node || '0'` selects
the calls of a node. A **phase** is the scopes' part alone, without the run's own (`epoch 1/step 3`, `val`, `''`).
A **lane** is the index of a sample in its batch, or NULL if there is only one value.

`runs`: one row per run.
    status              RUNNING, COMPLETED, FAILED or CRASHED as last written; a killed process leaves RUNNING,
                        see `live_status` in `_store`
    config              JSON object
    identity            JSON [folder, script, arguments] of the program, with a digest of all three as a fourth if
                        some of the arguments are masked; '' at a prompt or in a notebook
    seed                start of the run's seeds
    host, pid           of the process that records it
    date_created, date_updated
    seconds_dead        between the end of a process and the start of the one that continued its run
    git_commit          hash of the working folder's commit, with "+" if files differ from it; NULL without git
    versions            JSON object: Python, Afnio and the packages that calls go through
    platform            JSON object: system, machine, processors
    in_flight           calls on the wire when this was last written
    waiting             calls that were queued then
    dropped             events that weren't recorded because the disk was too slow
    places              JSON object: "executors", "replicas", "batches" and "queues", lists of an entry of
                        `afnio.runtime.places` for each, counted from the start of the run in this process, and
                        "progress", lines on how far it is; without those that are empty
`metrics`: values of `run.log`.         name, step, value (JSON), time
`texts`: texts of `run.log_text`.       name, step, text, time
`tables`: tables of `run.log_table`.    name, step, columns (JSON list), rows (JSON list of lists), time
`steps`: optimizer steps, in the order in which they ended.
    number              1, 2, … in the run
    address, optimizer  place of the launch; class of the optimizer
    error               why parameters kept their values, NULL if none failed
`parameters`: each value that a parameter had; a step that changed nothing adds none.
    number              of the parameter in this run, in order of appearance
    step                `steps.number` of the step from which on it had the value, 0 for the initial one
    made                `steps.number` of the step that made it: a lower one if the value was restored
    role, value
`changes`: the effect of a step on one parameter.
    step_id             `steps.id`
    parameter           `parameters.number`
    role, before, after, gradients (how many), rejected (why a proposal was refused, else NULL)
    dropped             JSON list: why edits were left out
`evidence`: the feedback that the proposer was shown, in order.
    change_id           `changes.id`
    number              0, 1, …
    text
    samples             JSON list of objects, the samples behind it: "sample" is the lane, "node" the evaluator's
                        address (if known), "prediction", "score", and whatever else the evaluator kept
`blocks`: the blocks of a changed text in order, from optimizers that edit by block; `optim.Lineage` has the details.
    change_id           `changes.id`
    number              0, 1, …
    text, step, samples (JSON list), replaces, races, wins, losses, ties, effect, low, high
`candidates`: values that were weighed against others.
    step_id, number, parents (JSON list of numbers), vals (JSON list), scores (JSON list), verdict
    name                such as "incumbent" or "union"; '' if it has none
    samples             JSON list: the numbers of the samples behind `scores`; empty if unknown
`nodes`: launches that belong to a graph.
    address, name (of the op), line ("file:line"), kind (forward, evaluator or backward), lanes (NULL for a
    scalar), phase
    parents             JSON list: for each input the address of the node that made it, null for a leaf;
                        of a backward pass the forward node behind each of its parts "node 0", "node 1", …
`samples`: verdicts of evaluators, per sample. A sample that failed on its way has no row, but its call has.
    node, lane, phase
    key                 digest of the sample's own inputs, equal each time the same sample is evaluated, with any
                        prompt; NULL if the op had none
    prediction, target  texts; another value as JSON
    score               number; NULL if it isn't one
    note                a score that isn't a number, as JSON
    explanation, success (1 if it sends no feedback)
`inputs`: what the samples of a key were given, once.
    key                 `samples.key`
    text                the inputs without the target, the first 20,000 characters
`calls`: language model calls that ended. Each address has one row, with its last reply.
    address, node (address of its launch), lane, phase, purpose
    account (base URL without credentials), model
    status              ok, failed, cancelled (the program gave it up), or replayed (answered by the journal, and
                        not recorded before)
    replayed            how often the journal answered it
    attempts, seconds (on the wire), waited (in the queue), started, ended
    prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens
    cost                dollars, NULL if the model's price is unknown
    error
    params              `bodies.id` of the request's other parameters
    messages            `bodies.id` of each message, a text "3,17,4"
    reply               `bodies.id`
`bodies`: JSON of messages and replies, each once in a run.
    digest              of the JSON's bytes
    packed              1 if `body` is compressed by zlib
    body                the JSON, UTF-8
`retries`: attempts that failed and were followed by another: address, attempt, error, wait (seconds), time
`events`: all other events: kind, payload (JSON), time. Those of kind "Control" are orders to the run, which any
    process may add; see `_control`
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from functools import lru_cache
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from afnio.errors import StoreVersionError
from afnio.runtime._files import make_private_folder

if TYPE_CHECKING:
    from pathlib import Path


# Seconds to wait for the transaction of another process.
BUSY_TIMEOUT: Final = 30.0


def connect(path: Path) -> sqlite3.Connection:
    """Open a project's file for writing; create it and its folders, for this user only, if it doesn't exist.

    Raises:
        StoreVersionError: another version of Afnio wrote the file.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     connection = connect(pathlib.Path(folder) / "new" / "project.db")
    ...     connection.execute("PRAGMA user_version").fetchone()
    ...     connection.close()
    (7,)
    """
    make_private_folder(path.parent)
    # Create the file first: SQLite gives its side files the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        if version_of(connection, path) == 0:
            _create(connection, path)
        _use_wal(connection)
        # A power cut may lose the last transactions, but never damages the file.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the file's version: `VERSION`, or 0 for a new file.

    Raises:
        StoreVersionError: another version of Afnio wrote it.
    """
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version not in (0, VERSION):
        age = "a newer" if version > VERSION else "an older"
        raise StoreVersionError(
            f"the run store {path} must have schema version {VERSION} (got {version}); install {age} Afnio, or set "
            "AFNIO_HOME to another folder"
        )
    return version


def _create(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        if version_of(connection, path) == 0:  # another process may have created the tables meanwhile
            for statement in TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _use_wal(connection: sqlite3.Connection) -> None:
    # SQLite doesn't apply the busy timeout to this switch. Without the loop, one of two processes that start
    # together would fail.
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


VERSION: Final = 7

_RUN: Final = "run_id TEXT NOT NULL REFERENCES runs (id)"

TABLES: Final = (
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
        date_updated REAL NOT NULL,
        seconds_dead REAL NOT NULL DEFAULT 0,
        git_commit TEXT,
        versions TEXT NOT NULL DEFAULT '{}',
        platform TEXT NOT NULL DEFAULT '{}',
        in_flight INTEGER NOT NULL DEFAULT 0,
        waiting INTEGER NOT NULL DEFAULT 0,
        dropped INTEGER NOT NULL DEFAULT 0,
        places TEXT NOT NULL DEFAULT '{}'
    )""",
    f"""CREATE TABLE metrics (
        id INTEGER PRIMARY KEY,
        {_RUN},
        name TEXT NOT NULL,
        step INTEGER NOT NULL,
        value TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX metrics_by_name ON metrics (run_id, name, step)",
    f"""CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        {_RUN},
        kind TEXT NOT NULL,
        payload TEXT NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX events_by_kind ON events (run_id, kind)",
    f"""CREATE TABLE texts (
        id INTEGER PRIMARY KEY, {_RUN},
        name TEXT NOT NULL, step INTEGER NOT NULL, text TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX texts_by_name ON texts (run_id, name, step)",
    f"""CREATE TABLE tables (
        id INTEGER PRIMARY KEY, {_RUN},
        name TEXT NOT NULL, step INTEGER NOT NULL, columns TEXT NOT NULL, rows TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX tables_by_name ON tables (run_id, name, step)",
    f"""CREATE TABLE steps (
        id INTEGER PRIMARY KEY, {_RUN},
        number INTEGER NOT NULL, address TEXT NOT NULL, optimizer TEXT NOT NULL, error TEXT, time REAL NOT NULL
    )""",
    "CREATE UNIQUE INDEX steps_by_number ON steps (run_id, number)",
    f"""CREATE TABLE parameters (
        id INTEGER PRIMARY KEY, {_RUN},
        number INTEGER NOT NULL, step INTEGER NOT NULL, role TEXT NOT NULL, value TEXT NOT NULL,
        made INTEGER NOT NULL DEFAULT 0
    )""",
    "CREATE INDEX parameters_by_number ON parameters (run_id, number, step)",
    f"""CREATE TABLE changes (
        id INTEGER PRIMARY KEY, {_RUN},
        step_id INTEGER NOT NULL REFERENCES steps (id), parameter INTEGER NOT NULL,
        role TEXT NOT NULL, before TEXT NOT NULL, after TEXT NOT NULL, gradients INTEGER NOT NULL, rejected TEXT,
        dropped TEXT NOT NULL DEFAULT '[]'
    )""",
    "CREATE INDEX changes_by_step ON changes (run_id, step_id)",
    f"""CREATE TABLE evidence (
        id INTEGER PRIMARY KEY, {_RUN},
        change_id INTEGER NOT NULL REFERENCES changes (id),
        number INTEGER NOT NULL, text TEXT NOT NULL, samples TEXT NOT NULL
    )""",
    "CREATE INDEX evidence_by_change ON evidence (run_id, change_id)",
    f"""CREATE TABLE candidates (
        id INTEGER PRIMARY KEY, {_RUN},
        step_id INTEGER NOT NULL REFERENCES steps (id), number INTEGER NOT NULL,
        parents TEXT NOT NULL, vals TEXT NOT NULL, scores TEXT NOT NULL, verdict TEXT NOT NULL,
        name TEXT NOT NULL DEFAULT '', samples TEXT NOT NULL DEFAULT '[]'
    )""",
    "CREATE INDEX candidates_by_number ON candidates (run_id, number)",
    f"""CREATE TABLE nodes (
        id INTEGER PRIMARY KEY, {_RUN},
        address TEXT NOT NULL, name TEXT NOT NULL, line TEXT NOT NULL, kind TEXT NOT NULL,
        lanes INTEGER, parents TEXT NOT NULL, phase TEXT NOT NULL, time REAL NOT NULL
    )""",
    "CREATE INDEX nodes_by_address ON nodes (run_id, address)",
    f"""CREATE TABLE samples (
        id INTEGER PRIMARY KEY, {_RUN},
        node TEXT NOT NULL, lane INTEGER, phase TEXT NOT NULL, key TEXT,
        prediction TEXT, target TEXT, score REAL, note TEXT, explanation TEXT, success INTEGER NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX samples_by_node ON samples (run_id, node, lane)",
    "CREATE INDEX samples_by_phase ON samples (run_id, phase, key)",
    "CREATE INDEX samples_by_run ON samples (run_id)",
    "CREATE INDEX samples_by_key ON samples (run_id, key, phase, success)",
    f"""CREATE TABLE inputs (
        id INTEGER PRIMARY KEY, {_RUN},
        key TEXT NOT NULL, text TEXT NOT NULL
    )""",
    "CREATE UNIQUE INDEX inputs_by_key ON inputs (run_id, key)",
    f"""CREATE TABLE bodies (
        id INTEGER PRIMARY KEY, {_RUN},
        digest BLOB NOT NULL, packed INTEGER NOT NULL, body BLOB NOT NULL
    )""",
    "CREATE UNIQUE INDEX bodies_by_digest ON bodies (run_id, digest)",
    f"""CREATE TABLE calls (
        id INTEGER PRIMARY KEY, {_RUN},
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
    f"""CREATE TABLE retries (
        id INTEGER PRIMARY KEY, {_RUN},
        address TEXT NOT NULL, attempt INTEGER NOT NULL, error TEXT NOT NULL, wait REAL NOT NULL,
        time REAL NOT NULL
    )""",
    "CREATE INDEX retries_by_address ON retries (run_id, address)",
    f"""CREATE TABLE blocks (
        id INTEGER PRIMARY KEY, {_RUN},
        change_id INTEGER NOT NULL REFERENCES changes (id), number INTEGER NOT NULL,
        text TEXT NOT NULL, step INTEGER NOT NULL, samples TEXT NOT NULL, replaces TEXT,
        races INTEGER NOT NULL, wins INTEGER NOT NULL, losses INTEGER NOT NULL, ties INTEGER NOT NULL,
        effect REAL, low REAL, high REAL
    )""",
    "CREATE INDEX blocks_by_change ON blocks (run_id, change_id)",
)

# Tables with a `run_id`. A table comes before those that it refers to, so rows can be deleted in this order.
OF_A_RUN: Final = (
    "blocks", "evidence", "changes", "candidates", "parameters", "steps", "samples", "inputs", "nodes", "metrics",
    "texts", "tables", "events", "retries", "calls", "bodies",
)  # fmt: skip


# --- Phases ---

_BATCH: Final = re.compile(r"/batch \d+$")

# SQL for the rows of a phase and its batches; its parameters come from `of_phase`.
IN_PHASE: Final = "(phase = ? OR phase > ? AND phase < ?)"


@lru_cache(maxsize=1024)
def phase_of(address: str) -> str:
    """Return the scopes of an address, without the run's own. A gate's are inside its step.

    >>> phase_of("run/epoch 1/step 3/7/12/forward"), phase_of("run/4/chat"), phase_of("/4")
    ('epoch 1/step 3', '', '')
    >>> phase_of("run/fit/9/all/held/start/1/0/forward")
    'held/start'
    """
    parts = address.split("/")
    parts = parts[parts.index("held") :] if "held" in parts else parts
    parts = list(takewhile(lambda part: not part.isdecimal(), parts))
    return "/".join(parts[1:] if parts[:1] in (["run"], [""]) else parts)


def evaluation_of(phase: str) -> str:
    """Return the evaluation that a batch belongs to. Other phases are returned unchanged.

    >>> evaluation_of("fit/val step 2/batch 1"), evaluation_of("epoch 1/step 3")
    ('fit/val step 2', 'epoch 1/step 3')
    """
    return _BATCH.sub("", phase)


def of_phase(phase: str) -> list[str]:
    """Return the parameters of `IN_PHASE`: the phase, and bounds for the names of its batches."""
    return [phase, f"{phase}/batch ", f"{phase}/batch!"]
