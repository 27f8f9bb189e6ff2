"""Lock: one process, and one journal object of it, holds a journal at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from afnio.errors import JournalError
from afnio.runtime.journal.errors import JournalLockedError
from afnio.runtime.lock_file import LockFile, LockHeldError


@final
class Lock:
    """A lock file beside a journal.

    The database itself can't carry the lock: closing a descriptor of a file drops the locks that SQLite holds
    on that file in the same process.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = Lock(pathlib.Path(folder) / "calls.journal")
    ...     lock.release()

    Raises:
        JournalLockedError: somebody else holds it.
        JournalError: the folder can't be written, or its file system knows no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        try:
            self._file = LockFile(self.path)
        except LockHeldError as error:
            raise _refusal(path, error.holder) from error
        except OSError as error:
            raise JournalError(
                f"The folder [{path.parent}] takes no lock file for the journal ({error}); "
                "name a path in a local folder that you may write to."
            ) from error

    def release(self) -> None:
        """Let go of the journal, in the process that took it; more than once does no harm."""
        self._file.release()


def _refusal(journal: Path, holder: int | None) -> JournalLockedError:
    if holder == os.getpid():
        message = f"The journal [{journal}] is open in this process already; close it first."
    else:
        who = "another process" if holder is None else f"the process [{holder}]"
        message = f"The journal [{journal}] is in use by {who}; wait for its end, or name another path."
    return JournalLockedError(message, holder)
