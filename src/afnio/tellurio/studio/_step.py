"""The pages of one step and of the candidates that steps weighed.

A step's page answers "what did it change, why, and did it help?":

* Each change is a word diff, with the feedback that the proposer was shown. An optimizer that edits by block records
  where each block comes from and how candidates with it did; the page shows that. Others don't record which feedback
  became which sentence. `changed_sentences` guesses it by the words that they share, and the page presents it as a
  guess.
* A race is a table: its candidates down, its samples across.
* Whether it helped is counted in two ways. If the step chose between candidates, both were scored on the same
  held-out samples, and these scores decide. Otherwise each sample's last evaluation before the step is held against
  its first one after it. If other steps ended in between, the difference may be due to them, so those samples are
  counted apart.

The lineage draws which candidate was made from which.
"""

from __future__ import annotations

import math
import re
from bisect import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from statistics import fmean
from typing import Any, Final, NamedTuple

from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import CandidateRecord, ChangeRecord, Choice, RunRecord, ScoredSample
from afnio.tellurio.studio._text import Piece, word_diff
from afnio.tellurio.studio._times import waterfall

# The most pieces of feedback on one change that are shown and matched.
EVIDENCE: Final = 200
# The most samples behind one piece of feedback.
BEHIND: Final = 20
# The most characters of one piece of a diff; the whole text has its own page.
SHOWN: Final = 20_000
# An unchanged piece with more characters than this is folded in the middle.
FOLDED: Final = 700
# Characters that stay visible at each end of a folded piece.
EDGE: Final = 200
# The most changed sentences of one text that are shown with their feedback.
SENTENCES: Final = 60
# The most blocks of one text that are shown.
BLOCKS: Final = 100
# The most edits that were left out whose reasons are shown.
DROPPED: Final = 20
# The most candidates of a race that are shown.
RACERS: Final = 60
# The most samples of a race that are shown.
LAPS: Final = 64
# The most samples that are listed as won, and as lost.
OUTCOMES: Final = 100
# Characters of a text that are searched for changed sentences.
MOST_CHARACTERS: Final = 200_000


def step_page(reader: StoreReader, run: RunRecord, number: int) -> dict[str, Any] | None:
    """Return the page of a step; None if the run has no such step."""
    step = reader.step(run.id, number)
    if step is None:
        return None
    return {
        "run": run,
        "step": step,
        "last": reader.step_count(run.id),
        "candidates": reader.candidate_counts(run.id).get(step.id, 0),
        "changes": [_change(reader, run, change) for change in step.changes],
        "choice": _choice(reader.choice(run.id, number)),
        "race": race_table(reader.race(run.id, number)),
        "waterfall": waterfall(reader, run.id, number),
        **outcomes(reader, run.id, step.time),
    }


def _change(reader: StoreReader, run: RunRecord, change: ChangeRecord) -> dict[str, Any]:
    evidence: list[dict[str, Any]] = [
        {"number": one.number, "text": one.text, "samples": _behind(reader, run.id, one.samples)}
        for one in reader.evidence(run.id, change, EVIDENCE)
    ]
    blocks = reader.blocks(run.id, change)
    sentences: Sequence[ChangedSentence] = ()
    if not blocks and change.before != change.after:
        texts = [one["text"][:SHOWN] for one in evidence]
        sentences = changed_sentences(change.before[:MOST_CHARACTERS], change.after[:MOST_CHARACTERS], texts)
    used = {match.number for sentence in sentences for match in sentence.matches}
    return {
        "id": change.id,
        "role": change.role,
        "rejected": change.rejected,
        "pieces": shown_diff(change.before, change.after),
        "unchanged": change.before == change.after,
        "evidence": evidence,
        "blocks": blocks[:BLOCKS],
        "more_blocks": len(blocks[BLOCKS:]),
        "reach": max(
            (abs(end) for one in blocks for end in (one.low, one.high) if end is not None), default=0.0
        ),
        "dropped": change.dropped[:DROPPED],
        "more_dropped": len(change.dropped[DROPPED:]),
        "sentences": sentences[:SENTENCES],
        "unmatched": [one for place, one in enumerate(evidence) if place not in used],
    }


def _behind(reader: StoreReader, run: str, samples: list[Any]) -> list[dict[str, Any]]:
    """Return the samples behind a piece of feedback.

    The feedback names each by its evaluator's address and its lane. The sample's own row, if it's there, knows more.
    """
    found = []
    for sample in samples[:BEHIND]:
        if not isinstance(sample, dict):
            continue
        row = reader.sample_at(run, sample.get("node"), sample.get("sample"))
        facts = {} if row is None else {name: part for name, part in asdict(row).items() if part is not None}
        fields = {"id": None, "lane": sample.get("sample")}
        fields |= {name: sample.get(name) for name in ("prediction", "target")}
        found.append({**fields, **facts})
    return found


