"""LockFile: a file that one process holds at a time."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import final

from afnio.errors import LockHeldError


@final
class LockFile:
    """An OS lock on a file that names its holder; the system frees it when the process dies, however it dies.

    Raises:
        LockHeldError: somebody else holds it, another object of this process too.
        OSError: there can be no such file, or its file system knows no locks.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     lock = LockFile(pathlib.Path(folder) / "name.lock")
    ...     lock.release()
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pid = os.getpid()
        self._descriptor: int | None = None
        # Before there is anything to inherit: a child that kept the descriptor would hold the lock for
        # as long as it lives, after its parent's death too.
        os.register_at_fork(after_in_child=_forgetter(self))
        self._descriptor = _locked(path)

    def release(self) -> None:
        """Let go of it, in the process that took it; more than once does no harm."""
        if self._descriptor is not None and self._pid == os.getpid():
            descriptor, self._descriptor = self._descriptor, None
            # While it is still held, so that it is this lock's file and nobody else's.
            self.path.unlink(missing_ok=True)
            os.close(descriptor)

    def forget(self) -> None:
        """Close what a fork inherited, which leaves the parent's lock in place."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int:
    import fcntl

    while True:
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
            raise LockHeldError(path, holder) from error
        except BaseException:
            os.close(descriptor)
            raise
        # Its holder removed the file between our opening and our locking it: this is no lock at all.
        os.close(descriptor)


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(descriptor: int) -> int | None:
    text = os.pread(descriptor, 20, 0)
    return int(text) if text.isdigit() else None


def _forgetter(lock: LockFile) -> Callable[[], None]:
    # The interpreter keeps what is registered for ever, so it must not keep the lock.
    reference = weakref.ref(lock)

    def forget() -> None:
        held = reference()
        if held is not None:
            held.forget()

    return forget


# Private folders: what Afnio writes of prompts and replies, nobody else may read.


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone, whatever the umask.

    `mkdir(parents=True)` would make those above it as the umask says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_private_folder(Path(folder) / "one" / "two")
    ...     oct(Path(folder, "one").stat().st_mode)[-3:]
    '700'
    """
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
