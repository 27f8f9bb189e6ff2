"""The page of one sample: its way through the graph, forward and backward, and its other evaluations."""

from __future__ import annotations

import re
import sqlite3
from typing import Any, Final

from afnio.tellurio.phase import IN_PHASE, of_phase
from afnio.tellurio.studio.run_rows import RunRow, loaded

PAGE: Final = 50
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
        f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT {PAGE + 1}"
    )
    rows = [dict(row) for row in db.execute(query, values).fetchall()]
    return {
        "run": run,
        "samples": rows[:PAGE],
        "next": rows[PAGE - 1]["id"] if len(rows) > PAGE else None,
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
