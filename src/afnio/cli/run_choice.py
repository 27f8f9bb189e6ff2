"""Run choice: the runs of a folder of stores, for commands that a word on the command line tells which."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from afnio.tellurio._queries import Reader, RunRecord, choose
from afnio.tellurio._store import StoreProblemError
from afnio.tellurio.studio._runs import home_folder, shelves


class Chosen(NamedTuple):
    """A run and the open file that it is in."""

    reader: Reader
    run: RunRecord


class Runs:
    """Every run under a folder of stores; a block closes their files.

    A store that can't be read costs a line on standard error, and the others are there.
    """

    def __init__(self, folder: str | None) -> None:
        self.home: Path = home_folder(folder)
        self.unreadable = 0
        self._files = ExitStack()

    def all(self) -> Iterator[Chosen]:
        """Yield each run, project by project, newest first."""
        for shelf in shelves(self.home):
            try:
                reader = self._files.enter_context(Reader(shelf.path))
                runs = reader.runs()
            except StoreProblemError as error:
                self.unreadable += 1
                sys.stderr.write(f"afnio: {error}\n")
                continue
            for run in runs:
                yield Chosen(reader, run)

    def choose(self, word: str, *, whole: bool = False) -> Chosen:
        """Return the run that a word means; see `afnio.tellurio._queries.choose`.

        Raises:
            ChoiceError: if there is none, or if several are meant.
        """
        everything = list(self.all())
        run = choose(word, [one.run for one in everything], self.home, whole=whole)
        return next(one for one in everything if one.run is run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()
