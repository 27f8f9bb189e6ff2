"""The page of one sample: its way through the graph, forward and backward, and its other evaluations."""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from typing import Any, Final, NamedTuple

from afnio.tellurio._recording import IN_PHASE, of_phase, unpacked
from afnio.tellurio.studio._runs import RunRow, loaded

SAMPLES_PER_PAGE: Final = 50
NODES: Final = 200
"""Nodes of one path that are followed."""

_PART: Final = re.compile(r"node (\d+)")


def samples_page(db: sqlite3.Connection, run: RunRow, asked: dict[str, str]) -> dict[str, Any]:
    """Return a page of samples, newest first, keyed by the id that the page before ended with."""
    conditions, values = ["run_id = ?"], [run.id]
    if asked.get("before", "").isdecimal():
        conditions.append("id < ?")
        values.append(asked["before"])
    if asked.get("phase"):
        conditions.append(IN_PHASE)
        values += of_phase(asked["phase"])
    if asked.get("success") in ("0", "1"):
        conditions.append("success = ?")
        values.append(asked["success"])
    for word in asked.get("q", "").split()[:5]:
        conditions.append(
            "(instr(lower(prediction), ?) OR instr(lower(target), ?) OR instr(lower(explanation), ?))"
        )
        values += [word.lower()] * 3
    # The conditions are this function's own; what was asked for is bound.
    query = (
        "SELECT id, phase, lane, prediction, target, score, note, success FROM samples "
        f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {SAMPLES_PER_PAGE + 1}"
    )
    rows = [dict(row) for row in db.execute(query, values).fetchall()]
    return {
        "run": run,
        "samples": rows[:SAMPLES_PER_PAGE],
        "next": rows[SAMPLES_PER_PAGE - 1]["id"] if len(rows) > SAMPLES_PER_PAGE else None,
        "asked": {name: asked.get(name, "") for name in ("q", "phase", "success", "before")},
    }


def sample_page(db: sqlite3.Connection, run: RunRow, number: int) -> dict[str, Any] | None:
    """Return what a sample's page shows; None where the run has no such sample."""
    row = db.execute("SELECT * FROM samples WHERE run_id = ? AND id = ?", (run.id, number)).fetchone()
    if row is None:
        return None
    nodes = path_to(db, run.id, row["node"])
    forward = [{**node, "calls": calls_of(db, run.id, node["address"], row["lane"])} for node in nodes]
    return {
        "run": run,
        "sample": dict(row),
        "forward": forward,
        "backward": backward(db, run.id, nodes, row["lane"]),
        "others": others(db, run.id, row),
        "became": became(db, run.id, row),
    }


def path_to(db: sqlite3.Connection, run: str, address: str) -> list[dict[str, Any]]:
    """Return the nodes that led to one, in the order in which a sample went through them."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [address]
    while waiting and len(found) < NODES:
        one = waiting.pop()
        if one in found:
            continue
        row = db.execute("SELECT * FROM nodes WHERE run_id = ? AND address = ?", (run, one)).fetchone()
        if row is None:
            continue
        parents = [parent for parent in loaded(row["parents"], []) if isinstance(parent, str)]
        found[one] = {**dict(row), "from": parents}
        waiting += parents
    # A node is launched after those that it reads, so the order of launches is a topological one.
    return sorted(found.values(), key=lambda node: node["id"])


def calls_of(db: sqlite3.Connection, run: str, node: str, lane: int | None) -> list[dict[str, Any]]:
    """Return a node's calls for one sample, and those that it made for all of them together."""
    rows = db.execute(
        "SELECT id, address, purpose, model, status, attempts, seconds, prompt_tokens, completion_tokens, cost, error "
        "FROM calls WHERE run_id = ? AND address >= ? || '/' AND address < ? || '0' AND (lane IS ? OR lane IS NULL) "
        "ORDER BY id LIMIT 50",
        (run, node, node, lane),
    ).fetchall()
    return [dict(row) for row in rows]


def backward(
    db: sqlite3.Connection, run: str, nodes: list[dict[str, Any]], lane: int | None
) -> list[dict[str, Any]]:
    """Return, for each node of a path, the calls that wrote its sample's feedback, from the loss to the leaves."""
    if not nodes:
        return []
    by_address = {node["address"]: node for node in nodes}
    first = nodes[-1]["id"]
    passes = db.execute(
        "SELECT address, parents FROM nodes WHERE run_id = ? AND kind = 'backward' AND id > ? "
        "AND instr(parents, ?) > 0 ORDER BY id LIMIT 10",
        (run, first, nodes[-1]["address"]),
    ).fetchall()
    found: list[dict[str, Any]] = []
    for one in passes:
        parts = loaded(one["parents"], [])
        if nodes[-1]["address"] not in parts:
            continue
        for call in calls_of(db, run, one["address"], lane):
            part = _PART.search(call["address"][len(one["address"]) :])
            place = int(part.group(1)) if part else -1
            node = by_address.get(parts[place]) if 0 <= place < len(parts) else None
            found.append({"node": node, "call": call})
    order = {node["address"]: place for place, node in enumerate(reversed(nodes))}
    return sorted(found, key=lambda one: order.get(one["node"]["address"], NODES) if one["node"] else NODES)


def others(db: sqlite3.Connection, run: str, row: sqlite3.Row) -> list[dict[str, Any]]:
    """Return the other evaluations of the same sample, in order."""
    if row["key"] is None:
        return []
    rows = db.execute(
        "SELECT id, phase, prediction, score, success FROM samples WHERE run_id = ? AND key = ? ORDER BY id LIMIT 50",
        (run, row["key"]),
    ).fetchall()
    return [dict(one) for one in rows]


def became(db: sqlite3.Connection, run: str, row: sqlite3.Row) -> list[dict[str, Any]]:
    """Return the evidence that this sample stands behind, and the steps that were shown it."""
    rows = db.execute(
        "SELECT e.text, e.samples, s.number AS step FROM evidence e JOIN changes c ON c.id = e.change_id "
        "JOIN steps s ON s.id = c.step_id WHERE e.run_id = ? AND instr(e.samples, ?) > 0 ORDER BY e.id LIMIT 200",
        (run, f'"{row["node"]}"'),
    ).fetchall()
    return [
        {"text": one["text"], "step": one["step"]}
        for one in rows
        if any(
            isinstance(sample, dict)
            and sample.get("node") == row["node"]
            and sample.get("sample") == row["lane"]
            for sample in loaded(one["samples"], [])
        )
    ][:20]


# Pages of calls: a list by key, and one call with all that was said.


CALLS_PER_PAGE: Final = 50
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
    query = f"SELECT {CALL} FROM calls WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {CALLS_PER_PAGE + 1}"
    rows = [dict(row) for row in db.execute(query, values).fetchall()]
    purposes = db.execute(
        "SELECT DISTINCT purpose FROM calls WHERE run_id = ? LIMIT 30", (run.id,)
    ).fetchall()
    return {
        "run": run,
        "calls": rows[:CALLS_PER_PAGE],
        "next": rows[CALLS_PER_PAGE - 1]["id"] if len(rows) > CALLS_PER_PAGE else None,
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


# The long texts of a run, by name, so that a page can show them in parts.


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
