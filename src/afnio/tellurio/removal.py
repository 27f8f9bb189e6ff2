"""Removal: take a run out of its project's file, with the journal beside it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from afnio.tellurio.lease import lease_path
from afnio.tellurio.schema import connect
from afnio.tellurio.tables import OF_A_RUN


def remove_run(store: Path, run_id: str) -> None:
    """Delete a run's rows and its journal; the room in the file is used again by later runs.

    Raises:
        sqlite3.Error: if the file can't be written.
    """
    with closing(connect(store)) as connection:
        # What is deleted must not be found in the file: prompts may hold what their owner wants gone.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN IMMEDIATE")
        try:
            for table in OF_A_RUN:
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            connection.execute("COMMIT")
        except sqlite3.Error:
            connection.execute("ROLLBACK")
            raise
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folder = store.with_suffix("")
    for path in (*folder.glob(f"{run_id}.journal*"), lease_path(store, run_id)):
        path.unlink(missing_ok=True)
