"""Skills: what a student does better once its instructions tell it to, in tasks with an exact answer.

Three families: counting objects and sorting words, as in BIG-Bench Hard, and the notes of a small
question-answering system whose steps retrieve, draft and judge. An untold student makes the mistakes
that small models make there; each skill ends one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from afnio.testing.simulated.kinds import is_of_kind, quantity


@dataclass(frozen=True, slots=True)
class Skill:
    """One thing to be told: words that tell it, and how a critic asks for it."""

    told: re.Pattern[str]
    wish: str


def _skill(told: str, wish: str) -> Skill:
    return Skill(re.compile(told, re.IGNORECASE), wish)


class Task(NamedTuple):
    """A kind of message, what a student does with it, and the skills that may be told."""

    asks: re.Pattern[str]
    solve: Callable[[str, Collection[str]], str]
    skills: dict[str, Skill]
    inputs: bool = False
    """Whether the message holds what earlier steps of a system wrote."""


def task_of(message: str) -> Task | None:
    """Return the task that a message poses, or None."""
    return next((task for task in TASKS if task.asks.search(message)), None)


def told_skills(task: Task, instructions: str) -> list[str]:
    """Return the names of the skills that instructions tell."""
    return [name for name, skill in task.skills.items() if skill.told.search(instructions)]


# Counting ----------------------------------------------------------------------------------------


def _count(message: str, skills: Collection[str]) -> str:
    listed, _, kind = re.sub(r"(?s).*?\bI have ", "", message, count=1).partition("How many ")
    parts = [part for part in re.split(r",|\band\b", listed) if part.strip(" .\n")]
    if "kind" in skills:
        kind = kind.split(" do I have")[0].strip()
        parts = [part for part in parts if is_of_kind(part, kind)]
    return str(sum(quantity(part) if "quantity" in skills else 1 for part in parts))


# Sorting -----------------------------------------------------------------------------------------

_LONG_LIST: Final = 10


def _sort(message: str, skills: Collection[str]) -> str:
    words = message.partition("List:")[2].split()
    if "all" not in skills and len(words) > _LONG_LIST:
        words = words[:-1]
    return " ".join(sorted(words) if "letters" in skills else sorted(words, key=lambda word: word[:1]))


# Notes -------------------------------------------------------------------------------------------

_NOTE: Final = re.compile(r"^\[\d+\] (.+), (.+), (\d{4}): (.+)$", re.MULTILINE)
_QUESTION: Final = re.compile(r"Question: What is the (.+) of (.+)\?")
_MOST_NOTES: Final = 2
UNKNOWN: Final = "unknown"


def notes_in(text: str) -> list[tuple[str, str, int, str, str]]:
    """Return `(place, topic, year, value, line)` of each note in a text.

    >>> notes_in("[1] Elm House, opening time, 2023: 7:30")
    [('Elm House', 'opening time', 2023, '7:30', '[1] Elm House, opening time, 2023: 7:30')]
    """
    return [(m[1], m[2], int(m[3]), m[4], m[0]) for m in _NOTE.finditer(text)]


def _asked(message: str) -> tuple[str, str]:
    found = _QUESTION.search(message)
    return (found[1], found[2]) if found else ("", "")


def _retrieve(message: str, skills: Collection[str]) -> str:
    topic, place = _asked(message)
    notes = [note for note in notes_in(message) if note[0] == place]
    if "topic" in skills:
        notes = [note for note in notes if note[1] == topic]
    return "\n".join(note[4] for note in notes[:_MOST_NOTES]) or "(no note)"


def _draft(message: str, skills: Collection[str]) -> str:
    notes = notes_in(message)
    if not notes:
        return "unclear"
    return max(notes, key=lambda note: note[2])[3] if "recent" in skills else notes[0][3]


def _judge(message: str, skills: Collection[str]) -> str:
    topic, place = _asked(message)
    draft = message.partition("Draft:")[2].strip()
    supported = any(note[:2] == (place, topic) for note in notes_in(message))
    return UNKNOWN if "unknown" in skills and not supported else draft


TASKS: Final = (
    Task(
        re.compile(r"\bI have .*\bHow many .* do I have\?", re.DOTALL),
        _count,
        {
            "quantity": _skill(
                r"\b(?:quantit\w+|add up|number words?)\b",
                "add up the quantities, so that a number word counts as so many",
            ),
            "kind": _skill(
                r"\b(?:leave out|exclude|only (?:the )?(?:things|items|objects))\b",
                "leave out things that are not of the kind asked for",
            ),
        },
    ),
    Task(
        re.compile(r"\bSort the following words alphabetically\b.*\bList:", re.DOTALL),
        _sort,
        {
            "letters": _skill(
                r"\b(?:letter by letter|second letters?|next letters?)\b",
                "compare words letter by letter, the second letter where the first is the same",
            ),
            "all": _skill(
                r"\b(?:every word|all (?:of )?the words|no word)\b",
                "check that every word of the list is in the answer",
            ),
        },
    ),
    Task(
        re.compile(r"Question: .*\nNotes:", re.DOTALL),
        _retrieve,
        {
            "topic": _skill(
                r"\btopic\b.*\b(?:match\w*|fits?)\b|\bmatch\w*\b.*\btopic\b",
                "take only notes whose topic matches the question as well as the place",
            )
        },
    ),
    Task(
        re.compile(r"Question: .*\nRetrieved:.*\nDraft:", re.DOTALL),
        _judge,
        {
            "unknown": _skill(
                rf"\b{UNKNOWN}\b", f'say "{UNKNOWN}" where no retrieved note answers the question'
            )
        },
        inputs=True,
    ),
    Task(
        re.compile(r"Question: .*\nRetrieved:", re.DOTALL),
        _draft,
        {
            "recent": _skill(
                r"\b(?:most recent|latest|newest)\b", "go by the most recent note where several answer"
            )
        },
        inputs=True,
    ),
)
