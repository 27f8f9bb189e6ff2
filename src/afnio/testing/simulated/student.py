"""The student: does the task by what its instructions tell it to look for, else naively."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated.answer import fill
from afnio.testing.simulated.cues import read_cues
from afnio.testing.simulated.lexicon import COMPLAINTS, COURTESY, normalize

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

SENTIMENTS: Final = ("positive", "neutral", "negative")
_ANY_OBJECT: Final = {"type": "object"}
_CLASSIFIES: Final = re.compile(r"\b(?:sentiment|classif\w+)\b", re.IGNORECASE)
# A naive reader believes in a good mood from so many words on.
_COURTEOUS: Final = 6


def answer(conversation: Conversation, schema: dict[str, Any] | None) -> str:
    """Return the student's reply: JSON where a schema asks for it, else one label or an echo."""
    message, instructions = conversation.message, conversation.instructions
    if schema is not None and schema != _ANY_OBJECT:
        value = fill(schema, message, lambda labels: classify(message, instructions, labels))
        return json.dumps(value, ensure_ascii=False)
    classifies = _CLASSIFIES.search(instructions) is not None
    text = classify(message, instructions, SENTIMENTS) if classifies else echo(message, instructions)
    if schema is None:
        return text
    return json.dumps({"sentiment" if classifies else "reply": text}, ensure_ascii=False)


def classify(message: str, instructions: str, labels: tuple[str, ...]) -> str:
    """Return the label with the most cues in the message, of those that the instructions name.

    On a tie the naive reading decides if it is among the tied, else the first of `labels`.

    >>> classify("We ask about prices.", 'Words like "prices" mean neutral.', SENTIMENTS)
    'neutral'
    """
    words = normalize(message)
    naive = read_naively(words, labels)
    cues = read_cues(instructions, labels)
    counts = {label: sum(cue in words for cue in cues.get(label, ())) for label in labels}
    most = max(counts.values())
    best = [label for label in labels if counts[label] == most]
    return naive if naive in best else best[0]


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
