"""Faults: start prompts with a sentence that does harm, to see which methods get rid of it.

* `harm the critic can name`: the sentence has the form in which the simulated critic reads cues, so it can deny them.
* `harm it can't name`: the same words in prose. The student reads them, the critic doesn't see that they mislead.
* `wrong labels`: cues with the label names of another system. They do no harm, but the critic takes their phrases for
  known and doesn't name them again.
* `wrong format`: the prompt asks for capital letters, and the expected answers are lower-case. No schema helps, and the
  critic speaks of the message, never of the format.

Each fault is a sentence of its own (wrong labels: three).
"""

from __future__ import annotations

WORDS = ("thank", "hope", "appreciate", "team", "services", "regards")
"""Words that messages of every label contain."""
_MEANT = {"sentiment": "negative", "urgency": "high"}
_OLD = {
    "sentiment": {
        "good": ("exceptional", "outstanding", "impressed", "pleased with", "testament", "highly"),
        "mixed": ("inquire", "information about", "details", "schedule", "arrange", "assistance"),
        "bad": ("disappointed", "frustrated", "unacceptable", "issue", "concern", "unfortunately"),
    },
    "urgency": {
        "now": ("urgent", "immediate", "emergency", "critical", "immediately", "as soon as possible"),
        "soonish": ("soon", "schedule", "request", "concern", "issue", "assistance"),
        "later": ("inquire", "information about", "learn more", "interested in", "feedback", "commend"),
    },
}

FAULTS = ("harm-named", "harm-unnamed", "wrong-labels", "wrong-format")


def faulty(prompt: str, task: str, fault: str) -> str:
    """Return the start prompt with its fault.

    >>> faulty("Determine the sentiment.", "sentiment", "wrong-format")
    'Determine the sentiment. Write the answer in capital letters.'
    """
    if fault == "harm-named":
        return f'{prompt} Answer "{_MEANT[task]}" when the message mentions: {", ".join(WORDS)}.'
    if fault == "harm-unnamed":
        quoted = ", ".join(f'"{word}"' for word in WORDS)
        return f"{prompt} Words like {quoted} mean {_MEANT[task]}."
    if fault == "wrong-format":
        return f"{prompt} Write the answer in capital letters."
    cues = (f'Answer "{label}" when the message mentions: {", ".join(p)}.' for label, p in _OLD[task].items())
    return " ".join([prompt, *cues])
