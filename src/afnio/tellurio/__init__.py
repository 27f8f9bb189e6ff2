"""Tracking of runs in local files: metrics, calls, samples, steps, and how each run ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.tellurio._program import configure_logging
    from afnio.tellurio._queries import StoreReader
    from afnio.tellurio._run import (
        Run,
        RunStatus,
        get_active_run,
        init,
        log,
        suppress_variable_notifications,
    )
    from afnio.tellurio.sinks._sink import MetricLogged, RunEnded, RunStarted, TableLogged, TextLogged

__all__ = [
    "MetricLogged",
    "Run",
    "RunEnded",
    "RunStarted",
    "RunStatus",
    "StoreReader",
    "TableLogged",
    "TextLogged",
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
        "afnio.tellurio._run": "Run RunStatus get_active_run init log suppress_variable_notifications",
        "afnio.tellurio.sinks._sink": "MetricLogged RunEnded RunStarted TableLogged TextLogged",
    },
)
