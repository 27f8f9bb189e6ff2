"""Records: what a reader of the store gets, as plain typed data. Times are seconds since 1970 UTC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run; `status` is as it is now, so a killed one has CRASHED."""

    store: Path
    id: str
    name: str
    description: str | None
    namespace: str
    project: str
    status: str
    config: Any
    identity: Any
    seed: int
    host: str
    pid: int
    date_created: float
    date_updated: float
    git_commit: str | None
    versions: Mapping[str, str]
    platform: Mapping[str, Any]
    in_flight: int
    waiting: int
    dropped: int

    @property
    def path(self) -> str:
        """What names it among all runs: namespace/project/name."""
        return f"{self.namespace}/{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class MetricRecord:
    """One value of a metric."""

    name: str
    step: int
    value: Any
    time: float


@dataclass(frozen=True, slots=True)
class Spending:
    """Calls added up; `cost` in dollars, None where nobody says what they cost, `unpriced` how many those are.

    `cancelled` calls were given up by the program, as when a candidate can't win any more; they didn't fail.
    """

    calls: int
    failed: int
    cancelled: int
    replayed: int
    attempts: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: float | None
    unpriced: int
    seconds: float


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call without its texts; `id` is what pages are keyed by."""

    id: int
    address: str
    node: str
    lane: int | None
    phase: str
    purpose: str
    account: str
    model: str
    status: str
    replayed: int
    attempts: int
    seconds: float
    waited: float
    started: float
    ended: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class CallTexts:
    """What a call asked and what it was answered, as JSON values."""

    messages: list[Any]
    params: Any
    reply: Any


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """What an evaluator said of one sample."""

    id: int
    node: str
    lane: int | None
    phase: str
    key: str | None
    prediction: str | None
    target: str | None
    score: float | None
    note: str | None
    explanation: str | None
    success: bool


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """One feedback that a proposer was shown, and the samples behind it."""

    text: str
    samples: list[Any]


@dataclass(frozen=True, slots=True)
class ChangeRecord:
    """What a step did to one parameter."""

    parameter: int
    role: str
    before: str
    after: str
    gradients: int
    rejected: str | None
    evidence: list[EvidenceRecord]


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """Values that a step weighed against others."""

    number: int
    parents: list[int]
    values: list[Any]
    scores: list[float | None]
    verdict: str


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of an optimizer."""

    id: int
    number: int
    address: str
    optimizer: str
    error: str | None
    time: float
    changes: list[ChangeRecord]
    candidates: list[CandidateRecord]


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """One value that a parameter had, from step `step` on; 0 is what it started from."""

    number: int
    step: int
    role: str
    value: str


def kept(changes: Iterable[tuple[str, str | None]]) -> list[tuple[list[str], str]]:
    """Why a step kept the values of parameters: each reason once, with the roles that it is about.

    >>> kept([("task", None), ("style", "it got longer"), ("tone", "it got longer")])
    [(['style', 'tone'], 'it got longer')]

    Args:
        changes: for each parameter its role, and why its proposal was not taken, None where it was.
    """
    reasons: dict[str, list[str]] = {}
    for role, reason in changes:
        if reason:
            reasons.setdefault(reason, []).append(role)
    return [(roles, reason) for reason, roles in reasons.items()]
