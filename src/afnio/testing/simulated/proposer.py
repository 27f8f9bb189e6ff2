"""The optimizer's LM: rewrites a text by what its feedback claims, and by nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from afnio.testing.simulated.critic import ASK, MOST_PHRASES, expected_label
from afnio.testing.simulated.cues import cue_sentence, read_claims, read_denials, split_cues
from afnio.testing.simulated.lexicon import normalize
from afnio.testing.simulated.reader import PERFECT, Reader
from afnio.testing.simulated.tags import read_blocks, read_section, samples_of

if TYPE_CHECKING:
    from afnio.testing.simulated.conversation import Conversation

MOST_CUES: Final = 25
MOST_WISHES: Final = 3
_FORBIDS: Final = re.compile(r"\b(?:never|not|without|avoid|no)\b", re.IGNORECASE)
_CHARACTER: Final = re.compile(r"[`\"'](\W)[`\"']|(?<=\s)([{}<>\[\]#*@_|~^])(?=[\s,.]|$)")
_NOTE: Final = 'One input with "{phrase}" was answered wrongly before, so weigh all of such an input again.'
"""What a proposer adds about each feedback it used, about a hundred characters; see docs/simulated-lm.md."""
_RETOLD: Final = re.compile(re.escape(_NOTE).replace(re.escape("{phrase}"), ".*"))
_LIMIT: Final = re.compile(
    r"\b(?:at most|no more than|under|up to|maximum of)\s+(\d+)\s+(character|word)s?", re.IGNORECASE
)

Cues = dict[str, list[str]]


def propose(conversation: Conversation, reader: Reader = PERFECT) -> str:
    """Return the optimizer's JSON with the new value; without feedback the value stays as it is."""
    prompt = conversation.prompt
    # The history has feedback of its own, which stands before. The end of a prompt may be cut off.
    _, _, told = prompt.rpartition("<feedbacks>\n")
    blocks = read_blocks(told, "feedback") if "<feedbacks>\n" in prompt else []
    blocks = [block for block in blocks if block.text.strip()]
    variables = read_blocks(prompt, "variable")
    value = variables[0].text if variables else ""
    constraints = [b.text for b in read_blocks(prompt, "constraint")]
    failures = [b.text for b in read_blocks(read_section(prompt, "failures"), "failure")]
    refused = [b.text for b in read_blocks(read_section(prompt, "rejected"), "tried")]
    texts, samples = [b.text for b in blocks], [samples_of(b) for b in blocks]
    new = rewrite(value, texts, constraints, reader, refused, samples, failures) if blocks else value
    return json.dumps({"value": new}, ensure_ascii=False)


def rewrite(
    value: str,
    feedback: list[str],
    constraints: list[str],
    reader: Reader = PERFECT,
    refused: list[str] | None = None,
    samples: list[int] | None = None,
    failures: list[str] | None = None,
) -> str:
    """Return `value` with what the feedback claims and wishes added, within the constraints.

    Args:
        refused: values that were tried and not taken.
        samples: from how many inputs each feedback comes, which is the weight of its votes; else from one each.
        failures: what went wrong repeatedly, the most frequent first; of equal cues those against it go first.

    >>> rewrite("Be kind.", ["answer in Italian"], [])
    'Be kind.\\nIn every reply: answer in Italian.'
    """
    head, known = split_cues(value)
    claims, denials, wishes, notes = _gather(feedback, samples or [1] * len(feedback), reader)
    if refused:
        tried = normalize(" ".join(refused))
        claims = [c for c in claims if f" {c[0][0]} " not in tried or reader.repeats(c[0][0])]
    wanted = [expected_label(failure) or "" for failure in failures or ()]
    claims = sorted(
        claims, key=lambda c: next((n for n, label in enumerate(wanted) if c[0][1] in label), len(wanted))
    )
    cues = tally(known, claims, denials)
    lines = [f"In every reply: {wish}." for wish, _ in wishes.most_common(MOST_WISHES) if wish]
    lines = [line for line in [*lines, *notes] if line not in head]
    whole = "\n".join([head, *lines, *_sentences(cues)])
    if reader.limited and any(_exceeds(whole, *limit) for limit in _limits(constraints)):
        # What only retells goes first, what earlier steps wrote of it too.
        lines = [line for line in [*head.split("\n"), *lines] if not _RETOLD.fullmatch(line)]
        head = lines.pop(0) if lines else ""
    return _fit("\n".join([head, *lines]), cues, constraints)


