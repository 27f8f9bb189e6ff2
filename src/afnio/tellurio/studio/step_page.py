"""The page of one step: what it changed, on which evidence, and which samples it won and lost."""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from afnio.tellurio.candidates import Choice, choice, trial_nodes
from afnio.tellurio.studio.overlap import ChangedSentence, changed_sentences
from afnio.tellurio.studio.run_rows import RunRow, loaded
from afnio.tellurio.studio.word_diff import Piece, word_diff

EVIDENCE: Final = 200
"""Evidence of one change that is shown and matched."""
SHOWN: Final = 20_000
"""Characters of one piece of a diff that are shown; the whole text has a page of its own."""
FOLDED: Final = 700
"""Unchanged characters from which the middle of a piece is folded away."""
EDGE: Final = 200
SENTENCES: Final = 60
"""Changed sentences of one text that are held against the feedback."""
OUTCOMES: Final = 100
"""Samples won, and samples lost, that are listed."""
MOST: Final = 200_000
"""Characters of a text that sentences are looked for in."""

# When a sample's answer was launched tells which prompt it saw: a launch captures what is there. Evaluations of a
# step's candidates are no part of this, as they saw values of their own.
# The other columns are those of the row with the highest or the lowest time, as SQLite has it.
SEEN: Final = """
SELECT s.key AS key, s.id AS id, s.score AS score, {extreme}(n.time) AS time
FROM nodes n CROSS JOIN samples s ON s.run_id = n.run_id AND s.node = n.address
WHERE n.run_id = :run AND n.kind = 'evaluator' AND n.time {side} :at AND s.key IS NOT NULL AND s.score IS NOT NULL
    AND n.address NOT IN (SELECT value FROM json_each(:trials))
GROUP BY s.key"""
BEFORE: Final = SEEN.format(extreme="max", side="<=")
AFTER: Final = SEEN.format(extreme="min", side=">")
SAMPLE: Final = "SELECT prediction, target, phase, lane FROM samples WHERE id = ?"


class Shown(NamedTuple):
    """A piece of a diff as a page shows it: its beginning, how much is folded away, its end, what is cut off."""

    kind: str
    head: str
    folded: str
    tail: str
    cut: int


def step_page(db: sqlite3.Connection, run: RunRow, number: int) -> dict[str, Any] | None:
    """Return what a step's page shows; None where the run has no such step."""
    step = db.execute("SELECT * FROM steps WHERE run_id = ? AND number = ?", (run.id, number)).fetchone()
    if step is None:
        return None
    rows = db.execute(
        "SELECT * FROM changes WHERE run_id = ? AND step_id = ? ORDER BY id", (run.id, step["id"])
    )
    last = db.execute("SELECT max(number) FROM steps WHERE run_id = ?", (run.id,)).fetchone()[0]
    candidates = db.execute(
        "SELECT count(*) FROM candidates WHERE run_id = ? AND step_id = ?", (run.id, step["id"])
    ).fetchone()[0]
    return {
        "run": run,
        "step": dict(step),
        "last": last,
        "candidates": candidates,
        "changes": [_change(db, run, row) for row in rows.fetchall()],
        "choice": _choice(choice(db, run.id, number)),
        **outcomes(db, run.id, step["time"]),
    }


def shown_diff(before: str, after: str) -> list[Shown]:
    """Return the pieces of a diff as a page shows them: long unchanged ones folded, very long ones cut.

    >>> shown_diff("a b", "a c")[0]
    Shown(kind='same', head='a ', folded='', tail='', cut=0)
    """
    pieces = word_diff(before, after)
    return [_shown(piece, place, len(pieces)) for place, piece in enumerate(pieces)]


def _shown(piece: Piece, place: int, count: int) -> Shown:
    text = piece.text
    if piece.kind == "same" and len(text) > FOLDED:
        # At the text's own ends there is no change to give a context to.
        head = "" if place == 0 else text[:EDGE]
        tail = "" if place == count - 1 else text[-EDGE:]
        middle = text[len(head) : len(text) - len(tail)]
        return Shown(piece.kind, head, middle[:SHOWN], tail, max(0, len(middle) - SHOWN))
    return Shown(piece.kind, text[:SHOWN], "", "", max(0, len(text) - SHOWN))


