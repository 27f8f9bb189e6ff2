"""Lock files: one holder, no inheritance, and a look at them from outside."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from afnio.errors import LockHeldError
from afnio.runtime._files import LockFile, is_locked


def test_it_is_held_until_it_is_released(tmp_path: Path) -> None:
    """The file goes with the lock; releasing twice does no harm."""
    lock = LockFile(tmp_path / "name.lock")
    assert is_locked(lock.path)
    with pytest.raises(LockHeldError) as caught:
        LockFile(lock.path)
    assert os.getpid() == caught.value.holder
    lock.release()
    lock.release()
    assert not lock.path.exists()
    assert not is_locked(lock.path)


def test_a_file_that_its_holder_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that opened it before that, and locked it after, tries again with the new file."""
    first = LockFile(tmp_path / "name.lock")
    real = os.open

    def late(*args: object, **kwargs: object) -> int:
        descriptor = real(*args, **kwargs)
        first.release()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    second = LockFile(first.path)
    monkeypatch.undo()
    assert is_locked(second.path)
    second.release()
    assert not second.path.exists()


def test_a_process_that_looks_is_no_holder(tmp_path: Path) -> None:
    """It has a shared lock for a moment; taking the lock waits for that."""
    path = tmp_path / "name.lock"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)

    def let_go() -> None:
        time.sleep(0.03)
        os.close(descriptor)

    looking = threading.Thread(target=let_go)
    looking.start()
    LockFile(path).release()
    looking.join()
