"""What goes wrong with a journal, apart from the disk (a plain `JournalError`)."""

from __future__ import annotations

from afnio.errors import JournalError


class JournalFormatError(JournalError, ValueError):
    """The file is foreign, corrupt or of a newer Afnio; it has been left as it is."""


class JournalLockedError(JournalError, RuntimeError):
    """Another journal object, most often of another process, holds the file.

    Attributes:
        pid: the process that holds it, or None where it has not said so yet.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class JournalClosedError(JournalError, RuntimeError):
    """The journal was used after it had been closed."""


class JournalForkedError(JournalError, RuntimeError):
    """The journal was opened by the parent process, to which its thread and its lock belong."""
