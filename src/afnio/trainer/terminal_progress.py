"""Terminal progress: lines at the bottom of a terminal that are redrawn in place."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from afnio.trainer.board import Board, Row
from afnio.trainer.quantities import summary
from afnio.trainer.state import LoopState

FRAMES: Final = 4
"""Redraws in a second."""
BAR: Final = (10, 40)
"""Columns of a bar, at least and at most."""
GAP: Final = "  "
INDENT: Final = 7


@final
class TerminalScreen:
    """Draws on standard error with rich; prints and log lines of the program come out above it.

    Standard output is left alone where it is no terminal.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._board: Board | None = None
        self._live: Live | None = None
        self._handlers: list[tuple[Any, Any]] = []

    def open(self, board: Board) -> None:
        self._board = board
        self._facts(board.beginning())
        streams = (sys.stdout, sys.stderr)
        self._live = _Live(
            get_renderable=self._draw,
            console=self._console,
            transient=True,
            refresh_per_second=FRAMES,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        self._redirect_logs(streams)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self._facts(summary(epoch))

    def line(self, text: str) -> None:
        self._print(Text(text))

    def _facts(self, facts: Sequence[str]) -> None:
        self._print(*flow([Text(facts[0])], facts[1:], self._console.width, INDENT))

    def _print(self, *lines: Text) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone ends the display, never the run
            self._console.print(*lines, sep="\n")

    def close(self) -> None:
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []
        if self._live is not None:
            with suppress(OSError, ValueError):
                self._live.stop()
            self._live = None
        assert self._board is not None
        self._keep(self._board.rest())
        self._facts(self._board.ending())

    def _redirect_logs(self, streams: tuple[Any, Any]) -> None:
        """Have log handlers that were made before write above the live lines, not into them."""
        by_stream = dict(zip(map(id, streams), (sys.stdout, sys.stderr), strict=True))
        for handler in _stream_handlers():
            stream = handler.stream
            if id(stream) in by_stream and by_stream[id(stream)] is not stream:
                handler.setStream(by_stream[id(stream)])
                self._handlers.append((handler, stream))

    def _draw(self) -> Group:
        assert self._board is not None
        frame, width = self._board.frame(), self._console.width
        lines = [*flow([Text(fact, "bold") for fact in frame.title[:1]], frame.title[1:], width, 0)]
        ascii_only = not (self._console.encoding or "").lower().startswith("utf")
        for row in frame.rows:
            lines += _row(row, width, ascii_only)
        lines += flow([Text(frame.calls[0])], frame.calls[1:], width, 0)
        if frame.trouble:
            lines += [Text(frame.trouble, "yellow", no_wrap=True, overflow="ellipsis")]
        return Group(*lines)


class _Live(Live):
    """A live area that a lost terminal ends without noise."""

    def refresh(self) -> None:
        with suppress(OSError, ValueError):
            super().refresh()


def flow(head: Sequence[Text], facts: Sequence[str], width: int, indent: int) -> Iterator[Text]:
    """Yield lines of at most `width` columns: the head, then the facts, none of which is broken.

    >>> [line.plain for line in flow([Text("train")], ["loss 0.5", "accuracy 0.75"], 16, 2)]
    ['train  loss 0.5', '  accuracy 0.75']
    """
    line = Text(no_wrap=True, overflow="ellipsis")
    for part in [*head, *map(Text, facts)]:
        if line.cell_len > indent and line.cell_len + len(GAP) + part.cell_len > width:
            yield line
            line = Text(" " * indent, no_wrap=True, overflow="ellipsis")
            line.append_text(part)
        else:
            line.append(GAP if line.cell_len else "")
            line.append_text(part)
    yield line


def _row(row: Row, width: int, ascii_only: bool) -> list[Text]:
    """Return a phase in one line, or its facts below its bar."""
    head = _head(row, width, ascii_only)
    lines = list(flow([head], row.facts, width, INDENT))
    if len(lines) == 1:
        return lines
    return [head, *flow([Text(" " * (INDENT - len(GAP)))], row.facts, width, INDENT)]


def _head(row: Row, width: int, ascii_only: bool) -> Text:
    """Return a phase's name, bar and count."""
    head = Text(f"{row.name:{INDENT}}")
    count = f" {row.count}"
    if row.total:
        columns = min(max(BAR[0], width // 3), BAR[1])
        full = min(columns, columns * row.done // row.total)
        done, rest = ("#", "-") if ascii_only else ("━", "─")
        head.append(done * full, "green" if full == columns else "cyan")
        head.append(rest * (columns - full), "dim")
    else:
        count = count.lstrip()
    return head.append(count)


def _stream_handlers() -> list[Any]:
    names = list(logging.root.manager.loggerDict)
    loggers = [logging.root, *(logging.root.manager.loggerDict[name] for name in names)]
    handlers = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [handler for handler in handlers.values() if isinstance(handler, logging.StreamHandler)]
