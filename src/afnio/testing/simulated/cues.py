"""The grammar of cues: sentences that say which phrases in a message speak for which label.

The student, who knows the labels, reads them from ordinary prose (`read_cues`). The critic claims
cues (`claim_sentence`); the optimizer reads its claims (`read_claims`) and writes them as cues
(`cue_sentence`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from afnio.testing.simulated.lexicon import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SENTENCE: Final = re.compile(r'(?:"[^"\n]*"|[^.;!?\n"]|")+')
_QUOTED: Final = re.compile(r"[\"“`]([^\"”`\n]+)[\"”`]")
# What may stand between a label and the phrases that speak for it, if the phrases are not quoted.
_LIST: Final = re.compile(
    r"(?::|\b(?:mentions?|contains?|includes?|says?|such as|like|words?|phrases?|about)\b)\s*:?\s*"
    r"(?!.*(?::|\b(?:mentions?|contains?|includes?|such as)\b))(.+)$"
)
_NEGATED: Final = r"(?:\bnot|\bnever|\brather than|\binstead of)\s+(?:as\s+)?[\"“`]?"
_WRITTEN: Final = re.compile(r'\s*Answer "([^"\n]+)" when the message mentions: ([^.\n]*)\.')
_CLAIM: Final = re.compile(r'phrases such as ((?:"[^"]+"(?:, )?)+) mean the [^".]* is "([^"]+)"')
_DENIAL: Final = re.compile(r'should not say that ((?:"[^"]+"(?:, )?)+) mean the [^".]* is "([^"]+)"')
_LONGEST: Final = 6


@lru_cache(maxsize=256)
def read_cues(prompt: str, labels: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the cue phrases that a prompt names for each label, as `normalize` writes them.

    A sentence gives cues if it speaks of one label (those after "not" or "rather than" don't
    count): the phrases that it quotes, else the list behind its colon or a word like "mentions".
    A phrase has at most six words.

    >>> read_cues('Answer "neutral" when the message mentions: schedule, inquiry.', ("neutral",))
    {'neutral': (' schedule ', ' inquiry ')}
    """
    cues: dict[str, dict[str, None]] = {}
    for sentence in _SENTENCE.findall(prompt):
        meant = [label for label in labels if _means(sentence, label)]
        if len(meant) == 1:
            for phrase in _phrases(sentence, labels):
                cues.setdefault(meant[0], {})[phrase] = None
    return {label: tuple(phrases) for label, phrases in cues.items()}


def _means(sentence: str, label: str) -> bool:
    name = re.escape(label)
    kept = re.sub(rf"{_NEGATED}{name}\b", "", sentence, flags=re.IGNORECASE)
    return re.search(rf"(?<!\w){name}(?!\w)", kept, re.IGNORECASE) is not None


def _phrases(sentence: str, labels: tuple[str, ...]) -> list[str]:
    names = {normalize(label) for label in labels}
    found = [normalize(phrase) for phrase in _QUOTED.findall(sentence)]
    found = [phrase for phrase in found if phrase not in names]
    if not found and (listed := _LIST.search(sentence)):
        found = [normalize(part) for part in re.split(r",|\bor\b|\band\b", listed.group(1))]
    # A part that holds the label is the end of the sentence: "… or dates, it is neutral".
    found = [phrase for phrase in found if not any(name in phrase for name in names)]
    return [phrase for phrase in found if 0 < len(phrase.split()) <= _LONGEST]


@lru_cache(maxsize=256)
def instructions_in(prompt: str, labels: tuple[str, ...]) -> int:
    """Return how many instructions a prompt gives: its sentences, and each phrase of a cue but the first.

    >>> instructions_in('Be kind. Answer "neutral" when the message mentions: date, price.', ("neutral",))
    3
    """
    sentences = sum(any(c.isalnum() for c in sentence) for sentence in _SENTENCE.findall(prompt))
    return sentences + sum(len(phrases) - 1 for phrases in read_cues(prompt, labels).values())


def cue_sentence(label: str, phrases: Iterable[str]) -> str:
    """Return the sentence that tells a student which phrases speak for `label`."""
    return f'Answer "{label}" when the message mentions: {", ".join(phrases)}.'


def split_cues(value: str) -> tuple[str, dict[str, list[str]]]:
    """Return a text without its cue sentences, and the phrases of each label that they named."""
    cues: dict[str, list[str]] = {}
    for label, listed in _WRITTEN.findall(value):
        cues.setdefault(label, []).extend(part for part in listed.split(", ") if part)
    return _WRITTEN.sub("", value), cues


def claim_sentence(noun: str, claims: Mapping[str, str]) -> str:
    """Return the critic's sentence: phrases, which all mean the same label."""
    quoted = ", ".join(f'"{phrase}"' for phrase in claims)
    label = next(iter(claims.values()))
    return f'The text should say that phrases such as {quoted} mean the {noun} is "{label}".'


def read_claims(feedback: str) -> tuple[list[tuple[str, str]], str]:
    """Return the (phrase, label) pairs that a feedback claims, and what it says beside them.

    >>> read_claims('Phrases such as "vague" mean the sentiment is "negative".')[0]
    [('vague', 'negative')]
    """
    pairs = [
        (phrase, label)
        for listed, label in _CLAIM.findall(_uncapital(feedback))
        for phrase in _QUOTED.findall(listed)
    ]
    return pairs, "" if pairs else feedback.strip()


def denial_sentence(noun: str, phrases: Iterable[str], label: str) -> str:
    """Return the critic's sentence on cues of the text that misled: they don't mean the label."""
    quoted = ", ".join(f'"{phrase}"' for phrase in phrases)
    return f'The text should not say that {quoted} mean the {noun} is "{label}".'


def read_denials(feedback: str) -> list[tuple[str, str]]:
    """Return the (phrase, label) pairs that a feedback denies.

    >>> read_denials(denial_sentence("sentiment", ["always"], "positive"))
    [('always', 'positive')]
    """
    return [
        (phrase, label) for listed, label in _DENIAL.findall(feedback) for phrase in _QUOTED.findall(listed)
    ]


def _uncapital(text: str) -> str:
    return text.replace("Phrases such as", "phrases such as")
