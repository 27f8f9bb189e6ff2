"""Outcome: what one method made of one task with one seed, and what it took."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Scores = Sequence[float | None]
"""One for each item of the test split; None where there was no usable answer."""

Key = tuple[str, str, int, int, str, float]
"""Method, task, calls, seed, critic, latency: what a run is of."""


@dataclass(slots=True)
class Outcome:
    """One run.

    Attributes:
        budget: LM calls that it was to take.
        critic: "astray" where the critic is always beside the point, else "".
        latency: seconds that each call took at least.
        scores: of the final prompts on the test split.
        rounds: how many calls had to wait for one another, at most. Only meaningful with a latency.
        path: for time to quality: after each step the seconds and calls since the start, the rounds, the share right.
        calls: LM calls of the training, its validations counted, the test not.
        cost: dollars; None where nobody says what a call costs.
        prompts: the final text of each parameter.
        lengths: characters of all prompts after each step.
        gradients: feedback texts that each parameter got.
        dropped: why edits were left out, and how often.
        gate: what the gate said.
        note: why it ended early, if it did.
    """

    method: str
    task: str
    seed: int
    budget: int = 0
    critic: str = ""
    latency: float = 0.0
    scores: list[float | None] = field(default_factory=list)
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    steps: int = 0
    prompts: dict[str, str] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    gradients: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    path: list[tuple[float, int, int, float]] = field(default_factory=list)
    gate: str = ""
    note: str = ""

    @property
    def key(self) -> Key:
        return self.method, self.task, self.budget, self.seed, self.critic, self.latency

    @property
    def correct(self) -> float:
        return sum(score for score in self.scores if score is not None)

    @property
    def answered(self) -> int:
        return sum(score is not None for score in self.scores)

    @property
    def share(self) -> float:
        return self.correct / self.answered if self.answered else 0.0

    def as_dict(self) -> Mapping[str, Any]:
        return asdict(self)

    def line(self) -> str:
        """Return the run as a line of JSON; scores that are right or wrong take a character each."""
        found = {name: value for name, value in asdict(self).items() if value not in (None, "", {}, [], 0)}
        found["seed"], found["seconds"] = self.seed, round(self.seconds, 3)
        found["lengths"] = self.lengths[-1:]
        if all(score in _LETTERS for score in self.scores):
            found["scores"] = "".join(_LETTERS[score] for score in self.scores)
        else:
            found["scores"] = [None if score is None else round(score, 4) for score in self.scores]
        return json.dumps(found, ensure_ascii=False)

    @classmethod
    def of(cls, line: str) -> Outcome:
        """Return the run of a line that `line` wrote."""
        found = json.loads(line)
        if isinstance(found["scores"], str):
            found["scores"] = [_SCORES[letter] for letter in found["scores"]]
        return cls(**found)


_LETTERS: dict[float | None, str] = {1.0: "1", 0.0: "0", None: "-"}
_SCORES: dict[str, float | None] = {letter: score for score, letter in _LETTERS.items()}
