"""Lock files that others open at the same moment. One holder and no inheritance: runtime/journal/test_lock."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from afnio.runtime._files import LockFile, is_locked


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


def test_a_process_that_looks_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a shared lock for a moment; taking the lock waits for that."""
    path = tmp_path / "name.lock"
    path.touch()
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda seconds: os.close(descriptor))
    LockFile(path).release()
    assert not path.exists()
