"""Candidates: which of them the parameters held, and what a step that weighed some won and lost by its choice."""

from __future__ import annotations

import json
import sqlite3
from typing import Any, Final, NamedTuple

START: Final = ("start", "incumbent")
"""Verdicts of the candidate that a step found in the parameters."""

KEPT: Final = "(c.verdict IN ('start', 'incumbent') OR c.verdict LIKE 'accepted%')"

TRIALS: Final = (
    "SELECT address FROM steps WHERE run_id = ?1 AND id IN (SELECT step_id FROM candidates WHERE run_id = ?1)"
)
CANDIDATES: Final = f"""
SELECT c.number, c.vals, c.scores, c.verdict, s.number AS step FROM candidates c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number BETWEEN ?3 AND ?4 AND {KEPT} ORDER BY c.id"""
BEGINNING: Final = """
SELECT max(s.number) FROM candidates c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number <= ?3 AND c.verdict IN ('start', 'incumbent')"""
CHANGES: Final = """
SELECT c.before, c.after, s.number AS step FROM changes c JOIN steps s ON s.id = c.step_id
WHERE c.run_id = ?1 AND s.run_id = ?1 AND s.optimizer = ?2 AND s.number BETWEEN ?3 AND ?4 AND c.before != c.after
ORDER BY c.id"""

Values = tuple[Any, ...]


class Candidate(NamedTuple):
    """A candidate and its scores, one for each held-out sample."""

    number: int
    values: Values
    scores: list[float | None]


class Choice(NamedTuple):
    """The candidates that the parameters held before and after a step; the same one where it kept its values."""

    before: Candidate
    after: Candidate

    @property
    def pairs(self) -> list[tuple[float, float]]:
        """The scores of both on the samples that both have."""
        # Samples come in one order, so a candidate that was accepted early has the first of them.
        both = zip(self.before.scores, self.after.scores, strict=False)
        return [(one, other) for one, other in both if one is not None and other is not None]


def choice(db: sqlite3.Connection, run: str, step: int) -> Choice | None:
    """Return what a step chose; None where it weighed no candidates, or where that isn't known.

    A step records the candidate that it found in the parameters when it is the first or, with `Improves`,
    always. From there on the changes say what the parameters held.
    """
    optimizer = db.execute(
        "SELECT optimizer FROM steps WHERE run_id = ? AND number = ?", (run, step)
    ).fetchone()
    if optimizer is None:
        return None
    first = db.execute(BEGINNING, (run, optimizer["optimizer"], step)).fetchone()[0]
    if first is None:
        return None
    span = (run, optimizer["optimizer"], first, step)
    known: dict[Values, Candidate] = {}
    before: Values = ()
    for row in db.execute(CANDIDATES, span):
        found = Candidate(row["number"], _values(row["vals"]), _scores(row["scores"]))
        known[found.values] = found
        if row["verdict"] in START:
            before = found.values
    changes: dict[int, list[tuple[Any, Any]]] = {}
    for row in db.execute(CHANGES, span):
        changes.setdefault(row["step"], []).append((row["before"], row["after"]))
    for number in sorted(changes):
        if number < step:
            before = _changed(before, changes[number]) or before
    after = _changed(before, changes.get(step, []))
    if after is None or before not in known or after not in known:
        return None
    return Choice(known[before], known[after])


def trial_nodes(db: sqlite3.Connection, run: str) -> list[str]:
    """Return the addresses of the evaluations that a step made of its candidates, whose values nobody else saw."""
    steps = {row["address"] for row in db.execute(TRIALS, (run,))}
    if not steps:
        return []
    nodes = db.execute("SELECT address FROM nodes WHERE run_id = ? AND kind = 'evaluator'", (run,))
    return [row["address"] for row in nodes if _is_within(row["address"], steps)]


def _is_within(address: str, steps: set[str]) -> bool:
    while "/" in address:
        address = address.rpartition("/")[0]
        if address in steps:
            return True
    return False


def _changed(values: Values, changes: list[tuple[Any, Any]]) -> Values | None:
    """Return the values after a step's changes; None where these are about others."""
    found, left = list(values), set(range(len(values)))
    for before, after in changes:
        place = next((one for one in sorted(left) if found[one] == before), None)
        if place is None:
            return None
        found[place] = after
        left.remove(place)
    return tuple(found)


def _values(text: str) -> Values:
    return tuple(value if isinstance(value, str) else json.dumps(value) for value in _list(text))


def _scores(text: str) -> list[float | None]:
    return [score if isinstance(score, int | float) else None for score in _list(text)]


def _list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
