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


MISSING: Final = (
    "there is no such folder; run this where your program runs, name the folder with --dir, or set "
    "AFNIO_HOME."
)
"""What a person is told whose folder of stores isn't there."""


class ChoiceError(AfnioError):
    """No run, or several, are meant."""


def choose(word: str, runs: Sequence[RunRecord], home: Path, *, whole: bool = False) -> RunRecord:
    """Return the run of this id, this namespace/project/name or this name, else the one whose name or id begins so.

    Args:
        runs: all that there are.
        home: where they are, for the error.
        whole: a name has to be given in full, because the run of another name must not be taken for it.

    Raises:
        ChoiceError: if there is none, or if several are meant.
    """
    for meant in (
        [run for run in runs if word in (run.id, run.path, _key(run))],
        [run for run in runs if word == run.name],
        [run for run in runs if _begins(run, word, whole=whole)],
    ):
        if len(meant) == 1:
            return meant[0]
        if meant:
            names = ", ".join(run.path for run in meant[:NAMED])
            raise ChoiceError(f"[{word}] means {len(meant)} runs ({names}); write namespace/project/name.")
    names = ", ".join(run.name for run in runs[:NAMED])
    if not names:
        raise ChoiceError(
            f"There is no run [{word}] in [{home}]: {'it has no runs.' if home.exists() else MISSING}"
        )
    raise ChoiceError(
        f"There is no run [{word}] in [{home}]; there are: {names} (`afnio runs list` shows all)."
    )


def _begins(run: RunRecord, word: str, *, whole: bool) -> bool:
    if len(word) >= PREFIX and run.id.startswith(word):
        return True
    return bool(word) and not whole and (run.name.startswith(word) or run.path.startswith(word))


def _key(run: RunRecord) -> str:
    """What names it in the studio's addresses."""
    return f"{run.store.parent.name}/{run.store.stem}/{run.id}"
