"""The page of one step: what it changed, on which evidence, and which samples it won and lost."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from statistics import fmean
from typing import Any, Final, NamedTuple

from afnio.tellurio._queries import Choice, choice, trial_nodes
from afnio.tellurio.studio._runs import RunRow, loaded
from afnio.tellurio.studio._text import Piece, word_diff

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
MOST_CHARACTERS: Final = 200_000
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
        sentences = changed_sentences(row["before"][:MOST_CHARACTERS], row["after"][:MOST_CHARACTERS], texts)
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


# Which feedback a changed sentence came from, guessed by the words that both share.
#
# No optimizer says which of its evidence became which sentence, so this is a match by overlap and is
# shown as one.


FEWEST: Final = 2
"""Words that have to be shared, one of them new in the text: one alone is chance."""
LEAST: Final = 0.2
"""Share of the sentence's weight that has to be shared."""
ALIKE: Final = 0.5
"""How alike an old sentence has to be for a new one to count as its new wording."""
MOST_SENTENCES: Final = 400
"""Old sentences that a new one is held against."""

LONGEST: Final = 1_000
"""Characters of a sentence that are looked at for that."""

_END: Final = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD: Final = re.compile(r"[^\W\d_]{2,}(?:['\u2019-][^\W\d_]+)*")
_COMMON: Final = frozenset(
    _WORD.findall(
        """the and for that this with are was were not but you your its has have had will would should must can could
        may might they them their there then than from into when where which what who how all any each one only also
        such very more most other some been being does did doing about over under of to in on at by is it its an as
        or if be do no so we he she up don't doesn't isn't"""
    )
)


class Match(NamedTuple):
    """One feedback that shares words with a sentence: its number, the words, and their share of the weight."""

    number: int
    words: tuple[str, ...]
    share: float


class ChangedSentence(NamedTuple):
    """A sentence of the new text that the old one didn't have, and the feedback that sounds like it.

    Attributes:
        pieces: the sentence, what is new in it marked; all of it, where no old sentence is like it.
    """

    text: str
    pieces: tuple[Piece, ...]
    matches: tuple[Match, ...]


def changed_sentences(before: str, after: str, evidence: Sequence[str]) -> list[ChangedSentence]:
    """Return what is new in `after`, sentence by sentence, with the evidence that shares its words.

    Rare words weigh more than those that all evidence has in common.

    >>> [found] = changed_sentences("Be kind.", "Be kind. Label thanks positive.", ["thanks are positive"])
    >>> found.text, found.matches[0].words
    ('Label thanks positive.', ('positive', 'thanks'))
    """
    known = {_normal(sentence) for sentence in sentences(before)}
    words = [content_words(text) for text in evidence]
    frequency = Counter(word for one in words for word in one)
    weights = {word: math.log(1 + len(words) / count) for word, count in frequency.items()}
    fresh = [one for one in sentences(after) if _normal(one) not in known]
    old = {word for sentence in known for word in content_words(sentence)}
    wordings = sentences(before)[:MOST_SENTENCES]
    return [
        ChangedSentence(text, _marked(text, wordings), _matches(content_words(text), words, weights, old))
        for text in fresh
    ]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line's end ends one.

    >>> sentences("Be brief. Use 1.5 lines!\\nAlways")
    ['Be brief.', 'Use 1.5 lines!', 'Always']
    """
    return [sentence.strip() for sentence in _END.split(text) if sentence.strip()]


def content_words(text: str) -> frozenset[str]:
    """Return the words that carry meaning, in lower case."""
    return frozenset(_WORD.findall(text.lower())) - _COMMON


def _marked(text: str, old: Sequence[str]) -> tuple[Piece, ...]:
    nearest = get_close_matches(text[:LONGEST], [one[:LONGEST] for one in old], n=1, cutoff=ALIKE)
    if not nearest:
        return (Piece("new", text),)
    return tuple(piece for piece in word_diff(nearest[0], text) if piece.kind != "gone")


def _matches(
    sentence: frozenset[str], evidence: Sequence[frozenset[str]], weights: dict[str, float], old: set[str]
) -> tuple[Match, ...]:
    # Words that the old text had already say little about where a new sentence comes from.
    heavy = {word: weights.get(word, 1.0) * (0.3 if word in old else 1.0) for word in sentence}
    whole = sum(heavy.values()) or 1.0
    fresh = sentence - old
    found = []
    for index, words in enumerate(evidence):
        shared = sorted(sentence & words)
        share = sum(heavy[word] for word in shared) / whole
        if len(shared) >= FEWEST and share >= LEAST and (fresh.intersection(shared) or not fresh):
            found.append(Match(index, tuple(shared), share))
    return tuple(sorted(found, key=lambda match: (-match.share, match.number)))


def _normal(sentence: str) -> str:
    return " ".join(sentence.lower().split())


# Lineage: which candidate a pool optimizer made from which, as a tree drawn on the server.


LAST: Final = "SELECT max(s.number) FROM candidates c JOIN steps s ON s.id = c.step_id WHERE c.run_id = ?"

MOST_CANDIDATES: Final = 500
"""Candidates that are drawn, the newest."""
ACROSS: Final = 46
DOWN: Final = 62
MARGIN: Final = 28


class LineageNode(NamedTuple):
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
        "width": max((member.x for member in members), default=0) + MARGIN,
        "height": max((member.y for member in members), default=0) + MARGIN,
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


def _best(db: sqlite3.Connection, run: str, members: list[LineageNode]) -> LineageNode | None:
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
        (run, MOST_CANDIDATES),
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


def _placed(rows: list[dict[str, Any]]) -> list[LineageNode]:
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
            LineageNode(
                number=row["number"],
                parents=parents,
                step=row["step"],
                values=[value if isinstance(value, str) else str(value) for value in loaded(row["vals"], [])],
                mean=fmean(scores) if scores else None,
                scored=len(scores),
                verdict=row["verdict"],
                accepted=row["verdict"].startswith("accepted"),
                x=MARGIN + place * ACROSS,
                y=MARGIN + depth * DOWN,
            )
        )
    return members


def _ancestors(best: LineageNode | None, by_number: dict[int, LineageNode]) -> set[int]:
    """Return the numbers of a candidate and of all that it comes from."""
    found: set[int] = set()
    waiting = [best.number] if best else []
    while waiting:
        number = waiting.pop()
        if number not in found and number in by_number:
            found.add(number)
            waiting += by_number[number].parents
    return found
