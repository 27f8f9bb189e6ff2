"""Circuit: an account that fails again and again is left alone, and tried by one call at a time."""

from __future__ import annotations

import math
from typing import Final, final

OPENS_AFTER: Final = 20
"""Failures in a row."""
FIRST_PROBE: Final = 1.0
"""Seconds until the first probe; each failed probe doubles it."""
LAST_PROBE: Final = 30.0
"""Seconds between probes at most."""
GIVES_UP: Final = 600.0
"""Seconds of failed probes after which those who wait fail."""


@final
class Circuit:
    """A circuit breaker (Nygard, Release It!, 2007): closed, open, half open while a probe is under way.

    Failures are transient errors that are no rate limits: those mean that the account is alive. An
    account that has never answered has no circuit, as a wrong URL must not be waited for.

    >>> circuit = Circuit()
    >>> circuit.succeeded(now=0.0)
    >>> any([circuit.failed(now=5.0, probe=False) for _ in range(20)])
    True
    >>> circuit.wait(now=5.0)
    1.0
    """

    def __init__(self) -> None:
        self.answered = False
        self.failures = 0
        self.opened_at: float | None = None
        self._probing = False
        self._next_probe = 0.0
        self._pause = FIRST_PROBE

    def wait(self, now: float) -> float:
        """Return the seconds until a call may go; infinite until the probe under way has ended."""
        if self.opened_at is None:
            return 0.0
        return math.inf if self._probing else max(0.0, self._next_probe - now)

    def send(self) -> bool:
        """Let a call go; returns whether it is a probe."""
        self._probing = self.opened_at is not None
        return self._probing

    def succeeded(self, now: float) -> float | None:
        """Close the circuit; returns the seconds for which it was open, None if it wasn't."""
        opened_at, self.opened_at = self.opened_at, None
        self.answered = True
        self.failures = 0
        self._probing = False
        self._pause = FIRST_PROBE
        return None if opened_at is None else now - opened_at

    def failed(self, now: float, *, probe: bool) -> bool:
        """Count a failure; returns whether it opened the circuit."""
        self.failures += 1
        if probe:
            self._probing = False
            self._pause = min(LAST_PROBE, 2 * self._pause)
            self._next_probe = now + self._pause
        if self.opened_at is not None or not self.answered or self.failures < OPENS_AFTER:
            return False
        self.opened_at = now
        self._next_probe = now + self._pause
        return True

    def released(self, *, probe: bool) -> None:
        """End a call that says nothing, as it was cancelled or refused; the next one may probe."""
        if probe:
            self._probing = False

    def given_up(self, now: float) -> bool:
        """Whether probes have failed for so long that nobody should wait any more."""
        return self.opened_at is not None and now - self.opened_at >= GIVES_UP
