"""Tracking of runs in local files: metrics, events and how each run ended."""

from afnio.tellurio.active import get_active_run
from afnio.tellurio.logs import configure_logging
from afnio.tellurio.notifications import suppress_variable_notifications
from afnio.tellurio.run import Run, RunStatus
from afnio.tellurio.schema import StoreVersionError
from afnio.tellurio.session import init, log, login

__all__ = [
    "Run",
    "RunStatus",
    "StoreVersionError",
    "configure_logging",
    "get_active_run",
    "init",
    "log",
    "login",
    "suppress_variable_notifications",
]
