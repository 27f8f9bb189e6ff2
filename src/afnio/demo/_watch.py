"""Watch: notice when a server process of the demo is gone, long before its calls run out of attempts."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Final, Self
from urllib.parse import urlsplit

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from afnio.demo._options import DemoError

if TYPE_CHECKING:
    from types import TracebackType


PERIOD: Final = 0.5
"""Seconds between two looks."""


class Watch:
    """Looks whether `base_url` still takes connections while its `with` block lasts.

    Once it doesn't, the block's main thread is interrupted and the block raises a `DemoError`.
    """

    def __init__(self, base_url: str, name: str) -> None:
        self._base_url = base_url
        self._name = name
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if error is not None and self._lost:
            raise DemoError(
                f"{self._name} ended while it was needed ({self._base_url} takes no connection); "
                "start the demo again"
            ) from None

    def _look(self) -> None:
        while not self._ended.wait(PERIOD):
            if not takes_connections(self._base_url):
                # It may have been stopped because the block has ended.
                if not self._ended.is_set():
                    self._lost = True
                    # A real signal: it ends a wait for a lock, which `interrupt_main` doesn't.
                    signal.pthread_kill(_main_id(), signal.SIGINT)
                return


@contextmanager
def held_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back until the block ends, and from processes that it starts for good.

    A terminal sends it to the whole group; a server is to end in order, with its standard input.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _main_id() -> int:
    ident = threading.main_thread().ident
    assert ident is not None
    return ident


def takes_connections(base_url: str, timeout: float = 10.0) -> bool:
    """Whether a server takes connections at `base_url`; one that is slow to answer does."""
    # Not urllib: it would ask a proxy from the environment.
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=timeout)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except TimeoutError:
        return True
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


# Progress: a live line in a terminal; elsewhere only the lines that stay.


RETRY_PAUSE: Final = 5.0
"""Seconds between two lines about retries: a provider that is down makes one for each call."""
BEAT: Final = 20.0
"""Seconds without a line after which a log, which has no live line, gets one."""
WIDE: Final = 60
"""Columns that a terminal needs before bar and calls fit beside the stage."""


class DemoProgress:
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
