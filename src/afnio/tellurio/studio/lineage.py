"""Lineage: which candidate a pool optimizer made from which, as a tree drawn on the server."""

from __future__ import annotations

import sqlite3
from statistics import fmean
from typing import Any, Final, NamedTuple

from afnio.tellurio.candidates import choice
from afnio.tellurio.studio.run_rows import RunRow, loaded
from afnio.tellurio.studio.step_page import shown_diff

LAST: Final = "SELECT max(s.number) FROM candidates c JOIN steps s ON s.id = c.step_id WHERE c.run_id = ?"

MOST: Final = 500
"""Candidates that are drawn, the newest."""
ACROSS: Final = 46
DOWN: Final = 62
EDGE: Final = 28


class Member(NamedTuple):
    """A candidate and its place in the drawing; `mean` is its mean score, None where nothing was scored."""

    number: int
    parents: list[int]
    step: int
    values: list[str]
    mean: float | None
    scored: int
    verdict: str
    accepted: bool
    x: float
    y: float


def lineage_page(db: sqlite3.Connection, run: RunRow) -> dict[str, Any]:
    """Return the candidates of a run, what each was made from, and where it is drawn."""
    members = _placed(_rows(db, run.id))
    by_number = {member.number: member for member in members}
    edges = [
        (by_number[parent], member) for member in members for parent in member.parents if parent in by_number
    ]
    best = _best(db, run.id, members)
    line = _ancestors(best, by_number)
    return {
        "run": run,
        "members": members,
        "edges": [(*edge, edge[0].number in line and edge[1].number in line) for edge in edges],
        "best": best,
        "width": max((member.x for member in members), default=0) + EDGE,
        "height": max((member.y for member in members), default=0) + EDGE,
    }


def candidate_page(db: sqlite3.Connection, run: RunRow, number: int) -> dict[str, Any] | None:
    """Return one candidate, its values as differences from its first parent's."""
    members = {member.number: member for member in _placed(_rows(db, run.id))}
    member = members.get(number)
    if member is None:
        return None
    parent = members.get(member.parents[0]) if member.parents else None
    before = parent.values if parent else []
    return {
        "run": run,
        "member": member,
        "parent": parent,
        "values": [
            shown_diff(before[place] if place < len(before) else value, value)
            for place, value in enumerate(member.values)
        ],
    }


def _best(db: sqlite3.Connection, run: str, members: list[Member]) -> Member | None:
    """Return the candidate whose values the parameters hold at the end; where that isn't known, the best accepted."""
    last = db.execute(LAST, (run,)).fetchone()[0]
    found = None if last is None else choice(db, run, last)
    if found is not None:
        return next((member for member in members if member.number == found.after.number), None)
    accepted = [member for member in members if member.accepted and member.mean is not None]
    return max(accepted, key=lambda member: (member.mean or 0.0, -member.number), default=None)


def _rows(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT c.*, s.number AS step FROM candidates c JOIN steps s ON s.id = c.step_id WHERE c.run_id = ? "
        "ORDER BY c.id DESC LIMIT ?",
        (run, MOST),
    ).fetchall()
    # An accepted candidate counts as it was accepted, though later steps weigh others against it; another that is
    # weighed again, as it was weighed last. Either belongs to the step that made it.
    found: dict[int, dict[str, Any]] = {}
    for row in reversed(rows):
        known = found.get(row["number"])
        if known is None:
            found[row["number"]] = dict(row)
        elif not known["verdict"].startswith("accepted"):
            found[row["number"]] = {**dict(row), "step": known["step"], "parents": known["parents"]}
    return [found[number] for number in sorted(found)]


def _placed(rows: list[dict[str, Any]]) -> list[Member]:
    depths: dict[int, int] = {}
    width: dict[int, int] = {}
    members = []
    for row in rows:
        # A parent's number is lower than its child's; a row that says otherwise is no loop here.
        parents = [
            parent
            for parent in loaded(row["parents"], [])
            if isinstance(parent, int) and parent < row["number"]
        ]
        depth = 1 + max((depths[parent] for parent in parents if parent in depths), default=-1)
        place = width.get(depth, 0)
        depths[row["number"]], width[depth] = depth, place + 1
        scores = [score for score in loaded(row["scores"], []) if isinstance(score, int | float)]
        members.append(
            Member(
                number=row["number"],
                parents=parents,
                step=row["step"],
                values=[value if isinstance(value, str) else str(value) for value in loaded(row["vals"], [])],
                mean=fmean(scores) if scores else None,
                scored=len(scores),
                verdict=row["verdict"],
                accepted=row["verdict"].startswith("accepted"),
                x=EDGE + place * ACROSS,
                y=EDGE + depth * DOWN,
            )
        )
    return members


def _ancestors(best: Member | None, by_number: dict[int, Member]) -> set[int]:
    """Return the numbers of a candidate and of all that it comes from."""
    found: set[int] = set()
    waiting = [best.number] if best else []
    while waiting:
        number = waiting.pop()
        if number not in found and number in by_number:
            found.add(number)
            waiting += by_number[number].parents
    return found
