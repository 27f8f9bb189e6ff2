"""Tally: the calls and tokens of each phase, counted from the engine's events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from afnio.runtime.events import CallEnded, CallRetried, StepEnded


@dataclass(slots=True)
class Phase:
    """Calls of one purpose.

    Attributes:
        failed: calls that got no reply in all of their attempts.
        seconds: from launch to reply, added up over all calls.
    """

    calls: int = 0
    retries: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.calls + other.calls,
            self.retries + other.retries,
            self.failed + other.failed,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclass(slots=True)
class Tally:
    """Subscriber of events; it is called on the runtime's thread and read once the calls have ended.

    Attributes:
        gradients: feedback texts that steps were given.
        on_call: told of each call that ended, with its purpose.
        on_retry: told why a call is tried again.
    """

    on_call: Callable[[str], None]
    on_retry: Callable[[str], None]
    phases: dict[str, Phase] = field(default_factory=dict)
    gradients: int = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            phase = self.phases.setdefault(event.purpose, Phase())
            phase.calls += 1
            phase.failed += event.error is not None
            phase.prompt_tokens += event.usage.prompt_tokens
            phase.completion_tokens += event.usage.completion_tokens
            phase.seconds += event.seconds
            self.on_call(event.purpose)
        elif isinstance(event, CallRetried):
            self.phases.setdefault(event.purpose, Phase()).retries += 1
            self.on_retry(f"attempt {event.attempt} failed, again in {event.wait:.1f} s: {event.error}")
        elif isinstance(event, StepEnded):
            self.gradients += sum(change.gradients for change in event.changes)

    @property
    def total(self) -> Phase:
        return sum(self.phases.values(), Phase())
