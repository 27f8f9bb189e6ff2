"""Run choice: which run a word means that a user writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from afnio.errors import AfnioError
from afnio.tellurio.records import RunRecord

NAMED: Final = 10
"""Runs that an error names, at most."""
PREFIX: Final = 4
"""Characters of an id that may stand for it, at least."""


class ChoiceError(AfnioError):
    """No run, or several, are meant."""


def choose(word: str, runs: Sequence[RunRecord], home: Path) -> RunRecord:
    """Return the run of this id, this namespace/project/name, this name, or whose id begins so.

    Args:
        runs: all that there are.
        home: where they are, for the error.

    Raises:
        ChoiceError: if there is none, or if several are meant.
    """
    for meant in (
        [run for run in runs if word in (run.id, run.path, _key(run))],
        [run for run in runs if word == run.name],
        [run for run in runs if len(word) >= PREFIX and run.id.startswith(word)],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            names = ", ".join(run.path for run in meant[:NAMED])
            raise ChoiceError(f"[{word}] means {len(meant)} runs ({names}); write namespace/project/name.")
    names = ", ".join(run.name for run in runs[:NAMED])
    there = f"there are: {names} (`afnio runs list` shows all)" if names else "there are none"
    raise ChoiceError(f"There is no run [{word}] in [{home}]; {there}.")


def _key(run: RunRecord) -> str:
    """What names it in the studio's addresses."""
    return f"{run.store.parent.name}/{run.store.stem}/{run.id}"
