"""Progress: a live line in a terminal; elsewhere only the lines that stay."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from rich import progress as bars
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

RETRY_PAUSE: Final = 5.0
"""Seconds between two lines about retries: a provider that is down makes one for each call."""
BEAT: Final = 20.0
"""Seconds without a line after which a log, which has no live line, gets one."""
WIDE: Final = 60
"""Columns that a terminal needs before bar and calls fit beside the stage."""


class Progress:
    """Shows which stage is under way and how many messages have been answered."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description}", markup=False)]
        if console.width >= WIDE:
            columns.append(bars.BarColumn(bar_width=None))
        columns.append(bars.MofNCompleteColumn())
        if console.width >= WIDE:
            columns.append(bars.TextColumn("{task.fields[calls]} calls"))
        columns.append(bars.TimeElapsedColumn())
        self._bar = bars.Progress(
            *columns, console=console, transient=True, expand=True, disable=not console.is_terminal
        )
        self._task = self._bar.add_task("starting", total=None, calls=0)
        self._calls = 0
        self._stage = ""
        self._told_retry = float("-inf")
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def expect(self, answers: int) -> None:
        """Say how many messages will be answered in all."""
        self._bar.update(self._task, total=answers)

    def stage(self, name: str) -> None:
        self._stage = name
        self._bar.update(self._task, description=name)

    def call_ended(self, purpose: str) -> None:
        """Count an answer; how many feedback texts there will be, nobody knows beforehand."""
        self._calls += 1
        self._bar.update(self._task, advance=purpose == "forward", calls=self._calls)
        if not self._console.is_terminal and time.monotonic() - self._told >= BEAT:
            self.line(f"  {self._stage}: {self._calls} calls so far")

    def retried(self, text: str) -> None:
        now = time.monotonic()
        if now - self._told_retry >= RETRY_PAUSE:
            self._told_retry = now
            self.line(f"  {text}")

    def line(self, text: str) -> None:
        """Print a line that stays."""
        self._told = time.monotonic()
        say(self._console, text)


def say(console: Console, text: str | Text = "") -> None:
    """Print `text` as it is: no markup, no colours of its own, and unbroken where no terminal is."""
    if isinstance(text, str):
        text = Text(text)
    console.print(text, highlight=False, soft_wrap=not console.is_terminal)
