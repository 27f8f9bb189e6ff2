"""The student: does the task by what its instructions tell it to look for, else naively."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated.answer import fill
from afnio.testing.simulated.cues import instructions_in, read_cues
from afnio.testing.simulated.lexicon import COMPLAINTS, COURTESY, normalize
from afnio.testing.simulated.reader import PERFECT, Reader
from afnio.testing.simulated.skills import task_of, told_skills

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

SENTIMENTS: Final = ("positive", "neutral", "negative")
_ANY_OBJECT: Final = {"type": "object"}
_CLASSIFIES: Final = re.compile(r"\b(?:sentiment|classif\w+)\b", re.IGNORECASE)
# A naive reader believes in a good mood from so many words on.
_COURTEOUS: Final = 6
_DEPTH: Final = 8


def answer(conversation: Conversation, schema: dict[str, Any] | None, reader: Reader = PERFECT) -> str:
    """Return the student's reply: JSON where a schema asks for it, else an answer, a label or an echo."""
    message, instructions = conversation.message, conversation.instructions
    if schema is None and (solved := solve(message, instructions, reader)) is not None:
        return solved
    if schema is not None and schema != _ANY_OBJECT:
        flags = _flags(schema)
        value = fill(
            schema,
            message,
            lambda labels: classify(message, instructions, labels, reader),
            holds=lambda name: holds(message, instructions, name, flags, reader),
        )
        return json.dumps(value, ensure_ascii=False)
    classifies = _CLASSIFIES.search(instructions) is not None
    naming = classifies and classify(message, instructions, SENTIMENTS, reader)
    text = naming or echo(message, instructions)
    if schema is None:
        return text
    return json.dumps({"sentiment" if classifies else "reply": text}, ensure_ascii=False)


def solve(message: str, instructions: str, reader: Reader = PERFECT) -> str | None:
    """Return the answer to a message that poses a task with an exact one, by the skills that were told."""
    task = task_of(message)
    if task is None:
        return None
    among = instructions_in(instructions, ())
    told = [name for name in told_skills(task, instructions) if reader.follows(name, among)]
    return task.solve(message, told)


def classify(message: str, instructions: str, labels: tuple[str, ...], reader: Reader = PERFECT) -> str:
    """Return the label with the most cues in the message, of those that the instructions name.

    On a tie the naive reading decides if it is among the tied, else the first of `labels`.

    >>> classify("We ask about prices.", 'Words like "prices" mean neutral.', SENTIMENTS)
    'neutral'
    """
    words = normalize(message)
    naive = read_naively(words, labels)
    found = cues_in(words, instructions, labels, reader)
    counts = {label: len(found[label]) for label in labels}
    most = max(counts.values())
    best = [label for label in labels if counts[label] == most]
    return naive if naive in best else best[0]


def cues_in(
    words: str, instructions: str, labels: tuple[str, ...], reader: Reader = PERFECT
) -> dict[str, list[str]]:
    """Return the cues of each label that the words hold, those left out that the reader overlooks."""
    cues, among = read_cues(instructions, labels), instructions_in(instructions, labels)
    return {
        label: [c for c in cues.get(label, ()) if c in words and reader.follows(f"{label}/{c}", among)]
        for label in labels
    }


def holds(
    message: str, instructions: str, name: str, flags: tuple[str, ...], reader: Reader = PERFECT
) -> bool:
    """Return whether a message is of the kind `name`: it says so, or has a cue of it."""
    words = normalize(message)
    return normalize(name) in words or bool(cues_in(words, instructions, flags, reader).get(name))


def _flags(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the booleans that an object of the schema has."""
    found: list[str] = []

    def visit(node: Any, name: str, depth: int) -> None:
        if isinstance(node, dict) and depth:
            if node.get("type") == "boolean":
                found.append(name)
            properties = node.get("properties")
            for key, child in properties.items() if isinstance(properties, dict) else ():
                visit(child, key, depth - 1)

    visit(schema, "", _DEPTH)
    return tuple(dict.fromkeys(found))


def read_naively(words: str, labels: tuple[str, ...]) -> str:
    """Return the label that a reader gives who takes courtesy at face value.

    Other labels than sentiments: the first that stands in the message, else the first.
    """
    if not set(SENTIMENTS) <= set(labels):
        return next((label for label in labels if normalize(label) in words), labels[0])
    said = words.split()
    if any(word in COMPLAINTS for word in said):
        return "negative"
    courtesy = sum(word in COURTESY for word in said)
    return "positive" if courtesy >= _COURTEOUS else "neutral"


def echo(message: str, instructions: str) -> str:
    """Return the message, changed as the instructions ask, as far as rules can."""
    text = " ".join(message.split()) or "(nothing was said)"
    wish = instructions.lower()
    if re.search(r"\b(?:short\w*|brief\w*|concise\w*)\b", wish):
        text = re.split(r"(?<=[.!?]) ", text)[0][:80]
    if language := re.search(r"\bin (italian|french|german|spanish)\b", wish):
        text = f"({language.group(1).capitalize()}) {text}"
    if re.search(r"\b(?:capital letters|upper ?case|all caps)\b", wish):
        text = text.upper()
    return text
