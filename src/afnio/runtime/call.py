"""Call: the path that every language model call takes, whoever makes it.

identify → admission (priority, in flight) → attempt (deadline) → classify → retry | fail | record
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

import anyio
from tenacity import RetryCallState

from afnio.errors import ModelError, TransientModelError
from afnio.runtime.admission import Priority, admitter, priority
from afnio.runtime.events import CallEnded, CallRetried, Usage, emit
from afnio.runtime.limits import Account
from afnio.runtime.retry import retrying
from afnio.runtime.runtime import Runtime

ATTEMPT_DEADLINE: Final = 600.0
"""Seconds that one attempt may take, from its first byte out to its last byte in."""


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...


R = TypeVar("R", bound=Reply)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One language model call: who asks whom for what.

    Attributes:
        address: where in the program it was launched: scope path, launch, lane, purpose.
        key: digest of everything that can change the reply.
        attempt: sends it once; raises a `TransientModelError` where another attempt may help.
    """

    address: str
    key: str
    account: Account
    model: str
    purpose: str
    attempt: Callable[[], Awaitable[R]]
    deadline: float = ATTEMPT_DEADLINE
    rank: Priority = field(default_factory=priority.get)


async def perform(runtime: Runtime, call: Call[R]) -> R:
    """Carry `call` out and return its reply; on the runtime's loop.

    Raises:
        ModelError: when it failed for good or its attempts are used up.
    """
    progress = _Progress()
    runtime.calls_open += 1
    try:
        try:
            reply = await _attempt(runtime, call, progress)
        except TransientModelError as error:
            reply = await _again(runtime, call, progress, error)
    except BaseException as error:
        if progress.attempts > 1 and isinstance(error, ModelError):
            error.add_note(f"after {progress.attempts} attempts in {progress.seconds:.1f} s")
        _tell_end(call, progress, Usage(), f"{type(error).__name__}: {error}")
        raise
    finally:
        runtime.calls_open -= 1
    _tell_end(call, progress, reply.usage, None)
    return reply


class _Progress:
    """How often a call was tried, for how long, and since when."""

    __slots__ = ("_started", "attempts", "on_wire")

    def __init__(self) -> None:
        self.attempts = 0
        self.on_wire = 0.0
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


async def _again(runtime: Runtime, call: Call[R], progress: _Progress, first: TransientModelError) -> R:
    """Try until an attempt succeeds or they are used up.

    Only a call whose first attempt failed pays for tenacity, whose every use leaves a reference cycle.
    """
    async for attempt in retrying(lambda state: _tell_retry(call, state)):
        with attempt:
            if attempt.retry_state.attempt_number == 1:
                raise first
            reply = await _attempt(runtime, call, progress)
    return reply


async def _attempt(runtime: Runtime, call: Call[R], progress: _Progress) -> R:
    progress.attempts += 1
    async with admitter(runtime, call.account).permit(call.rank, first=progress.attempts == 1):
        sent = time.monotonic()
        try:
            with anyio.move_on_after(call.deadline):
                return await call.attempt()
        finally:
            progress.on_wire += time.monotonic() - sent
        raise TransientModelError(
            f"{call.account.url} gave no reply within {call.deadline:g} s ({call.model})"
        )


def _tell_retry(call: Call[R], state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    wait = state.next_action.sleep if state.next_action is not None else 0.0
    emit(
        CallRetried(
            call.address, call.account.url, call.model, call.purpose, state.attempt_number, str(error), wait
        )
    )


def _tell_end(call: Call[R], progress: _Progress, usage: Usage, error: str | None) -> None:
    emit(
        CallEnded(
            call.address,
            call.account.url,
            call.model,
            call.purpose,
            progress.attempts,
            progress.on_wire,
            progress.seconds - progress.on_wire,
            usage,
            error,
        )
    )
