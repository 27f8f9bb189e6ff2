"""Retry: the one place that repeats an attempt."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final, final

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from afnio.errors import ModelError, RateLimitedError, TransientModelError, UnreachableError
from afnio.runtime.loop import loop_time

ATTEMPTS: Final = 8
"""At 20 % faults five attempts lose some call in 11 % of runs of 350 calls, eight in 0.1 %."""
REFUSED_FOR: Final = 3600.0
"""Seconds of nothing but refusals after which a call fails: a quota by the hour is waited for, one by the day isn't."""
BACKOFF_FIRST: Final = 0.5
BACKOFF_MAX: Final = 30.0
FIRST_CONTACT_MAX: Final = 2.0
"""The longest backoff towards a host that was never reached, so that a wrong URL is told within five seconds."""


def backoff(state: RetryCallState) -> float:
    """Return seconds to wait: full jitter (AWS, 2015), on top of what the provider asked for.

    Callers that were all told the same `retry-after` would otherwise come back as one herd.
    """
    error = state.outcome.exception() if state.outcome is not None else None
    longest = FIRST_CONTACT_MAX if is_first_contact(error) else BACKOFF_MAX
    ceiling = min(longest, BACKOFF_FIRST * 2 ** min(state.attempt_number - 1, 10))
    asked = error.retry_after if isinstance(error, ModelError) else None
    return (asked or 0.0) + random.uniform(0, ceiling)


@final
class _Stop:
    """Whether a call has been tried often enough.

    Refusals use up no attempts and no retry budget: the account is alive, and the call's turn will come. They
    end after an hour.
    """

    def __init__(self, granted: Callable[[BaseException], bool]) -> None:
        self._granted = granted
        self._attempts = 0
        self._refused_since: float | None = None

    def __call__(self, state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, RateLimitedError):
            now = loop_time()
            if self._refused_since is None:
                self._refused_since = now
            if now - self._refused_since < REFUSED_FOR:
                return False
            error.add_note(f"not tried again: it was refused for {REFUSED_FOR / 60:g} minutes, each time")
            return True
        self._refused_since = None
        self._attempts += 1
        # A first contact ends by time; a server that took its time over each refusal would never end it.
        most = 2 * ATTEMPTS if is_first_contact(error) else ATTEMPTS
        return self._attempts >= most or (error is not None and not self._granted(error))


def retrying(
    before_wait: Callable[[RetryCallState], None], granted: Callable[[BaseException], bool]
) -> AsyncRetrying:
    """Return the attempts of one call: transient errors are tried again, every other one is raised.

    Args:
        before_wait: told of each attempt that failed and will be repeated.
        granted: whether the account may have one more retry after this error, which is no refusal.
    """
    return AsyncRetrying(
        stop=_Stop(granted),
        wait=backoff,
        retry=retry_if_exception_type(TransientModelError),
        sleep=anyio.sleep,
        before_sleep=before_wait,
        reraise=True,
    )


def is_first_contact(error: BaseException | None) -> bool:
    """Whether a host can't be reached that never was; `AccountHealth` gives it some seconds."""
    return isinstance(error, UnreachableError) and error.first_contact
