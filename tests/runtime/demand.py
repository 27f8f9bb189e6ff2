"""Calls as admission sees them, and one attempt of a call as a block."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Self

from afnio.errors import ModelError
from afnio.runtime import RateLimits
from afnio.runtime._admission import Admitter
from afnio.runtime._call import AttemptOutcome
from afnio.runtime._call_queue import Permit
from afnio.runtime._settings import Priority
from afnio.runtime.events import Usage


@dataclass(frozen=True)
class Demand:
    """One call as admission sees it."""

    priority: Priority = Priority.TRAINING
    depth: int = 0
    model: str = "m"
    purpose: str = "forward"
    site: str | None = None
    prompt_tokens: int = 0
    max_output: int | None = 0
    prefix: int = 0


class Attempt(AbstractAsyncContextManager["Attempt"]):
    """Enters the wire with the block and leaves it as the block ends, as the call path does."""

    permit: Permit

    def __init__(self, admit: Admitter, demand: Demand, *, first: bool = True) -> None:
        self._admit = admit
        self._demand = demand
        self._first = first
        self._usage: Usage | None = None
        self._limits: RateLimits | None = None

    def reply(self, usage: Usage, limits: RateLimits | None = None) -> None:
        self._usage, self._limits = usage, limits

    async def __aenter__(self) -> Self:
        self.permit = await self._admit.enter(self._demand, first=self._first)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._admit.leave(self.permit, AttemptOutcome.REPLIED, usage=self._usage, limits=self._limits)
        elif isinstance(error, ModelError):
            self._admit.leave(self.permit, AttemptOutcome.of(error), limits=error.limits, error=error)
        else:
            self._admit.leave(self.permit, AttemptOutcome.CUT_OFF, error=error)
