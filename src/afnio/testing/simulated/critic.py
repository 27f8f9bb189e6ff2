"""The critic: says which phrases of the message argue for the label that the feedback expected."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from afnio.testing.simulated.cues import claim_sentence, denial_sentence, split_cues
from afnio.testing.simulated.lexicon import PHRASES, normalize
from afnio.testing.simulated.reader import PERFECT, Reader
from afnio.testing.simulated.skills import UNKNOWN, Task, notes_in, task_of, told_skills
from afnio.testing.simulated.tags import Block, read_blocks, read_section

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

MOST_PHRASES: Final = 2
ASK: Final = "The text should ask for this: "
_EXPECTED: Final = re.compile(r"\bpredicted (.+), expected (?=[\"\d\[{tfn])", re.DOTALL)
_DECODER: Final = json.JSONDecoder()
_LONG: Final = 5


class Case(NamedTuple):
    """One message that went wrong: its text, what was said about the reply, the name of what was asked."""

    message: str
    feedback: list[str]
    noun: str = "answer"


def criticize(conversation: Conversation, reader: Reader = PERFECT) -> str:
    """Return the critic's JSON: one entry for each variable that the prompt shows."""
    prompt = conversation.prompt
    variables = read_blocks(read_section(prompt, "variables"), "variable")
    messages = read_blocks(read_section(prompt, "conversation"), "message")
    _, _, judged = prompt.partition("</conversation>")
    feedback = [block.text.strip() for block in read_blocks(judged, "feedback")]
    message = next((m.text for m in reversed(messages) if m.attributes.get("role") == "user"), "")
    case = Case(message, feedback, _noun(read_blocks(judged, "reply_format")))
    told = [m.text for m in messages if m.attributes.get("role") in ("system", "developer")]
    entries = []
    for variable in variables:
        upstream = bool(told) and not any(variable.text in text for text in told)
        text = blame(variable.text, told, case) if upstream else comment(variable.text, case, reader)
        entries.append({"variable": variable.attributes.get("id", ""), "text": text})
    return json.dumps({"feedback": entries}, ensure_ascii=False)


def comment(value: str, case: Case, reader: Reader = PERFECT) -> str:
    """Return what should change in the instructions `value`, for that case."""
    for text in case.feedback:
        label = expected_label(text)
        if label is None:
            continue
        if (task := task_of(case.message)) is not None:
            return _missing_skill(value, task, case.message, label, reader)
        return _missing_phrases(value, case, label, reader)
    said = " ".join(dict.fromkeys(text for text in case.feedback if text))
    return f"{ASK}{said}" if said else ""


def _missing_phrases(value: str, case: Case, label: str, reader: Reader) -> str:
    known = normalize(value)
    parts = [label] if label.lower() in PHRASES else [part.strip() for part in label.split(",")]
    said = [_misleading(value, case, parts, reader)] if reader.limited else []
    for part in parts if all(part.lower() in PHRASES for part in parts) else [label]:
        phrases = [p for p in telling_phrases(case.message, part) if f" {p} " not in known]
        if phrases and reader.strays(part):
            words = [w for w in dict.fromkeys(normalize(case.message).split()) if len(w) > _LONG]
            phrases = [words[reader.pick("word", len(words))]]
        if phrases:
            said.insert(0, claim_sentence(case.noun, dict.fromkeys(phrases[:MOST_PHRASES], part)))
            break
    return " ".join(text for text in said if text)


def _misleading(value: str, case: Case, expected: list[str], reader: Reader) -> str:
    """Return the denial of one cue in the text that argued for another answer on that message."""
    words = normalize(case.message)
    _, cues = split_cues(value)
    for label, phrases in cues.items():
        wrong = [phrase for phrase in phrases if f" {phrase} " in words]
        if label not in expected and wrong:
            return denial_sentence(case.noun, [wrong[reader.pick(f"deny {label}", len(wrong))]], label)
    return ""


def _missing_skill(value: str, task: Task, message: str, label: str, reader: Reader) -> str:
    told = told_skills(task, value)
    missing = [name for name in task.skills if name not in told]
    every = [*told, *missing]
    if not _right(task.solve(message, every), label):
        return _vague(value, reader)  # no instruction would have helped: the inputs were wrong
    alone = [name for name in missing if _right(task.solve(message, [*told, name]), label)]
    if not missing or reader.strays("skill"):
        return _vague(value, reader)
    return f"{ASK}{task.skills[(alone or missing)[0]].wish}."


def _vague(value: str, reader: Reader) -> str:
    """Return advice that helps nobody, as a critic gives that is beside the point; else nothing."""
    return f"{ASK}{_VAGUE[reader.pick('vague', len(_VAGUE))]}." if reader.strays("vague") else ""


_VAGUE: Final = (
    "read the input with more care",
    "think about what the user needs before answering",
    "be precise and complete",
    "double check the reply before it is sent",
)


def blame(value: str, told: list[str], case: Case) -> str:
    """Return feedback on an input that an earlier step wrote: only where it, not the text, was wrong."""
    task = task_of(case.message)
    label = next((found for text in case.feedback if (found := expected_label(text)) is not None), None)
    if task is None or label is None or not task.inputs:
        return ""
    if _right(task.solve(case.message, list(task.skills)), label):
        return ""  # from these inputs the right answer could have been given
    expected = json.dumps(label, ensure_ascii=False)
    said = (
        f"the input to a later step: predicted {json.dumps(value, ensure_ascii=False)}, expected {expected}."
    )
    there = any(note[3] == label for note in notes_in(case.message)) or label == UNKNOWN
    return said if bool(notes_in(value) or value.startswith("(no")) != there else ""


def _right(reply: str, label: str) -> bool:
    """Return whether a reply is the expected one, or notes among which it is."""
    notes = notes_in(reply)
    return any(note[3] == label for note in notes) if notes else reply == label


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
    return list(dict.fromkeys(word for word in first if len(word) > _LONG))


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
