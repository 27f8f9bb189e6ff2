"""Liveness: whether a run that the store calls RUNNING still is."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from afnio.tellurio.lease import is_held, lease_path


def live_status(store: Path, run_id: str, status: str, host: str, pid: int, *, leased: bool = True) -> str:
    """The status of a run as it is now: one whose process was killed has CRASHED.

    A run of another machine is taken at its word, as nothing here can tell.

    Args:
        leased: whether its process took a lease, as those of older versions didn't; then, and where the
            file system knows no locks, its number has to do.
    """
    if status != "RUNNING" or host != socket.gethostname():
        return status
    held = is_held(lease_path(store, run_id)) if leased else None
    alive = _is_alive(pid) if held is None else held
    return "RUNNING" if alive else "CRASHED"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
