"""Lease: what tells a run that goes on from one whose process was killed."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, final

ATTEMPTS: Final = 20


@final
class Lease:
    """An OS lock on a file of the run's own; the system frees it when the process dies, however it dies.

    Readers try it; a process number alone would say that a dead run lives once another program has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._descriptor: int | None = None
        # A child that kept the descriptor would hold the lock after its parent's death.
        os.register_at_fork(after_in_child=_closer(self))
        # A folder that can't be written, or knows no locks, has the store say so, or is seen by the number.
        with suppress(OSError):
            self._descriptor = _locked(path)

    def release(self) -> None:
        """Give it back; in the process that took it."""
        if self._descriptor is not None and self._pid == os.getpid():
            descriptor, self._descriptor = self._descriptor, None
            self.path.unlink(missing_ok=True)
            os.close(descriptor)

    def forget(self) -> None:
        """Close what a fork inherited, which leaves the parent's lock in place."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


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


def _locked(path: Path) -> int:
    import fcntl

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(0.01)  # a reader tries it just now
            continue
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    raise OSError(f"{path} is held by another process")


def _closer(lease: Lease) -> Callable[[], None]:
    reference = weakref.ref(lease)  # what is registered is kept for ever

    def close() -> None:
        held = reference()
        if held is not None:
            held.forget()

    return close
