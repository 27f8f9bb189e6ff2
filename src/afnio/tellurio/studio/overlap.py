"""Which feedback a changed sentence came from, guessed by the words that both share.

No optimizer says which of its evidence became which sentence, so this is a match by overlap and is
shown as one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple

from afnio.tellurio.studio.word_diff import Piece, word_diff

FEWEST: Final = 2
"""Words that have to be shared, one of them new in the text: one alone is chance."""
LEAST: Final = 0.2
"""Share of the sentence's weight that has to be shared."""
ALIKE: Final = 0.5
"""How alike an old sentence has to be for a new one to count as its new wording."""
MOST: Final = 400
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
    wordings = sentences(before)[:MOST]
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