def _change(db: sqlite3.Connection, run: RunRow, row: sqlite3.Row) -> dict[str, Any]:
    evidence = [
        {
            "number": one["number"],
            "text": one["text"],
            "samples": _behind(db, run.id, loaded(one["samples"], [])),
        }
        for one in db.execute(
            "SELECT number, text, samples FROM evidence WHERE run_id = ? AND change_id = ? ORDER BY number LIMIT ?",
            (run.id, row["id"], EVIDENCE),
        ).fetchall()
    ]
    sentences: Sequence[ChangedSentence] = ()
    if row["before"] != row["after"]:
        texts = [one["text"][:SHOWN] for one in evidence]
        sentences = changed_sentences(row["before"][:MOST], row["after"][:MOST], texts)
    used = {match.number for sentence in sentences for match in sentence.matches}
    return {
        **dict(row),
        "pieces": shown_diff(row["before"], row["after"]),
        "unchanged": row["before"] == row["after"],
        "evidence": evidence,
        "sentences": sentences[:SENTENCES],
        "unmatched": [one for place, one in enumerate(evidence) if place not in used],
    }


def _behind(db: sqlite3.Connection, run: str, samples: Any) -> list[dict[str, Any]]:
    """Return the samples behind a piece of evidence, with the row of each that still has one."""
    found = []
    for sample in samples[:20] if isinstance(samples, list) else []:
        if not isinstance(sample, dict):
            continue
        row = db.execute(
            "SELECT id, prediction, target, score, lane, phase FROM samples "
            "WHERE run_id = ? AND node = ? AND lane IS ?",
            (run, sample.get("node"), sample.get("sample")),
        ).fetchone()
        said = {
            "prediction": sample.get("prediction"),
            "target": sample.get("target"),
            "score": sample.get("score"),
        }
        known = dict(row) if row is not None else {"id": None, "lane": sample.get("sample"), "phase": ""}
        found.append(
            {**said, **{name: value for name, value in known.items() if value is not None}, "id": known["id"]}
        )
    return found


def outcomes(db: sqlite3.Connection, run: str, at: float) -> dict[str, Any]:
    """Return how samples did before and after a time: for each the last evaluation before and the first after."""
    asked = {"run": run, "at": at, "trials": json.dumps(trial_nodes(db, run))}
    before = {row["key"]: row for row in db.execute(BEFORE, asked)}
    times = [
        row["time"] for row in db.execute("SELECT time FROM steps WHERE run_id = ? ORDER BY time", (run,))
    ]
    pairs = []
    for row in db.execute(AFTER, asked):
        first = before.get(row["key"])
        if first is not None:
            between = bisect(times, row["time"]) - bisect(times, first["time"]) - 1
            pairs.append((max(0, between), row["id"], first, row))
    pairs.sort(key=lambda pair: pair[:2])
    direct = sum(pair[0] == 0 for pair in pairs)
    return {"direct": _counted(db, pairs[:direct]), "apart": _counted(db, pairs[direct:])}


Pair = tuple[int, int, sqlite3.Row, sqlite3.Row]


def _counted(db: sqlite3.Connection, pairs: Sequence[Pair]) -> dict[str, Any]:
    won = [pair for pair in pairs if pair[3]["score"] > pair[2]["score"]]
    lost = [pair for pair in pairs if pair[3]["score"] < pair[2]["score"]]
    return {
        "pairs": len(pairs),
        "won": [_told(db, pair) for pair in won[:OUTCOMES]],
        "won_count": len(won),
        "lost": [_told(db, pair) for pair in lost[:OUTCOMES]],
        "lost_count": len(lost),
        "same_count": len(pairs) - len(won) - len(lost),
    }


def _choice(found: Choice | None) -> dict[str, Any] | None:
    """Return what the chosen candidate won and lost on the held-out samples; None where nothing was chosen."""
    if found is None:
        return None
    pairs = found.pairs
    won, lost = (sum(sign * (after - before) > 0 for before, after in pairs) for sign in (1, -1))
    return {
        "before": found.before.number,
        "after": found.after.number,
        "kept": found.before.values == found.after.values,
        "pairs": len(pairs),
        "won_count": won,
        "lost_count": lost,
        "same_count": len(pairs) - won - lost,
        "means": tuple(fmean(scores) for scores in zip(*pairs, strict=True)) if pairs else (None, None),
    }


def _told(db: sqlite3.Connection, pair: Pair) -> dict[str, Any]:
    between, _, first, second = pair
    before = db.execute(SAMPLE, (first["id"],)).fetchone()
    after = db.execute(SAMPLE, (second["id"],)).fetchone()
    return {
        "before": first["score"],
        "after": second["score"],
        "before_prediction": before["prediction"],
        "after_prediction": after["prediction"],
        "after_id": second["id"],
        "after_phase": after["phase"],
        "lane": after["lane"],
        "target": after["target"],
        "between": between,
    }
