"""Notebook progress: HTML under the cell, updated in place; it needs no widgets."""

from __future__ import annotations

from contextlib import suppress
from html import escape
from typing import Any, Final, final

from afnio.trainer.board import Board, Frame, Row
from afnio.trainer.plain_progress import one_line
from afnio.trainer.quantities import summary
from afnio.trainer.state import LoopState
from afnio.trainer.ticker import Ticker

PERIOD: Final = 0.5
"""Seconds between two updates."""
KEPT: Final = 50
"""Newest epochs and messages that are shown."""
_CELL: Final = "font:inherit;padding:0 1.2em 0 0;text-align:left;white-space:nowrap"


@final
class NotebookScreen:
    """One output of the cell, from its start on; what the program prints comes as further output below it.

    Without HTML, such as in a text export, it is a text.
    """

    def __init__(self) -> None:
        self._board: Board | None = None
        self._handle: Any = None
        self._ticker: Ticker | None = None
        self._epochs: list[dict[str, str]] = []
        self._lines: list[str] = []
        self._shown = ""

    def open(self, board: Board) -> None:
        from IPython import display

        show: Any = display.display  # it has no types
        self._board = board
        self._lines.append(", ".join(board.beginning()))
        self._handle = show(self._bundle(), raw=True, display_id=True)
        self._ticker = Ticker(self._show, PERIOD)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self._epochs = [*self._epochs, epoch][-KEPT:]

    def line(self, text: str) -> None:
        self._lines = [self._lines[0], *[*self._lines[1:], text][-KEPT:]]

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        assert self._board is not None
        self._keep(self._board.rest())
        self.line(", ".join(self._board.ending()))
        self._show(ended=True)

    def _show(self, *, ended: bool = False) -> None:
        bundle = self._bundle(ended=ended)
        if bundle["text/html"] != self._shown:
            self._shown = bundle["text/html"]
            with suppress(Exception):  # a kernel that shuts down ends the display, never the run
                self._handle.update(bundle, raw=True)

    def _bundle(self, *, ended: bool = False) -> dict[str, str]:
        assert self._board is not None
        frame = None if ended else self._board.frame()
        text = [self._lines[0], *(", ".join(summary(epoch)) for epoch in self._epochs), *self._lines[1:]]
        text += [] if frame is None else [one_line(frame)]
        return {"text/html": html(frame, self._lines, self._epochs), "text/plain": "\n".join(text)}


def html(frame: Frame | None, lines: list[str], epochs: list[dict[str, str]]) -> str:
    """Return all as HTML, every text escaped; `frame` is None once the run has ended.

    >>> html(None, ["a < b"], [])
    '<div style="line-height:1.5"><div>a &lt; b</div></div>'
    """
    parts = [f"<div>{escape(lines[0])}</div>"]
    parts += [_table(epochs)] if epochs else []
    if frame is not None:
        parts.append(f"<div><b>{escape(frame.title[0])}</b>&ensp;{_facts(frame.title[1:])}</div>")
        parts += [f"<table>{''.join(map(_row, frame.rows))}</table>", f"<div>{_facts(frame.calls)}</div>"]
        parts += [f"<div><i>{escape(frame.trouble)}</i></div>"] if frame.trouble else []
    parts += [_line(line) for line in lines[1:]]
    return f'<div style="line-height:1.5">{"".join(parts)}</div>'


def _line(text: str) -> str:
    if "\n" in text:  # a tree or a table
        return f'<pre style="line-height:1.2">{escape(text)}</pre>'
    return f"<div>{escape(text)}</div>"


def _facts(facts: list[str]) -> str:
    return "&ensp;".join(map(escape, facts))


def _row(row: Row) -> str:
    bar = "" if not row.total else f'<progress value="{row.done}" max="{row.total}"></progress>'
    return f"<tr>{_cells([escape(row.name), bar, escape(row.count), _facts(row.facts)])}</tr>"


def _table(epochs: list[dict[str, str]]) -> str:
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    rows = [_cells([escape(epoch.get(name, "")) for name in names]) for epoch in epochs]
    head = _cells([f"<b>{escape(name)}</b>" for name in names])
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in [head, *rows])}</table>"


def _cells(contents: list[str]) -> str:
    return "".join(f'<td style="{_CELL}">{content}</td>' for content in contents)
