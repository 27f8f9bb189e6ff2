"""Tracking of runs in local files: metrics, calls, samples, steps, and how each run ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.tellurio._program import configure_logging
    from afnio.tellurio._queries import StoreReader
    from afnio.tellurio._run import (
        Run,
        get_active_run,
        init,
        log,
        suppress_variable_notifications,
    )

__all__ = [
    "Run",
    "StoreReader",
    "configure_logging",
    "get_active_run",
    "init",
    "log",
    "suppress_variable_notifications",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio.tellurio._program": "configure_logging",
        "afnio.tellurio._queries": "StoreReader",
        "afnio.tellurio._run": "Run get_active_run init log suppress_variable_notifications",
    },
)