class Shown(NamedTuple):
    """A piece of a diff as a page shows it: its beginning, a middle to unfold, its end, and how much is left out."""

    kind: str
    head: str
    folded: str
    tail: str
    cut: int


def shown_diff(before: str, after: str) -> list[Shown]:
    """Return a diff with long unchanged pieces folded, and very long pieces cut.

    >>> shown_diff("a b", "a c")[0]
    Shown(kind='same', head='a ', folded='', tail='', cut=0)
    """
    pieces = word_diff(before, after)
    return [_shown(piece, place, len(pieces)) for place, piece in enumerate(pieces)]


def _shown(piece: Piece, place: int, count: int) -> Shown:
    text = piece.text
    if piece.kind == "same" and len(text) > FOLDED:
        # The visible ends are context for the changes next to them. At the text's own ends there is no change.
        head = "" if place == 0 else text[:EDGE]
        tail = "" if place == count - 1 else text[-EDGE:]
        middle = text[len(head) : len(text) - len(tail)]
        return Shown(piece.kind, head, middle[:SHOWN], tail, max(0, len(middle) - SHOWN))
    return Shown(piece.kind, text[:SHOWN], "", "", max(0, len(text) - SHOWN))


# Won and lost.

# How many other steps ended between two evaluations of a sample, and the evaluations.
Pair = tuple[int, ScoredSample, ScoredSample]


def outcomes(reader: StoreReader, run: str, at: float) -> dict[str, Any]:
    """Return how samples did before and after a time: those with no other step in between, and the rest."""
    before, after = reader.scores_around(run, at)
    times = reader.step_times(run)
    pairs: list[Pair] = []
    for second in after:
        first = before.get(second.key)
        if first is not None:
            between = bisect(times, second.time) - bisect(times, first.time) - 1
            pairs.append((max(0, between), first, second))
    pairs.sort(key=lambda pair: (pair[0], pair[2].id))
    direct = sum(pair[0] == 0 for pair in pairs)
    return {"direct": _counted(reader, run, pairs[:direct]), "apart": _counted(reader, run, pairs[direct:])}


