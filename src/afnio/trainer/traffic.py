"""Traffic: the calls of a run, counted from the engine's events."""

from __future__ import annotations

import time
from typing import Any, Final, final

from afnio.runtime.events import CallEnded, CallReplayed, CallRetried, CircuitClosed, CircuitOpened

TROUBLE_LASTS: Final = 15.0
"""Seconds for which a failed attempt is worth a line."""


@final
class Traffic:
    """Subscriber of events: called on the runtime's thread, where it only adds, and read on any other.

    Attributes:
        calls: those that got a reply.
        failed: those that got none in all of their attempts.
        cancelled: those that nobody wanted any more.
        retried: attempts that failed and were followed by another.
        replayed: calls answered from the journal; they are none of the above.
        tokens: in and out, as providers count them.

    >>> from afnio.runtime.events import Usage
    >>> traffic = Traffic()
    >>> traffic(CallEnded("1/forward", "https://host", "m", "forward", 1, 0.5, 0.0, Usage(20, 4), None))
    >>> traffic.calls, traffic.tokens
    (1, 24)
    """

    __slots__ = ("_closed", "_trouble", "calls", "cancelled", "failed", "replayed", "retried", "tokens")

    def __init__(self) -> None:
        self.calls = self.failed = self.cancelled = self.retried = self.replayed = self.tokens = 0
        self._trouble: tuple[float, str] | None = None
        self._closed: dict[str, str] = {}

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            self.tokens += event.usage.total_tokens
            if event.error is None:
                self.calls += 1
            elif event.error.startswith("Cancelled"):
                self.cancelled += 1
            else:
                self.failed += 1
                self._trouble = time.monotonic(), f"a call failed: {event.error}"
        elif isinstance(event, CallRetried):
            self.retried += 1
            when = f" in {event.wait:.1f} s" if event.wait >= 0.1 else ""
            self._trouble = time.monotonic(), f"a call is tried again{when}: {event.error}"
        elif isinstance(event, CallReplayed):
            self.replayed += 1
        elif isinstance(event, CircuitOpened):
            self._closed[event.account] = f"{event.account} does not answer, calls wait: {event.error}"
        elif isinstance(event, CircuitClosed):
            self._closed.pop(event.account, None)

    @property
    def trouble(self) -> str | None:
        """What is wrong with a provider just now, in one line, or None."""
        for text in list(self._closed.values()):
            return _line(text)
        trouble = self._trouble
        if trouble is not None and time.monotonic() - trouble[0] < TROUBLE_LASTS:
            return _line(trouble[1])
        return None


def _line(text: str) -> str:
    return " ".join(text.split())
