"""Plain progress: lines with the time, for logs, pipes and CI."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from datetime import datetime
from typing import Final, final

from afnio.trainer.board import Board, Frame
from afnio.trainer.quantities import summary
from afnio.trainer.state import LoopState
from afnio.trainer.ticker import Ticker

SHORTEST: Final = 10.0
LONGEST: Final = 300.0
"""Seconds between two lines on how far it is."""
SHARE: Final = 0.02
"""Of the time that a run has taken, for which the log is silent: a night is some hundred lines."""


@final
class PlainScreen:
    """Writes to standard error; one that is closed or full ends the lines, never the run."""

    def __init__(self) -> None:
        self._board: Board | None = None
        self._ticker: Ticker | None = None
        self._told = 0.0

    def open(self, board: Board) -> None:
        self._board = board
        self.line(", ".join(board.beginning()))
        self._ticker = Ticker(self._tick, 1.0)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self.line(", ".join(summary(epoch)))

    def line(self, text: str) -> None:
        self._told = time.monotonic()
        now = datetime.now().astimezone()
        stream = sys.stderr
        with suppress(OSError, ValueError, AttributeError):
            encoding = stream.encoding or "utf-8"
            shown = f"{now:%Y-%m-%d %H:%M:%S}  {text}\n".encode(encoding, "replace").decode(encoding)
            stream.write(shown)
            stream.flush()

    def close(self) -> None:
        assert self._board is not None
        if self._ticker is not None:
            self._ticker.stop()
        self._keep(self._board.rest())
        self.line(", ".join(self._board.ending()))

    def _tick(self) -> None:
        assert self._board is not None
        silent = time.monotonic() - self._told
        if silent >= min(max(SHORTEST, SHARE * self._board.seconds), LONGEST):
            self.line(one_line(self._board.frame()))


def one_line(frame: Frame) -> str:
    """Return all of a frame in one line."""
    rows = [", ".join([f"{row.name} {row.count}", *row.facts]) for row in frame.rows]
    parts = [", ".join(frame.title), *rows, ", ".join(frame.calls)]
    return "; ".join(parts) + (f"; {frame.trouble}" if frame.trouble else "")
