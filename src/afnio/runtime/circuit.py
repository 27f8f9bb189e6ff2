"""Circuit: an account that fails again and again is left alone, and tried by one call at a time."""

from __future__ import annotations

import math
from typing import Final, final

BLOCK: Final = 22
"""Requests that were sent one after another and are judged together."""
OPENS_AFTER: Final = 20
"""Failures among them."""
FIRST_PROBE: Final = 1.0
"""Seconds until the first probe; each failed probe doubles it."""
LAST_PROBE: Final = 30.0
"""Seconds between probes at most."""
GIVES_UP: Final = 600.0
"""Seconds of failed probes after which those who wait fail."""


@final
class Circuit:
    """A circuit breaker (Nygard, Release It!, 2007): closed, open, half open while a probe is under way.

    It opens when 20 of 22 requests have failed that were sent one after another. The order of sending
    counts, not that of arrival: failures are often quicker than replies, so that a fifth of 256 requests
    may fail before the first of the others is answered.

    Failures are transient errors that are no rate limits: those mean that the account is alive. An
    account that has never answered has no circuit, as a wrong URL must not be waited for.

    Requests are known by a number that grows with each one sent.

    >>> circuit = Circuit()
    >>> circuit.succeeded(0, now=0.0)
    >>> any([circuit.failed(number, now=5.0, probe=False) for number in range(1, 21)])
    True
    >>> circuit.wait(now=5.0)
    1.0
    """

    def __init__(self) -> None:
        self.answered = False
        self.failures = 0
        """Since the last answer."""
        self.opened_at: float | None = None
        self.opened_by = (0, 0)
        """The failures that opened it last, and the requests that they were among."""
        self._sent = 0
        self._blocks: dict[int, int] = {}
        self._newest_answered = 0
        self._probing = False
        self._next_probe = 0.0
        self._pause = FIRST_PROBE

    def wait(self, now: float) -> float:
        """Return the seconds until a call may go; infinite until the probe under way has ended."""
        if self.opened_at is None:
            return 0.0
        return math.inf if self._probing else max(0.0, self._next_probe - now)

    def send(self, number: int) -> bool:
        """Let a call go; returns whether it is a probe."""
        self._sent = number
        self._probing = self.opened_at is not None
        return self._probing

    def succeeded(self, number: int, now: float) -> float | None:
        """Close the circuit; returns the seconds for which it was open, None if it wasn't."""
        opened_at, self.opened_at = self.opened_at, None
        self.answered = True
        self.failures = 0
        self._probing = False
        self._pause = FIRST_PROBE
        block = number // BLOCK
        if block > self._newest_answered:
            # What was sent before it says nothing any more, however late it fails.
            self._newest_answered = block
            self._blocks = {late: failed for late, failed in self._blocks.items() if late >= block}
        return None if opened_at is None else now - opened_at

    def failed(self, number: int, now: float, *, probe: bool) -> bool:
        """Count a failure; returns whether it opened the circuit."""
        self.failures += 1
        if probe:
            self._probing = False
            self._pause = min(LAST_PROBE, 2 * self._pause)
            self._next_probe = now + self._pause
        block = number // BLOCK
        if self.opened_at is not None or not self.answered or block < self._newest_answered:
            return False
        failed = self._blocks[block] = self._blocks.get(block, 0) + 1
        if failed < OPENS_AFTER:
            return False
        self._blocks.clear()
        self.opened_at = now
        self.opened_by = failed, max(failed, min(BLOCK, self._sent - block * BLOCK + 1))
        self._next_probe = now + self._pause
        return True

    def released(self, *, probe: bool) -> None:
        """End a call that says nothing, as it was cancelled or refused; the next one may probe."""
        if probe:
            self._probing = False

    def given_up(self, now: float) -> bool:
        """Whether probes have failed for so long that nobody should wait any more."""
        return self.opened_at is not None and now - self.opened_at >= GIVES_UP
