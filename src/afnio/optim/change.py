"""Change, Evidence, Candidate: what a step found and did, as plain data for logs, stores and displays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Evidence:
    """One feedback that a proposer was shown.

    Attributes:
        text: what it says.
        trail: the samples that stand behind it, plain data as in `Variable.provenance`.
    """

    text: str
    trail: tuple[Mapping[str, Any], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to one parameter.

    Attributes:
        role: the parameter's role.
        before, after: its values.
        gradients: how many it had.
        rejected: why a proposal was not taken, None if it was, or if there was none.
        evidence: the feedback as the proposer was shown it, after reduction.
    """

    role: str
    before: Any
    after: Any
    gradients: int
    rejected: str | None = None
    evidence: tuple[Evidence, ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Candidate:
    """Values for all parameters of an optimizer that were weighed against others.

    Attributes:
        number: the candidate's own, unique within the optimizer; 0 is what it started from.
        parents: the numbers of those that it was made from.
        values: one for each parameter, in the optimizer's order.
        scores: one for each sample that it was evaluated on, None where that failed or was cancelled.
        verdict: accepted, or why not.
    """

    number: int
    parents: tuple[int, ...]
    values: tuple[Any, ...]
    scores: tuple[float | None, ...]
    verdict: str