Pairs = list[tuple[str, str]]
Votes = list[tuple[tuple[str, str], int]]
"""(phrase, label) pairs as they were said, each with its weight."""


def _gather(
    feedback: list[str], samples: list[int], reader: Reader
) -> tuple[Votes, Votes, Counter[str], list[str]]:
    """Return the claims, denials and wishes that the reader makes use of, and what it writes about them.

    A feedback of one sample makes two claims at most, so that many claims count as one feedback.
    """
    claims: Votes = []
    denials: Votes = []
    wishes: list[tuple[str, int]] = []
    for text, count in zip(feedback, samples, strict=True):
        claimed, denied, wished = read_feedback([text])
        claims += [(claim, count) for claim in claimed]
        denials += [(denial, count) for denial in denied]
        wishes += [(wish, count) for wish in wished]
    # How many feedback texts were summed up in one changes its weight and not the chance that it is noticed.
    among = (len(claims) + len(denials)) / MOST_PHRASES + len(wishes)
    used = [vote for n, vote in enumerate(claims) if reader.uses(f"{n} {vote[0]}", among)]
    against = [vote for n, vote in enumerate(denials) if reader.uses(f"not {n} {vote[0]}", among)]
    wanted: Counter[str] = Counter()
    for n, (wish, count) in enumerate(wishes):
        if reader.uses(f"{n} {wish}", among):
            wanted[wish] += count
    notes: list[str] = []
    if reader.limited:
        about = [phrase for (phrase, _), _ in used[::MOST_PHRASES]] + list(wanted)
        notes = [_NOTE.format(phrase=text) for text in dict.fromkeys(about)]
    return used, against, wanted, notes


def read_feedback(feedback: list[str]) -> tuple[Pairs, Pairs, list[str]]:
    """Return all claims and denials of feedback texts, one for each time they are made, and all wishes."""
    claims: Pairs = []
    denials: Pairs = []
    wishes: list[str] = []
    for text in feedback:
        pairs, rest = read_claims(text)
        against = read_denials(text)
        claims += pairs
        denials += against
        if pairs or against:
            _, asked, rest = text.partition(ASK)
            rest = rest if asked else ""
        wishes += [wish.rstrip(".").strip() for wish in rest.split(ASK) if wish.strip()] if rest else []
    return claims, denials, wishes


def tally(known: Cues, claims: Votes, denials: Votes) -> Cues:
    """Return the cues of each label: those known, then those claimed, the most frequent first.

    A cue that was claimed for two labels goes to the majority; on a tie it stays where it was, or
    is dropped. What the text has already counts as one vote. A cue that is denied as often as it was
    claimed is dropped.
    """
    votes: dict[str, Counter[str]] = {}
    homes = {phrase: label for label in known for phrase in known[label]}
    for (phrase, label), count in [*((home, 1) for home in homes.items()), *claims]:
        votes.setdefault(phrase, Counter())[label] += count
    for (phrase, label), count in denials:
        votes.get(phrase, Counter())[label] -= count
    cues: Cues = {label: [] for label in known}
    # Sorting is stable: equals stay in the order of their first claim.
    for phrase, labels in sorted(votes.items(), key=lambda item: -max(item[1].values())):
        (label, most), *others = labels.most_common()
        if most <= 0:
            continue
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
    limits = _limits(constraints)
    cues = {label: list(phrases) for label, phrases in cues.items()}
    while True:
        text = "\n".join([head, *_sentences(cues)])
        text = "".join(character for character in text if character not in banned)
        if not any(cues.values()) or not any(_exceeds(text, *limit) for limit in limits):
            return text
        max(cues.values(), key=len).pop()


def _sentences(cues: Cues) -> list[str]:
    return [cue_sentence(label, phrases) for label, phrases in cues.items() if phrases]


def _limits(constraints: list[str]) -> list[tuple[str, str]]:
    return [found for text in constraints for found in _LIMIT.findall(text)]


def _banned_characters(constraint: str) -> list[str]:
    if not _FORBIDS.search(constraint):
        return []
    return [quoted or bare for quoted, bare in _CHARACTER.findall(constraint)]


def _exceeds(text: str, count: str, unit: str) -> bool:
    return (len(text) if unit.lower() == "character" else len(text.split())) > int(count)
