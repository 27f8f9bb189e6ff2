"""Progress: what a run shows of itself while it goes on, in a terminal, a notebook or a log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final, Protocol, final

from afnio.runtime.events import subscribed
from afnio.trainer.board import Board
from afnio.trainer.state import LoopState, Plan
from afnio.trainer.traffic import Traffic


class Progress(Protocol):
    """What the loop tells a display. No method raises because of the display."""

    def start(self, plan: Plan) -> None:
        """Begin; in the task that trains, as the calls that it launches from here on are counted."""

    def update(self, state: LoopState) -> None:
        """Take in how far the loop is."""

    def message(self, text: str) -> None:
        """Show a line that stays."""

    def stop(self) -> None:
        """End, whatever has happened; the last word on calls and cost stays. More than once does no harm."""


class Screen(Protocol):
    """What draws a board: in a terminal, a notebook or a log."""

    def open(self, board: Board) -> None: ...

    def update(self, state: LoopState) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_progress(enable: bool = True) -> Progress:
    """Return the display that fits where the program runs; it is chosen when it starts.

    HTML that is updated in place in a notebook; live lines in a terminal; elsewhere (a pipe, a file, CI), and
    where something else is live in the terminal already, plain lines with the time.

    Args:
        enable: False for none.

    >>> make_progress(False).start(Plan("fit", "Agent"))
    """
    return Display() if enable else Quiet()


@final
class Quiet:
    """Shows nothing of the progress; messages, which say what went wrong, are logged."""

    def start(self, plan: Plan) -> None:
        pass

    def update(self, state: LoopState) -> None:
        pass

    def message(self, text: str) -> None:
        logging.getLogger("afnio").warning("%s", text)

    def stop(self) -> None:
        pass


@final
class Display:
    """Counts calls and has a screen show them.

    Args:
        screen: by default the one that fits where the program runs.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        self._given = screen
        self._screen: Screen | None = None
        self._context = ExitStack()

    def start(self, plan: Plan) -> None:
        traffic = Traffic()
        self._context.enter_context(_counting(traffic))
        self._screen = self._given or fitting_screen()
        self._screen.open(Board(plan, traffic))

    def update(self, state: LoopState) -> None:
        if self._screen is not None:
            self._screen.update(state)

    def message(self, text: str) -> None:
        if self._screen is None:
            Quiet().message(text)
        else:
            self._screen.line(text)

    def stop(self) -> None:
        screen, self._screen = self._screen, None
        self._context.close()
        if screen is not None:
            screen.close()


def fitting_screen() -> Screen:
    """Return the screen that fits where the program runs."""
    if notebook() is not None:
        from afnio.trainer.notebook_progress import NotebookScreen

        return NotebookScreen()
    if is_live_terminal(sys.stderr):
        from afnio.trainer.terminal_progress import TerminalScreen

        return TerminalScreen()
    from afnio.trainer.plain_progress import PlainScreen

    return PlainScreen()


def notebook() -> Any:
    """Return the shell of the notebook kernel that this is, or None."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


_PLAIN_TERMINALS: Final = ("", "dumb", "unknown")


def is_live_terminal(stream: Any) -> bool:
    """Whether lines on `stream` can be redrawn, and nobody else does that already."""
    from rich.file_proxy import FileProxy

    if isinstance(stream, FileProxy) or isinstance(sys.stdout, FileProxy) or os.environ.get("CI"):
        return False
    try:
        live: bool = stream.isatty()
        return live and os.environ.get("TERM", "") not in _PLAIN_TERMINALS
    except (AttributeError, ValueError):  # none, or closed
        return False


@contextmanager
def _counting(traffic: Traffic) -> Iterator[None]:
    """Count the calls that are launched here, until the end."""
    # A display that is stopped in another context than it was started in has nothing to undo there.
    with suppress(ValueError), subscribed(traffic):
        yield
