"""Ledger: what the provider saw of its clients."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, final


@final
class WorstWindow:
    """The most that came within any `seconds`, in requests and in tokens, each at its own worst.

    A window is open at one end: what comes exactly `seconds` later is in the next.

    >>> worst = WorstWindow(1.0)
    >>> for time in (0.0, 0.5, 1.0):
    ...     worst.add(time, tokens=10)
    >>> worst.requests, worst.tokens
    (2, 20)
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.requests = self.tokens = 0
        self._log: deque[tuple[float, int]] = deque()
        self._tokens = 0

    def add(self, now: float, tokens: int) -> None:
        log, edge = self._log, now - self.seconds
        while log and log[0][0] <= edge:
            self._tokens -= log.popleft()[1]
        log.append((now, tokens))
        self._tokens += tokens
        if len(log) > self.requests:
            self.requests = len(log)
        if self._tokens > self.tokens:
            self.tokens = self._tokens


@final
class Ledger:
    """Counts requests, their kinds, faults and attempts, and keeps the worst window and all windows.

    Args:
        window: seconds of a window.
    """

    def __init__(self, window: float) -> None:
        self.requests = self.in_flight = self.peak = 0
        self.prompt_tokens = self.completion_tokens = 0
        self.limited = 0
        self.kinds: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.attempts: dict[str, int] = {}
        self._worst = WorstWindow(window)
        self._start: float | None = None
        self._windows: dict[int, list[int]] = {}

    def enter(self) -> int:
        """Count a request that has come and return its index."""
        self.requests += 1
        self.in_flight += 1
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        return self.requests - 1

    def leave(self) -> None:
        """Count a request that is answered, or whose client has gone."""
        self.in_flight -= 1

    def read(self, request: str, tokens: int, now: float) -> int:
        """Count a request that could be read, with the tokens it may cost; returns which attempt it is."""
        self._worst.add(now, tokens)
        window = self._window(now)
        window[0] += 1
        window[1] += tokens
        attempt = self.attempts[request] = self.attempts.get(request, 0) + 1
        return attempt

    def refuse(self, limit: str, now: float) -> None:
        """Count a request that a quota refused."""
        self.refusals[limit] += 1
        self.limited += 1
        self._window(now)[2] += 1

    def stats(self) -> dict[str, Any]:
        """Return all counts as JSON has them."""
        return {
            "requests": self.requests,
            "peak_in_flight": self.peak,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "by_kind": dict(self.kinds),
            "by_fault": dict(self.faults),
            "by_refusal": dict(self.refusals),
            "sent_429": self.limited,
            "worst_window": {
                "seconds": self._worst.seconds,
                "requests": self._worst.requests,
                "tokens": self._worst.tokens,
            },
            "windows": [
                {"window": index, "requests": requests, "tokens": tokens, "refused": refused}
                for index, (requests, tokens, refused) in self._windows.items()
            ],
            "attempts": dict(self.attempts),
        }

    def _window(self, now: float) -> list[int]:
        if self._start is None:
            self._start = now
        index = int((now - self._start) // self._worst.seconds)
        window = self._windows.get(index)
        if window is None:
            window = self._windows[index] = [0, 0, 0]
        return window
