"""Run choice: which run a word on the command line means."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Self

from afnio.errors import AfnioError
from afnio.tellurio.opening import StoreProblemError
from afnio.tellurio.reader import Reader
from afnio.tellurio.records import RunRecord
from afnio.tellurio.studio.library import home_folder, shelves


class ChoiceError(AfnioError):
    """No run, or several, are meant."""


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

    def choose(self, word: str) -> Chosen:
        """Return the run of this id, this namespace/project/name, this name, or whose id begins so.

        Raises:
            ChoiceError: if there is none, or if several are meant.
        """
        everything = list(self.all())
        for meant in (
            [one for one in everything if word in (one.run.id, one.run.path)],
            [one for one in everything if word == one.run.name],
            [one for one in everything if len(word) >= 4 and one.run.id.startswith(word)],
        ):
            if len(meant) == 1:
                return meant[0]
            if meant:
                names = ", ".join(one.run.path for one in meant[:5])
                raise ChoiceError(
                    f"[{word}] means {len(meant)} runs ({names}); write namespace/project/name."
                )
        raise ChoiceError(
            f"There is no run [{word}] in [{self.home}]; `afnio runs list` shows those that there are."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()
