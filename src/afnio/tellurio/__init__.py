"""Tracking of runs in local files: metrics, calls, samples, steps, and how each run ended."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Imported at the first use: who only reads stores, as the command line does, starts sooner.
_HOMES = {
    "Run": "run",
    "RunStatus": "run",
    "StoreVersionError": "schema",
    "configure_logging": "logs",
    "get_active_run": "active",
    "init": "session",
    "log": "session",
    "login": "session",
    "suppress_variable_notifications": "notifications",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
