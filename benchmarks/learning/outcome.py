"""Outcome: what one method made of one task with one seed, and what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Scores = Sequence[float | None]
"""One for each item of the test split; None where there was no usable answer."""


@dataclass(slots=True)
class Outcome:
    """One run.

    Attributes:
        scores: of the final prompts on the test split.
        calls: LM calls of the training, its validations counted, the test not.
        cost: dollars; None where nobody says what a call costs.
        prompts: the final text of each parameter.
        lengths: characters of all prompts after each step.
        gradients: feedback texts that each parameter got.
        note: why it ended early, if it did.
    """

    method: str
    task: str
    seed: int
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
    note: str = ""

    @property
    def correct(self) -> float:
        return sum(score for score in self.scores if score is not None)

    @property
    def answered(self) -> int:
        return sum(score is not None for score in self.scores)

    def as_dict(self) -> Mapping[str, Any]:
        return asdict(self)
