"""What the tests of admission ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

from afnio.runtime._settings import Priority, Urgency


@dataclass(frozen=True)
class Demand:
    """One call as admission sees it."""

    rank: Priority = Priority.TRAINING
    depth: int = 0
    model: str = "m"
    purpose: str = "forward"
    site: str | None = None
    prompt_tokens: int = 0
    max_output: int | None = 0
    urgency: Urgency = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "urgency", Urgency(self.rank))
