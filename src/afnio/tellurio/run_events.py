"""Events of a run itself, which its sinks get besides those of `afnio.runtime.events`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run starts; the first event that a sink gets.

    Attributes:
        date: seconds since 1970 UTC.
        continued: whether an earlier process had begun it.
    """

    run_id: str
    name: str
    namespace: str
    project: str
    description: str | None
    config: Mapping[str, Any]
    date: float
    continued: bool


@dataclass(frozen=True, slots=True)
class MetricLogged:
    """A value was logged; `step` is None where the store counts."""

    name: str
    value: Any
    step: int | None


@dataclass(frozen=True, slots=True)
class TextLogged:
    """A text was logged."""

    name: str
    text: str
    step: int | None


@dataclass(frozen=True, slots=True)
class TableLogged:
    """A table was logged."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    step: int | None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run has ended; the last event that a sink gets."""

    status: str