def _counted(reader: StoreReader, run: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    won = [pair for pair in pairs if pair[2].score > pair[1].score]
    lost = [pair for pair in pairs if pair[2].score < pair[1].score]
    return {
        "pairs": len(pairs),
        "won": [_outcome(reader, run, pair) for pair in won[:OUTCOMES]],
        "won_count": len(won),
        "lost": [_outcome(reader, run, pair) for pair in lost[:OUTCOMES]],
        "lost_count": len(lost),
        "same_count": len(pairs) - len(won) - len(lost),
    }


def _outcome(reader: StoreReader, run: str, pair: Pair) -> dict[str, Any]:
    between, first, second = pair
    before, after = reader.sample(run, first.id), reader.sample(run, second.id)
    assert before is not None  # both are of the moment that the pair was read in
    assert after is not None
    return {
        "before": first.score,
        "after": second.score,
        "before_prediction": before.prediction,
        "after_prediction": after.prediction,
        "after_id": second.id,
        "after_phase": after.phase,
        "lane": after.lane,
        "target": after.target,
        "between": between,
    }


def _choice(choice: Choice | None) -> dict[str, Any] | None:
    """Return what a step's choice won and lost on the held-out samples; None if it chose nothing."""
    if choice is None:
        return None
    pairs = choice.pairs
    won, lost = (sum(sign * (after - before) > 0 for before, after in pairs) for sign in (1, -1))
    return {
        "before": choice.before.number,
        "after": choice.after.number,
        "kept": choice.before.texts == choice.after.texts,
        "verdict": sentence_of(choice.after.verdict),
        "pairs": len(pairs),
        "won_count": won,
        "lost_count": lost,
        "same_count": len(pairs) - won - lost,
        "means": tuple(fmean(scores) for scores in zip(*pairs, strict=True)) if pairs else (None, None),
    }


def sentence_of(verdict: str) -> str:
    """Return a candidate's verdict as a sentence.

    >>> sentence_of("accepted: 21 on 24 samples")
    'Accepted: 21 on 24 samples.'
    """
    return f"{verdict[:1].upper()}{verdict[1:]}."


# A race: the candidates of a step on the same samples.


class Racer(NamedTuple):
    """A candidate in a race: one score for each of the race's samples, None where it has none."""

    number: int
    name: str
    verdict: str
    accepted: bool
    scores: tuple[float | None, ...]
    total: float
    scored: int


class RaceTable(NamedTuple):
    """The table of a race. `samples` are the numbers of its columns, `left_out` how many more there are of either."""

    samples: tuple[int, ...]
    racers: tuple[Racer, ...]
    left_out: tuple[int, int]


def race_table(candidates: Sequence[CandidateRecord]) -> RaceTable | None:
    """Return the table of the candidates that one step weighed; None if it doesn't tell on which samples.

    >>> one = CandidateRecord(1, 0, [], ["a"], [1.0, 0.0], "incumbent", "incumbent", [7, 3])
    >>> two = CandidateRecord(1, 1, [0], ["b"], [1.0], "accepted", "chain 1", [3])
    >>> found = race_table([one, two])
    >>> found.samples, [racer.scores for racer in found.racers]
    ((7, 3), [(1.0, 0.0), (None, 1.0)])
    """
    ran = [one for one in candidates if one.samples and len(one.samples) == len(one.scores)]
    numbers = list(dict.fromkeys(number for one in ran for number in one.samples if isinstance(number, int)))
    if not numbers:
        return None
    shown = numbers[:LAPS]
    racers = []
    for one in ran[:RACERS]:
        scores = dict(zip(one.samples, one.scores, strict=True))
        scored = [score for score in one.scores if score is not None]
        row = tuple(scores.get(number) for number in shown)
        racers.append(Racer(one.number, one.name, one.verdict, one.accepted, row, sum(scored), len(scored)))
    return RaceTable(tuple(shown), tuple(racers), (len(ran) - len(racers), len(numbers) - len(shown)))


# Which feedback a changed sentence may have come from.

# Words that a sentence and its feedback must share. One is chance.
FEWEST: Final = 2
# Share of the sentence's weight that the shared words must have.
LEAST: Final = 0.2
# Similarity (0 to 1) from which a new sentence counts as an old one in other words.
ALIKE: Final = 0.5
# Old sentences that a new one is compared with.
MOST_SENTENCES: Final = 400
# Characters of a sentence that are compared.
LONGEST: Final = 1_000

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
    """A piece of feedback that shares words with a sentence, by its number; `share` is the weight of the words."""

    number: int
    words: tuple[str, ...]
    share: float


class ChangedSentence(NamedTuple):
    """A sentence that only the new text has, and the feedback that it may have come from.

    Attributes:
        pieces: the sentence with its new words marked; all of them, if no old sentence is similar.
    """

    text: str
    pieces: tuple[Piece, ...]
    matches: tuple[Match, ...]


def changed_sentences(before: str, after: str, evidence: Sequence[str]) -> list[ChangedSentence]:
    """Return the sentences that only `after` has, each with the feedback that shares words with it.

    A word weighs more if less of the feedback has it, and less if the old text had it already.

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
    """Split a text into sentences. The end of a line ends a sentence too.

    >>> sentences("Be brief. Use 1.5 lines!\\nAlways")
    ['Be brief.', 'Use 1.5 lines!', 'Always']
    """
    return [sentence.strip() for sentence in _END.split(text) if sentence.strip()]


def content_words(text: str) -> frozenset[str]:
    """Return the words of a text without "the", "and" and the like, in lower case."""
    return frozenset(_WORD.findall(text.lower())) - _COMMON


def _marked(text: str, old: Sequence[str]) -> tuple[Piece, ...]:
    nearest = get_close_matches(text[:LONGEST], [one[:LONGEST] for one in old], n=1, cutoff=ALIKE)
    if not nearest:
        return (Piece("new", text),)
    return tuple(piece for piece in word_diff(nearest[0], text) if piece.kind != "gone")


def _matches(
    sentence: frozenset[str], evidence: Sequence[frozenset[str]], weights: dict[str, float], old: set[str]
) -> tuple[Match, ...]:
    # A word that the old text had already tells little about where the new sentence came from.
    heavy = {word: weights.get(word, 1.0) * (0.3 if word in old else 1.0) for word in sentence}
    whole = sum(heavy.values()) or 1.0
    fresh = sentence - old
    matches = []
    for index, words in enumerate(evidence):
        shared = sorted(sentence & words)
        share = sum(heavy[word] for word in shared) / whole
        if len(shared) >= FEWEST and share >= LEAST and (fresh.intersection(shared) or not fresh):
            matches.append(Match(index, tuple(shared), share))
    return tuple(sorted(matches, key=lambda match: (-match.share, match.number)))


def _normal(sentence: str) -> str:
    return " ".join(sentence.lower().split())


# Lineage: which candidate was made from which, as a tree drawn on the server.

# The most candidates that are drawn, the newest ones.
MOST_CANDIDATES: Final = 500
ACROSS: Final = 46
DOWN: Final = 62
MARGIN: Final = 28


class LineageNode(NamedTuple):
    """A candidate and its place in the drawing; `mean` is its mean score, or None if it has none."""

    number: int
    parents: list[int]
    step: int
    values: tuple[str, ...]
    mean: float | None
    scored: int
    verdict: str
    accepted: bool
    x: float
    y: float


def lineage_page(reader: StoreReader, run: RunRecord) -> dict[str, Any]:
    """Return the candidates of a run as a tree, with the line that leads to the one that was kept."""
    members = _placed(_weighed(reader, run.id))
    by_number = {member.number: member for member in members}
    edges = [
        (by_number[parent], member) for member in members for parent in member.parents if parent in by_number
    ]
    best = _best(reader, run.id, members)
    line = _ancestors(best, by_number)
    return {
        "run": run,
        "members": members,
        "edges": [(*edge, edge[0].number in line and edge[1].number in line) for edge in edges],
        "best": best,
        "width": max((member.x for member in members), default=0) + MARGIN,
        "height": max((member.y for member in members), default=0) + MARGIN,
    }


def candidate_page(reader: StoreReader, run: RunRecord, number: int) -> dict[str, Any] | None:
    """Return one candidate, its values as differences from its first parent's."""
    members = {member.number: member for member in _placed(_weighed(reader, run.id))}
    member = members.get(number)
    if member is None:
        return None
    parent = members.get(member.parents[0]) if member.parents else None
    before = parent.values if parent else ()
    return {
        "run": run,
        "member": member,
        "parent": parent,
        "values": [
            shown_diff(before[place] if place < len(before) else value, value)
            for place, value in enumerate(member.values)
        ],
    }


def _best(reader: StoreReader, run: str, members: list[LineageNode]) -> LineageNode | None:
    """Return the candidate that the parameters hold at the end; if that isn't known, the best accepted one."""
    choice = reader.last_choice(run)
    if choice is not None:
        return next((member for member in members if member.number == choice.after.number), None)
    accepted = [member for member in members if member.accepted and member.mean is not None]
    return max(accepted, key=lambda member: (member.mean or 0.0, -member.number), default=None)


def _weighed(reader: StoreReader, run: str) -> list[CandidateRecord]:
    """Return each candidate once, by number, though several steps may have weighed it."""
    candidates: dict[int, CandidateRecord] = {}
    for one in reader.candidates(run, MOST_CANDIDATES):
        earlier = candidates.get(one.number)
        if earlier is None:
            candidates[one.number] = one
        elif not earlier.accepted:
            # Take the newest verdict. An accepted candidate keeps the one that accepted it: later steps weigh others
            # against it, perhaps on fewer samples. The step that made it stays the first one in any case.
            candidates[one.number] = replace(one, step=earlier.step, parents=earlier.parents)
    return [candidates[number] for number in sorted(candidates)]


def _placed(candidates: list[CandidateRecord]) -> list[LineageNode]:
    depths: dict[int, int] = {}
    width: dict[int, int] = {}
    members = []
    for one in candidates:
        # A parent's number is lower than its child's. Ignore others, so that a damaged row can't make a loop.
        parents = [parent for parent in one.parents if isinstance(parent, int) and parent < one.number]
        depth = 1 + max((depths[parent] for parent in parents if parent in depths), default=-1)
        place = width.get(depth, 0)
        depths[one.number], width[depth] = depth, place + 1
        scores = [score for score in one.scores if score is not None]
        members.append(
            LineageNode(
                number=one.number,
                parents=parents,
                step=one.step,
                values=one.texts,
                mean=fmean(scores) if scores else None,
                scored=len(scores),
                verdict=one.verdict,
                accepted=one.accepted,
                x=MARGIN + place * ACROSS,
                y=MARGIN + depth * DOWN,
            )
        )
    return members


def _ancestors(best: LineageNode | None, by_number: dict[int, LineageNode]) -> set[int]:
    """Return the numbers of a candidate and of all candidates that it comes from."""
    numbers: set[int] = set()
    waiting = [best.number] if best else []
    while waiting:
        number = waiting.pop()
        if number not in numbers and number in by_number:
            numbers.add(number)
            waiting += by_number[number].parents
    return numbers
