"""Folder: the checkpoints of one run and the journal beside them; an earlier run's are put aside, never lost."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Final

from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.checkpoints import BEST, EPOCH, LAST, Checkpoints

JOURNAL: Final = "calls.journal"
EARLIER: Final = "earlier"


def take_up(
    folder: Path, checkpoints: Checkpoints | None, ckpt_path: str | os.PathLike[str] | None
) -> Checkpoint | None:
    """Return the checkpoint to go on from, None to begin. An earlier run's files are put aside.

    Args:
        checkpoints: that will be written to `folder`, None where none are kept.
        ckpt_path: "last", "best", "epoch-N" or a file; "last" begins where there is none yet.

    Raises:
        CheckpointError: if there is none of that name, or it is damaged.
    """
    if ckpt_path is None:
        if checkpoints is not None:
            put_aside(folder)
        return None
    if os.fspath(ckpt_path) == LAST and not (folder / LAST).exists():
        return None
    path = (checkpoints or Checkpoints(folder)).path_of(ckpt_path)
    checkpoint = Checkpoint.read(path)
    checkpoint.check(path)
    if checkpoints is not None:
        if path.resolve().parent == folder.resolve():
            checkpoints.take_up(checkpoint)
        else:
            put_aside(folder)
    return checkpoint


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
    for made in (target.parent, target):
        made.mkdir(mode=0o700, exist_ok=True)
    for path in sorted(mine, key=lambda path: path.name != LAST):  # without `last` it is no run to go on with
        path.rename(target / path.name)
    return target


def _belongs(name: str) -> bool:
    journal = name.startswith(JOURNAL) and not name.endswith(".lock")
    return name in (LAST, BEST) or name.removeprefix(EPOCH).isdecimal() or journal
