"""Folder: the checkpoints of one run and the journal beside them; an earlier run's are put aside, never lost."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

from afnio.trainer.checkpoints import BEST, EPOCH, LAST

JOURNAL: Final = "calls.journal"
EARLIER: Final = "earlier"


def put_aside(folder: Path) -> Path | None:
    """Move the files of the run that had `folder` to `earlier/1`, `earlier/2`, …; return where, if there were any.

    Its journal goes with its checkpoints: each can only be gone on with together with the other.
    """
    if not folder.is_dir():
        return None
    mine = [path for path in sorted(folder.iterdir()) if _belongs(path.name)]
    if not mine:
        return None
    numbers = itertools.count(1)
    target = next(path for n in numbers if not (path := folder / EARLIER / str(n)).exists())
    target.mkdir(parents=True)
    for path in sorted(mine, key=lambda path: path.name != LAST):  # without `last` it is no run to go on with
        path.rename(target / path.name)
    return target


def _belongs(name: str) -> bool:
    journal = name.startswith(JOURNAL) and not name.endswith(".lock")
    return name in (LAST, BEST) or name.removeprefix(EPOCH).isdecimal() or journal
