"""The reducer: merges the feedback of a group into few points, and says which feedback is behind each."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from afnio.testing.simulated.critic import ASK, MOST_PHRASES
from afnio.testing.simulated.cues import claim_sentence, denial_sentence
from afnio.testing.simulated.proposer import read_feedback
from afnio.testing.simulated.reader import PERFECT, Reader
from afnio.testing.simulated.tags import read_blocks, read_section

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

_LIMITS: Final = re.compile(r"at most (\d+) points?, (\d+) words")
_NOUN: Final = re.compile(r'mean the ([^".]*?) is "')
_SPARE_WORDS: Final = 14
"""Words of a sentence around the phrases that it lists."""

Said = dict[tuple[str, str, str], list[int]]
"""For each thing said (how, phrase, label) the ids of the feedback that says it."""


def reduce(conversation: Conversation, reader: Reader = PERFECT) -> str:
    """Return the reducer's JSON: what the group's feedback says, each thing once, the most frequent first."""
    prompt = conversation.prompt
    blocks = read_blocks(read_section(prompt, "feedbacks"), "feedback")
    said = _said([block.text for block in blocks], reader)
    votes = {
        what: sum(_samples(blocks[number].attributes) for number in numbers) for what, numbers in said.items()
    }
    limits = _LIMITS.search(prompt)
    most_points, most_words = (int(limits[1]), int(limits[2])) if limits else (len(blocks) or 1, 10_000)
    noun = _NOUN.search(prompt)
    points: list[dict[str, object]] = []
    room = most_words
    for (how, label), group in _groups(said, votes).items():
        kept: list[tuple[str, str, str]] = []
        for what in group:
            if room - len(what[1].split()) < (0 if kept else _SPARE_WORDS):
                break
            room -= len(what[1].split()) + (0 if kept else _SPARE_WORDS)
            kept.append(what)
        if kept and len(points) < most_points:
            sources = sorted({number + 1 for what in kept for number in said[what]})
            point = _sentence(how, [what[1] for what in kept], label, noun[1] if noun else "answer")
            points.append({"point": point, "sources": sources})
    if not points and blocks:
        points.append({"point": blocks[0].text, "sources": [1]})
    return json.dumps({"points": points}, ensure_ascii=False)


def _said(texts: list[str], reader: Reader) -> Said:
    """Return what the reader takes in of the texts; a thing that is said twice may be noticed twice."""
    read = [read_feedback([text]) for text in texts]
    among = sum((len(claims) + len(denials)) / MOST_PHRASES + len(wishes) for claims, denials, wishes in read)
    said: Said = {}
    for number, (claims, denials, wishes) in enumerate(read):
        things = [("claim", *claim) for claim in claims] + [("denial", *denial) for denial in denials]
        for thing in [*things, *(("wish", wish, "") for wish in wishes)]:
            if reader.uses(f"{number} {thing}", among):
                numbers = said.setdefault(thing, [])
                numbers += [] if number in numbers else [number]
    return said


def _groups(
    said: Said, votes: dict[tuple[str, str, str], int]
) -> dict[tuple[str, str], list[tuple[str, str, str]]]:
    """Return the things said, those about one label together, the most frequent first in every respect."""
    groups: dict[tuple[str, str], list[tuple[str, str, str]]] = {}
    for what in sorted(said, key=lambda what: -votes[what]):
        how, phrase, label = what
        groups.setdefault((how, label or phrase), []).append(what)
    total: Counter[tuple[str, str]] = Counter()
    for what, count in votes.items():
        total[what[0], what[2] or what[1]] += count
    return dict(sorted(groups.items(), key=lambda group: -total[group[0]]))


def _sentence(how: str, phrases: list[str], label: str, noun: str) -> str:
    if how == "wish":
        return f"{ASK}{phrases[0]}."
    if how == "denial":
        return denial_sentence(noun, phrases, label)
    return claim_sentence(noun, dict.fromkeys(phrases, label))


def _samples(attributes: dict[str, str]) -> int:
    given = attributes.get("samples", "1")
    return int(given) if given.isdigit() else 1
