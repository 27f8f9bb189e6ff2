"""Which feedback a changed sentence came from, guessed by the words that both share.

No optimizer says which of its evidence became which sentence, so this is a match by overlap and is
shown as one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

FEWEST: Final = 2
"""Words that have to be shared: one alone is chance."""
LEAST: Final = 0.2
"""Share of the sentence's weight that has to be shared."""
MOST: Final = 5
"""Matches shown for one sentence."""

_SENTENCE: Final = re.compile(r"[^.!?\n]+(?:[.!?]+(?=\s|$)|[.!?](?=\S)[^.!?\n]*)*[.!?]*")
_WORD: Final = re.compile(r"[^\W\d_]{3,}")
_COMMON: Final = """the and for that this with are was were not but you your its has have had will would should
must can could may might they them their there then than from into when where which what who how all any each one
only also such very more most other some been being does did doing about over under""".split()  # noqa: SIM905 - words in lines


class Match(NamedTuple):
    """One feedback that shares words with a sentence: its number, the words, and their share of the weight."""

    number: int
    words: tuple[str, ...]
    share: float


class ChangedSentence(NamedTuple):
    """A sentence of the new text that the old one didn't have, and the feedback that sounds like it."""

    text: str
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
    return [ChangedSentence(text, _matches(content_words(text), words, weights, old)) for text in fresh]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line's end ends one.

    >>> sentences("Be brief. Use 1.5 lines!\\nAlways")
    ['Be brief.', 'Use 1.5 lines!', 'Always']
    """
    return [found.group().strip() for found in _SENTENCE.finditer(text) if found.group().strip()]


def content_words(text: str) -> frozenset[str]:
    """Return the words that carry meaning, in lower case."""
    return frozenset(_WORD.findall(text.lower())) - set(_COMMON)


def _matches(
    sentence: frozenset[str], evidence: Sequence[frozenset[str]], weights: dict[str, float], old: set[str]
) -> tuple[Match, ...]:
    # Words that the old text had already say little about where a new sentence comes from.
    heavy = {word: weights.get(word, 1.0) * (0.3 if word in old else 1.0) for word in sentence}
    whole = sum(heavy.values()) or 1.0
    found = []
    for index, words in enumerate(evidence):
        shared = sorted(sentence & words)
        share = sum(heavy[word] for word in shared) / whole
        if len(shared) >= FEWEST and share >= LEAST:
            found.append(Match(index, tuple(shared), share))
    return tuple(sorted(found, key=lambda match: (-match.share, match.number))[:MOST])


def _normal(sentence: str) -> str:
    return " ".join(sentence.lower().split())
