"""Where the lines of the "afnio" logger go, for programs that want them on the console."""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
HANDLER: Final = "afnio-console"


def configure_logging(verbosity: str = "info") -> None:
    """Show Afnio's own log lines from this level on, on standard error.

    Only the logger "afnio" is touched, and only when this is called. Its lines then no longer go
    to the root logger's handlers, which would show them twice. A second call replaces the first.

    >>> configure_logging("warning")  # doctest: +SKIP
    """
    if not isinstance(verbosity, str):
        raise TypeError(f"The verbosity is [{verbosity!r}], but has to be a string like 'info'.")
    level = verbosity.lower()
    if level not in LEVELS:
        raise ValueError(f"The verbosity is [{verbosity}], but has to be one of {list(LEVELS)}.")
    logger = logging.getLogger("afnio")
    for handler in list(logger.handlers):
        if handler.get_name() == HANDLER:
            logger.removeHandler(handler)
    logger.addHandler(_console_handler())
    logger.setLevel(level.upper())
    logger.propagate = False


def _console_handler() -> logging.Handler:
    import structlog

    colors = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(HANDLER)
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
