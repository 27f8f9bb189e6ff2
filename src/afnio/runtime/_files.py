"""Lock files and private folders.

A lock file answers two questions: is someone else using this journal, run or folder of checkpoints, and is
the process that recorded this run still alive? A PID alone can't answer either. The process may be dead and
its number taken by another program. `LockFile` therefore holds an OS lock on a file (`flock`), which the
system releases when the process dies, even by SIGKILL. The PID in the file only serves the error message.
`is_locked` looks at such a file without taking it.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Final, final

from afnio.errors import LockHeldError

_ATTEMPTS: Final = 20


@final
class LockFile:
    """An OS lock on a file, with the PID of its holder as the content.

    The database or folder that it protects must be another file: closing any descriptor of a SQLite database
    drops the locks that SQLite holds on it in the same process.

    Raises:
        LockHeldError: the lock is held by another process, or by another object of this one.
        OSError: the file can't be created, or its file system has no locks.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = LockFile(pathlib.Path(folder) / "name.lock")
    ...     lock.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._descriptor: int | None = None
        # Register this before opening the file. A child forked in between would inherit the descriptor and
        # keep the lock until it exits, even if we die first.
        os.register_at_fork(after_in_child=_forgetter(self))
        self._descriptor = _locked(path)

    def release(self) -> None:
        """Release the lock and remove the file. Safe to call twice; does nothing in a forked child."""
        if self._descriptor is not None and self._pid == os.getpid():
            descriptor, self._descriptor = self._descriptor, None
            # Unlink before closing. Afterwards the path may be another process's lock.
            self.path.unlink(missing_ok=True)
            os.close(descriptor)

    def forget(self) -> None:
        """Close the descriptor that a fork inherited. The parent keeps the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_locked(path: Path) -> bool | None:
    """Return True if some process holds this lock file, or None if the file system can't tell.

    >>> is_locked(Path("nowhere"))
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

    attempt = 0
    while True:
        attempt += 1
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
                return descriptor
        except BlockingIOError as error:
            holder = _holder(descriptor)
            os.close(descriptor)
            # A process in `is_locked` has a shared lock for a moment. That isn't a holder.
            if attempt >= _ATTEMPTS or is_locked(path):
                raise LockHeldError(path, holder) from error
            time.sleep(0.01)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        # The previous holder unlinked the file after we opened it, so we locked nothing. Try again.
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> int | None:
    # Empty for a moment, between the lock and the write.
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else None


def _forgetter(lock: LockFile) -> Callable[[], None]:
    # A fork hook can't be unregistered, so don't let it keep the lock alive.
    reference = weakref.ref(lock)

    def forget() -> None:
        held = reference()
        if held is not None:
            held.forget()

    return forget


def make_private_folder(path: Path) -> None:
    """Make a folder, and missing ones above it, for this user only (mode 0700).

    Afnio's files contain prompts and replies. `mkdir(parents=True)` would give the parents the umask's mode.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_private_folder(Path(folder) / "one" / "two")
    ...     oct(Path(folder, "one").stat().st_mode)[-3:]
    '700'
    """
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
