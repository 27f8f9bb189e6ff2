"""Pages of calls: a list by key, and one call with all that was said."""

from __future__ import annotations

import json
import sqlite3
import zlib
from typing import Any, Final, NamedTuple

from afnio.tellurio.bodies import unpacked
from afnio.tellurio.phase import IN_PHASE, of_phase
from afnio.tellurio.studio.run_rows import RunRow, loaded

PAGE: Final = 50
NUMBERS: Final = 32_000
"""More bodies than one query may name."""

CALL: Final = (
    "id, address, node, lane, phase, purpose, model, status, attempts, seconds, waited, ended, prompt_tokens, "
    "completion_tokens, cost, error"
)


class Message(NamedTuple):
    """One message or reply: who says it, the text, and what else it holds as JSON."""

    role: str
    text: str
    rest: str


def calls_page(db: sqlite3.Connection, run: RunRow, asked: dict[str, str]) -> dict[str, Any]:
    """Return a page of calls, newest first, keyed by the id that the page before ended with."""
    conditions, values = ["run_id = ?"], [run.id]
    if asked.get("before", "").isdecimal():
        conditions.append("id < ?")
        values.append(asked["before"])
    if asked.get("purpose"):
        conditions.append("purpose = ?")
        values.append(asked["purpose"])
    if asked.get("phase"):
        conditions.append(IN_PHASE)
        values += of_phase(asked["phase"])
    if asked.get("status") == "failed":
        conditions.append("status = 'failed'")
    elif asked.get("status") == "retried":
        conditions.append("attempts > 1")
    elif asked.get("status") in ("ok", "cancelled", "replayed"):
        conditions.append("status = ?")
        values.append(asked["status"])
    for word in asked.get("q", "").split()[:5]:
        conditions.append("(instr(lower(address), ?) OR instr(lower(model), ?) OR instr(lower(error), ?))")
        values += [word.lower()] * 3
    # The conditions are this function's own; what was asked for is bound.
    query = f"SELECT {CALL} FROM calls WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {PAGE + 1}"
    rows = [dict(row) for row in db.execute(query, values).fetchall()]
    purposes = db.execute(
        "SELECT DISTINCT purpose FROM calls WHERE run_id = ? LIMIT 30", (run.id,)
    ).fetchall()
    return {
        "run": run,
        "calls": rows[:PAGE],
        "next": rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
        "purposes": sorted(row["purpose"] for row in purposes),
        "asked": {name: asked.get(name, "") for name in ("q", "purpose", "status", "phase", "before")},
    }


def call_page(db: sqlite3.Connection, run: RunRow, number: int) -> dict[str, Any] | None:
    """Return all of one call; None where the run has no such call."""
    row = db.execute("SELECT * FROM calls WHERE run_id = ? AND id = ?", (run.id, number)).fetchone()
    if row is None:
        return None
    retries = db.execute(
        "SELECT attempt, error, wait FROM retries WHERE run_id = ? AND address = ? ORDER BY id LIMIT 50",
        (run.id, row["address"]),
    ).fetchall()
    sample = (
        db.execute(
            "SELECT id FROM samples WHERE run_id = ? AND phase = ? AND lane IS ? AND node IN "
            "(SELECT address FROM nodes WHERE run_id = ? AND (address = ? OR instr(parents, ?) > 0) LIMIT 20) LIMIT 1",
            (run.id, row["phase"], row["lane"], run.id, row["node"], json.dumps(row["node"])),
        ).fetchone()
        if row["lane"] is not None
        else None
    )
    return {
        "run": run,
        "call": dict(row),
        "messages": [message(body) for body in bodies(db, run.id, row["messages"])],
        "reply": next((message(body) for body in bodies(db, run.id, str(row["reply"] or ""))), None),
        "params": next((loaded(body) for body in bodies(db, run.id, str(row["params"] or ""))), None),
        "retries": [dict(one) for one in retries],
        "sample": sample["id"] if sample else None,
    }


def bodies(db: sqlite3.Connection, run: str, numbers: str) -> list[str]:
    """Return the JSON of the bodies of these numbers ("3,17,4"), in this order."""
    wanted = [int(number) for number in numbers.split(",") if number.strip().isdecimal()][:NUMBERS]
    if not wanted:
        return []
    marks = ",".join("?" * len(set(wanted)))
    rows = db.execute(
        f"SELECT id, packed, body FROM bodies WHERE run_id = ? AND id IN ({marks})",
        (run, *dict.fromkeys(wanted)),
    )
    found = {row["id"]: _unpacked(row) for row in rows}
    return [found[number] for number in wanted if number in found]


def message(body: str) -> Message:
    """Return a message or a reply for reading.

    >>> message('{"role": "user", "content": "Hello"}')
    Message(role='user', text='Hello', rest='')
    """
    value = loaded(body, body)
    if not isinstance(value, dict):
        return Message("", value if isinstance(value, str) else _pretty(value), "")
    content = value.get("content")
    rest = {
        name: part
        for name, part in value.items()
        if name not in ("role", "content")
        and part not in (None, [], "", {})
        and name not in ("usage", "model")
    }
    text = content if isinstance(content, str) else "" if content is None else _pretty(content)
    return Message(str(value.get("role", "")), text, _pretty(rest) if rest else "")


def _unpacked(row: sqlite3.Row) -> str:
    try:
        return unpacked(row["packed"], row["body"])
    except (zlib.error, UnicodeDecodeError):
        return json.dumps("(this text is damaged in the store)")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)
