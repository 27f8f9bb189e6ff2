"""The critic: says which phrases of the message argue for the label that the feedback expected."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated.cues import claim_sentence
from afnio.testing.simulated.lexicon import PHRASES, normalize
from afnio.testing.simulated.tags import Block, read_blocks, read_section

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

MOST_PHRASES: Final = 2
_EXPECTED: Final = re.compile(r"\bpredicted (.+), expected (?=[\"\d\[{tfn])", re.DOTALL)
_DECODER: Final = json.JSONDecoder()


def criticize(conversation: Conversation) -> str:
    """Return the critic's JSON: one entry for each variable that the prompt shows."""
    prompt = conversation.prompt
    variables = read_blocks(read_section(prompt, "variables"), "variable")
    messages = read_blocks(read_section(prompt, "conversation"), "message")
    _, _, judged = prompt.partition("</conversation>")
    feedback = [block.text.strip() for block in read_blocks(judged, "feedback")]
    message = next((m.text for m in reversed(messages) if m.attributes.get("role") == "user"), "")
    noun = _noun(read_blocks(judged, "reply_format"))
    entries = [
        {"variable": v.attributes.get("id", ""), "text": _comment(v.text, message, feedback, noun)}
        for v in variables
    ]
    return json.dumps({"feedback": entries}, ensure_ascii=False)


def _comment(value: str, message: str, feedback: list[str], noun: str) -> str:
    for text in feedback:
        label = expected_label(text)
        if label is None:
            continue
        known = normalize(value)
        phrases = [p for p in telling_phrases(message, label) if f" {p} " not in known]
        if not phrases:
            return ""  # the text names all of them already
        return claim_sentence(noun, dict.fromkeys(phrases[:MOST_PHRASES], label))
    said = " ".join(dict.fromkeys(text for text in feedback if text))
    return f"The text should ask for this: {said}" if said else ""


def expected_label(feedback: str) -> str | None:
    """Return the answer that a deterministic evaluator expected, if the feedback names one.

    >>> expected_label('exact match: predicted "positive", expected "neutral", score 0.')
    'neutral'
    """
    found = _EXPECTED.search(feedback)
    if found is None:
        return None
    try:
        value, _ = _DECODER.raw_decode(feedback, found.end())
    except ValueError:
        return None
    return value if isinstance(value, str) else json.dumps(value)


def telling_phrases(message: str, label: str) -> list[str]:
    """Return the phrases of `message` that argue for `label`, the most telling first.

    For a label that the lexicon doesn't know: the long words of the first line.
    """
    known = PHRASES.get(label.lower())
    words = normalize(message)
    if known is not None:
        return [phrase for phrase in known if f" {phrase} " in words]
    lines = [line for line in message.splitlines() if len(normalize(line).split()) > 2]
    first = normalize(lines[0] if lines else message).split()
    return list(dict.fromkeys(word for word in first if len(word) > 5))


def _noun(formats: list[Block]) -> str:
    """Return the name of the field with the labels in the reply's format, else a general word."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                if isinstance(child, dict) and "enum" in child:
                    found.append(name)
                visit(child)

    for block in formats:
        try:
            visit(json.loads(block.text))
        except (ValueError, RecursionError):
            continue
    return found[0] if found else "answer"
