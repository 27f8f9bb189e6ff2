"""Show the lines of the "afnio" logger on the console.

A library must not configure logging by itself. Nothing here runs unless the program calls
`configure_logging`.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_HANDLER: Final = "afnio-console"


def configure_logging(verbosity: str = "info") -> None:
    """Show Afnio's log lines of at least this level on standard error.

    Only the logger "afnio" is changed. Its lines no longer reach the root logger's handlers, which would show
    them twice. A second call replaces the first.

    Args:
        verbosity: "debug", "info", "warning", "error" or "critical".

    Raises:
        TypeError: the level isn't a string.
        ValueError: it isn't one of these.

    >>> configure_logging("warning")  # doctest: +SKIP
    """
    if not isinstance(verbosity, str):
        raise TypeError(f"the verbosity must be a string such as 'info' (got {verbosity!r})")
    level = verbosity.lower()
    if level not in _LEVELS:
        raise ValueError(f"the verbosity must be one of {list(_LEVELS)} (got {verbosity!r})")
    logger = logging.getLogger("afnio")
    for handler in list(logger.handlers):
        if handler.get_name() == _HANDLER:
            logger.removeHandler(handler)
    logger.addHandler(_console_handler())
    logger.setLevel(level.upper())
    logger.propagate = False


def _console_handler() -> logging.Handler:
    import structlog

    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_HANDLER)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer(colors=colors),
            ],
        )
    )
    return handler
