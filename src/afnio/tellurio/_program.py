"""The program behind a run: how it is recognized when it is started again, what it ran on, and its log on the console.

Environment variables are never recorded, because they hold keys. A library must not configure logging by itself, so
nothing is shown unless the program calls `configure_logging`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from afnio.models._masking import mask_arguments
from afnio.tellurio._redaction import Redaction

# Rounds of PBKDF2, about 50 ms, so that a short password can't be found from its digest by trial.
ROUNDS: Final = 200_000


def program_identity(redaction: Redaction) -> str | None:
    """Return folder, script and arguments of this program as JSON; None at a prompt or in a notebook.

    Commands typed by a person can't be repeated from their start, so such a run is never continued. Arguments
    that look like keys are masked, and `redaction` is applied. A digest still distinguishes them.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    ipython = sys.modules.get("IPython")
    if script is None or hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        return None
    program = [os.getcwd(), os.path.abspath(script), sys.argv[1:]]
    shown = redaction.value([*program[:2], mask_arguments(sys.argv[1:])])
    return json.dumps(shown if shown == program else [*shown, _digest(json.dumps(program))])


def _digest(program: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", program.encode(), b"afnio", ROUNDS).hex()


PACKAGES: Final = ("afnio", "aiohttp", "anyio", "openai", "pydantic", "genai-prices")
GIT_TIMEOUT: Final = 5.0


def git_commit(folder: Path) -> str | None:
    """Return the commit of `folder`, with "+" if files differ from it; None without git.

    >>> git_commit(Path("/")) is None
    True
    """
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def versions() -> str:
    """Return the versions of Python and of the packages that calls go through, as JSON."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return json.dumps(installed)


def platform_facts() -> str:
    """Return the system, the machine and its processors, as JSON."""
    facts = {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "implementation": sys.implementation.name,
    }
    return json.dumps(facts)


def _git(folder: Path, *arguments: str) -> str:
    # Without this `git status` would write to the index.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        ["git", *arguments],  # noqa: S607 (the user's own git)
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT,
        check=True,
    )
    return done.stdout


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
