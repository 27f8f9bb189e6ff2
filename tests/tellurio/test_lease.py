"""A lease says whether a run's process lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afnio.tellurio._store import Lease, is_held


def test_it_is_held_until_it_is_released(tmp_path: Path) -> None:
    """Its file goes with it, more than once does no harm."""
    lease = Lease(tmp_path / "run.lease")
    assert is_held(lease.path)
    lease.release()
    lease.release()
    assert not lease.path.exists()
    assert not is_held(lease.path)


def test_a_file_that_its_holder_removed_is_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opened it before, and locked it after, takes the new one: else a run that goes on would seem killed."""
    first = Lease(tmp_path / "run.lease")
    real = os.open

    def late(*args: object, **kwargs: object) -> int:
        descriptor = real(*args, **kwargs)
        first.release()
        return descriptor

    monkeypatch.setattr(os, "open", late)
    second = Lease(first.path)
    monkeypatch.undo()
    assert is_held(second.path)
    second.release()


def test_a_folder_that_takes_none_is_no_error(tmp_path: Path) -> None:
    """The store says what is wrong there."""
    (tmp_path / "file").write_text("")
    Lease(tmp_path / "file" / "run.lease").release()
