"""Failures: outcomes of lanes that failed, and the log of those that nobody reads."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Final, final


@final
class Failure:
    """Outcome of a lane that failed: its error, kept so that it can be raised more than once.

    An unread failure is logged when the last slot that holds it is garbage-collected.
    """

    __slots__ = ("__weakref__", "_causes", "_read", "_traceback", "error", "place")

    def __init__(self, error: BaseException, *, read: bool = False, place: str | None = None) -> None:
        self.error = error
        # The op that failed and the line that launched it. The reader may be many ops further downstream.
        self.place = place
        self._read = read
        self._traceback: TracebackType | None = error.__traceback__
        # Reading a batch's failure counts as reading those of its samples.
        self._causes: tuple[Failure, ...] = getattr(error, "failures", ())

    @property
    def read(self) -> bool:
        return self._read or (bool(self._causes) and all(cause.read for cause in self._causes))

    @property
    def causes(self) -> tuple[Failure, ...]:
        """The failures of the samples, if this is the failure of a batch."""
        return self._causes

    def mark_read(self) -> None:
        """Don't log this failure: its error has been raised or reported."""
        self._read = True
        for cause in self._causes:
            cause.mark_read()

    def raised(self) -> BaseException:
        """Return the error to raise. Its traceback is reset, because each `raise` of a shared error would extend it."""
        self.mark_read()
        return self.error.with_traceback(self._traceback)

    def __repr__(self) -> str:
        return f"<failure: {self.error!r}>"

    def __del__(self) -> None:
        if not self.read:
            unread.add(self)


@final
class UnreadFailures:
    """Logs failures that were never read: the first of each kind and launching line, and at the end how many more."""

    def __init__(self) -> None:
        self._seen: set[tuple[type, str | None]] = set()
        self._more = 0

    def add(self, failure: Failure) -> None:
        kind = type(failure.error), failure.place
        if kind in self._seen:
            self._more += 1
            return
        self._seen.add(kind)
        notes = "; ".join(getattr(failure.error, "__notes__", ()))
        logging.getLogger("afnio").error(
            "a failure was never read: %s: %s (%s)", type(failure.error).__name__, failure.error, notes
        )

    def end(self) -> None:
        more, self._more = self._more, 0
        if more:
            logging.getLogger("afnio").error("%d more failures of these kinds were never read", more)


unread: Final = UnreadFailures()
