"""The long texts of a run, by name, so that a page can show them in parts."""

from __future__ import annotations

import sqlite3
from typing import Final

from afnio.tellurio.studio.call_page import bodies, message

COLUMNS: Final = {
    "change": ("changes", ("before", "after")),
    "sample": ("samples", ("prediction", "target", "explanation")),
    "logged": ("texts", ("text",)),
}
"""What may be asked for: a word of the address, its table, the columns of that."""


def whole_text(db: sqlite3.Connection, run: str, kind: str, number: int, part: str) -> str | None:
    """Return a text: of a call (`reply`, or the number of a message), a change, a sample or a logged text.

    None is what isn't there.
    """
    if kind == "call":
        return _of_call(db, run, number, part)
    table, columns = COLUMNS.get(kind, ("", ()))
    if part not in columns:
        return None
    # Table and column are of the list above.
    row = db.execute(f"SELECT {part} FROM {table} WHERE run_id = ? AND id = ?", (run, number)).fetchone()
    return None if row is None or row[0] is None else str(row[0])


def _of_call(db: sqlite3.Connection, run: str, number: int, part: str) -> str | None:
    row = db.execute(
        "SELECT messages, reply FROM calls WHERE run_id = ? AND id = ?", (run, number)
    ).fetchone()
    if row is None:
        return None
    if part == "reply":
        wanted = str(row["reply"] or "")
    else:
        numbers = row["messages"].split(",")
        wanted = numbers[int(part)] if part.isdecimal() and int(part) < len(numbers) else ""
    found = bodies(db, run, wanted)
    return message(found[0]).text if found else None
