"""The optimizer's LM: rewrites a text by what its feedback claims, and by nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from afnio.testing.simulated.cues import cue_sentence, read_claims, split_cues
from afnio.testing.simulated.tags import read_blocks

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

MOST_CUES: Final = 25
MOST_WISHES: Final = 3
_ASK: Final = "The text should ask for this: "
_FORBIDS: Final = re.compile(r"\b(?:never|not|without|avoid|no)\b", re.IGNORECASE)
_CHARACTER: Final = re.compile(r"[`\"'](\W)[`\"']|(?<=\s)([{}<>\[\]#*@_|~^])(?=[\s,.]|$)")
_LIMIT: Final = re.compile(
    r"\b(?:at most|no more than|under|up to|maximum of)\s+(\d+)\s+(character|word)s?", re.IGNORECASE
)

Cues = dict[str, list[str]]


def propose(conversation: Conversation) -> str:
    """Return the optimizer's JSON with the new value; without feedback the value stays as it is."""
    prompt = conversation.prompt
    # The history has feedback of its own, which stands before. The end of a prompt may be cut off.
    _, _, told = prompt.rpartition("<feedbacks>\n")
    feedback = [b.text for b in read_blocks(told, "feedback")] if "<feedbacks>\n" in prompt else []
    variables = read_blocks(prompt, "variable")
    value = variables[0].text if variables else ""
    constraints = [b.text for b in read_blocks(prompt, "constraint")]
    feedback = [text for text in feedback if text.strip()]
    new = rewrite(value, feedback, constraints) if feedback else value
    return json.dumps({"value": new}, ensure_ascii=False)


def rewrite(value: str, feedback: list[str], constraints: list[str]) -> str:
    """Return `value` with what the feedback claims and wishes added, within the constraints.

    >>> rewrite("Be kind.", ["answer in Italian"], [])
    'Be kind.\\nIn every reply: answer in Italian.'
    """
    head, known = split_cues(value)
    claims: list[tuple[str, str]] = []
    wishes: Counter[str] = Counter()
    for text in feedback:
        pairs, rest = read_claims(text)
        claims += pairs
        if rest:
            wishes[rest.removeprefix(_ASK).rstrip(".").strip()] += 1
    cues = tally(known, claims)
    lines = [f"In every reply: {wish}." for wish, _ in wishes.most_common(MOST_WISHES) if wish]
    lines = [line for line in lines if line not in head]
    return _fit("\n".join([head, *lines]), cues, constraints)


def tally(known: Cues, claims: list[tuple[str, str]]) -> Cues:
    """Return the cues of each label: those known, then those claimed, the most frequent first.

    A cue that was claimed for two labels goes to the majority; on a tie it stays where it was, or
    is dropped. What the text has already counts as one claim.
    """
    votes: dict[str, Counter[str]] = {}
    homes = {phrase: label for label in known for phrase in known[label]}
    for phrase, label in [*homes.items(), *claims]:
        votes.setdefault(phrase, Counter())[label] += 1
    cues: Cues = {label: [] for label in known}
    # Sorting is stable: equals stay in the order of their first claim.
    for phrase, labels in sorted(votes.items(), key=lambda item: -max(item[1].values())):
        (label, most), *others = labels.most_common()
        if others and others[0][1] == most:
            if phrase not in homes:
                continue
            label = homes[phrase]
        cues.setdefault(label, []).append(phrase)
    kept = {label: set(known.get(label, ())) for label in cues}
    return {
        label: sorted(phrases, key=lambda phrase: phrase not in kept[label])[:MOST_CUES]
        for label, phrases in cues.items()
        if phrases
    }


def _fit(head: str, cues: Cues, constraints: list[str]) -> str:
    """Return the text with its cues, the rarest left out until the constraints on length hold."""
    banned = {c for text in constraints for c in _banned_characters(text)}
    limits = [found for text in constraints for found in _LIMIT.findall(text)]
    cues = {label: list(phrases) for label, phrases in cues.items()}
    while True:
        text = "\n".join([head, *(cue_sentence(label, cues[label]) for label in cues if cues[label])])
        text = "".join(character for character in text if character not in banned)
        if not any(cues.values()) or not any(_exceeds(text, *limit) for limit in limits):
            return text
        max(cues.values(), key=len).pop()


def _banned_characters(constraint: str) -> list[str]:
    if not _FORBIDS.search(constraint):
        return []
    return [quoted or bare for quoted, bare in _CHARACTER.findall(constraint)]


def _exceeds(text: str, count: str, unit: str) -> bool:
    return (len(text) if unit.lower() == "character" else len(text.split())) > int(count)
