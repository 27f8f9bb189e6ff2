"""The reducer: merges the feedback of a group into few points, and says which feedback is behind each."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from afnio.testing.simulated.critic import ASK, MOST_PHRASES
from afnio.testing.simulated.cues import claim_sentence, denial_sentence
from afnio.testing.simulated.proposer import read_feedback
from afnio.testing.simulated.reader import PERFECT, Reader
from afnio.testing.simulated.tags import Block, read_blocks, read_section, samples_of

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

_LIMITS: Final = re.compile(r"at most (\d+) points?, (\d+) words")
_NOUN: Final = re.compile(r'mean the ([^".]*?) is "')
_SPARE_WORDS: Final = 14
"""Words of a sentence around the phrases that it lists."""

Thing = tuple[str, str, str]
"""One thing said: how, its phrase, its label."""
Said = dict[Thing, list[int]]
"""For each thing said the numbers of the feedback that says it, from 0."""


def reduce(conversation: Conversation, reader: Reader = PERFECT) -> str:
    """Return the reducer's JSON: what the group's feedback says, what most samples stand behind first."""
    prompt = conversation.prompt
    blocks = read_blocks(read_section(prompt, "feedbacks"), "feedback")
    said = _said([block.text for block in blocks], reader)
    limits = _LIMITS.search(prompt)
    most_points, most_words = (int(limits[1]), int(limits[2])) if limits else (len(blocks) or 1, 10_000)
    noun = _NOUN.search(prompt)
    points: list[dict[str, object]] = []
    room = most_words
    for things in _points(said, blocks):
        how, _, label = things[0]
        kept: list[Thing] = []
        for what in things:
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


def _points(said: Said, blocks: list[Block]) -> list[list[Thing]]:
    """Return which things make one point, what most samples stand behind first, in every respect.

    They are about one label, and none is said by less than half as many samples as the first of them. What one sample
    alone says is a point of its own, and left out where its failure has a point already.
    """
    samples = [samples_of(block) for block in blocks]
    votes = {what: sum(samples[number] for number in numbers) for what, numbers in said.items()}
    points: dict[tuple[str, str], list[list[Thing]]] = {}
    alone: dict[tuple[str, str, int], list[Thing]] = {}
    for what in sorted(said, key=lambda what: -votes[what]):
        how, phrase, label = what
        if votes[what] == 1:
            alone.setdefault((how, label or phrase, said[what][0]), []).append(what)
            continue
        parts = points.setdefault((how, label or phrase), [])
        if not parts or 2 * votes[what] < votes[parts[-1][0]]:
            parts.append([])
        parts[-1].append(what)
    common = [part for parts in points.values() for part in parts]
    behind = {number for part in common for what in part for number in said[what]}
    failures = {blocks[number].attributes.get("failure") for number in behind} - {None}
    rare = [
        things
        for (_, _, number), things in alone.items()
        if number not in behind and blocks[number].attributes.get("failure") not in failures
    ]

    def support(things: list[Thing]) -> int:
        return sum(samples[number] for number in {number for what in things for number in said[what]})

    return sorted([*common, *rare], key=lambda things: -support(things))


def _sentence(how: str, phrases: list[str], label: str, noun: str) -> str:
    if how == "wish":
        return f"{ASK}{phrases[0]}."
    if how == "denial":
        return denial_sentence(noun, phrases, label)
    return claim_sentence(noun, dict.fromkeys(phrases, label))
