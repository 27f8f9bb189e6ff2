"""Console lines of the "afnio" logger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

import afnio.tellurio as te

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def untouched_logger() -> Iterator[None]:
    """Put the logger back as it was."""
    logger = logging.getLogger("afnio")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], level, propagate = before
    logger.setLevel(level)
    logger.propagate = propagate


def test_lines_from_the_level_on_are_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A second call replaces the first, and children of the logger are included."""
    te.configure_logging("debug")
    te.configure_logging("INFO")
    logging.getLogger("afnio").debug("hidden")
    logging.getLogger("afnio.runtime").warning("shown %s", "here", extra={"lane": 7})
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert "shown here" in line
    assert "warning" in line
    assert "lane=7" in line


def test_no_other_logger_is_touched() -> None:
    """The root logger keeps its handlers and level, and so do an application's own."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, root.disabled)
    own = logging.NullHandler()
    logging.getLogger("afnio").addHandler(own)
    te.configure_logging()
    assert (root.handlers, root.level, root.disabled) == before
    assert own in logging.getLogger("afnio").handlers


def test_exceptions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """With their traceback."""
    te.configure_logging()
    try:
        raise LookupError("lost")
    except LookupError:
        logging.getLogger("afnio").exception("failed")
    assert "LookupError: lost" in capsys.readouterr().err


def test_bad_levels_are_named() -> None:
    """With the levels that exist."""
    with pytest.raises(TypeError, match=r"got 10"):
        te.configure_logging(10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'debug', 'info'.*got 'loud'"):
        te.configure_logging("loud")
