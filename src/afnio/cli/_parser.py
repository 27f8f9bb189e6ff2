"""What the commands share: a parser that knows mistyped words, tables that fit, and what to do next."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NoReturn


class Parser(argparse.ArgumentParser):
    """A parser of command-line arguments. Its subparsers are of the same class."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; an option that doesn't exist is an error here, where the options that do are known."""
        found, rest = super().parse_known_args(args, namespace)
        options = [option for option in self._option_string_actions if option.startswith("--")]
        for word in rest:
            if meant := meant_by(word.partition("=")[0], options):
                self.error(f"unrecognized arguments: {' '.join(rest)}; did you mean {meant}?")
        return found, rest

    def error(self, message: str) -> NoReturn:
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = match[2].replace("'", "").split(", ")
            if meant := meant_by(match[1], choices):
                message = f"{message}; did you mean {meant}?"
        super().error(message)


def meant_by(word: str, choices: Sequence[str]) -> str | None:
    """Return the choice that is most like a word, or None.

    >>> meant_by("stduio", ["studio", "runs"]), meant_by("xyz", ["studio"])
    ('studio', None)
    """
    return next(iter(get_close_matches(word, choices, 1)), None)


# The width of a table on a wide terminal.
WIDEST: Final = 140
# The fewest characters to which a column is cut.
LEAST: Final = 12


def shell_width() -> int | None:
    """Return the columns of the terminal that is written to, or of COLUMNS; None for a pipe or a file without it."""
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        return None
    return min(WIDEST, shutil.get_terminal_size().columns)


def fitted(rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a table's lines, at most `width` characters each. The longest cells are cut, and end with "…".

    >>> fitted([("RUN", "RESULT"), ("emails", "Better: +36.7 points"), ("b", "-")], 24)
    ['RUN     RESULT', 'emails  Better: +36.7 p…', 'b       -']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while width is not None and sum(widths) + 2 * len(widths) - 2 > width and max(widths) > LEAST:
        widths[widths.index(max(widths))] -= 1
    return [
        "  ".join(
            cell.ljust(most) if len(cell) <= most else f"{cell[: most - 1]}…"
            for cell, most in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


# How words look on a terminal: the head of a table, then what is good, bad, going on, and unknown.
STYLES: Final = {
    r"^[A-Z]+(?: +[A-Z]+)+$": "bold",
    r"\bCOMPLETED\b|\bBetter(?=: )|^ok\b": "green",
    r"\bFAILED\b|\bCRASHED\b|\bWorse(?=: )|^failed\b": "red",
    r"\bRUNNING\b|^  afnio [a-z].*?(?=  |$)": "cyan",
    r"No (?:gain|difference) beyond noise|can't be told apart|^Not measured|^note\b": "yellow",
}


def say(text: str) -> None:
    """Print text: in colour on a terminal that has any. NO_COLOR and TERM=dumb are respected."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{text}\n")
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    for words, style in STYLES.items():
        styled.highlight_regex(re.compile(words, re.MULTILINE), style)
    Console().print(styled, soft_wrap=True)


def say_next(commands: Mapping[str, str]) -> None:
    """Name the commands that usually follow, to a person at a terminal: a script needs none."""
    if sys.stdout.isatty():
        width = max(map(len, commands))
        say(
            "\n".join(["\nNext:", *(f"  {command:<{width}}  {shows}" for command, shows in commands.items())])
        )
