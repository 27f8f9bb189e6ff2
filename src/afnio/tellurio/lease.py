"""Lease: what tells a run that goes on from one whose process was killed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, final

from afnio.runtime._files import LockFile, LockHeldError, make_private_folder

ATTEMPTS: Final = 20


@final
class Lease:
    """An OS lock on a file of the run's own; the system frees it when the process dies, however it dies.

    Readers try it; a process number alone would say that a dead run lives once another program has it.

    Raises:
        LockHeldError: another process has it, or another run of this one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: LockFile | None = None
        # A folder that can't be written, or knows no locks, has the store say so, or is seen by the number.
        with suppress(OSError):
            make_private_folder(path.parent)
            self._file = _locked(path)

    def release(self) -> None:
        """Give it back; in the process that took it."""
        if self._file is not None:
            self._file.release()


def lease_path(store: Path, run_id: str) -> Path:
    """Where a run's lease is, beside its journal."""
    return store.with_suffix("") / f"{run_id}.lease"


def is_held(path: Path) -> bool | None:
    """Whether some process has the lease; None where the file system can't tell.

    >>> is_held(Path("nowhere"))
    False
    """
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def _locked(path: Path) -> LockFile:
    for _ in range(ATTEMPTS):
        try:
            return LockFile(path)
        except LockHeldError:
            if is_held(path):
                raise
        time.sleep(0.01)  # only a reader tries it just now
    return LockFile(path)
