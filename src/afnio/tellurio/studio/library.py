"""Library: the stores under a folder, by the names of their namespace and project."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Shelf(NamedTuple):
    """One project's file."""

    namespace: str
    project: str
    path: Path


def home_folder(given: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder with the stores: `given`, else AFNIO_HOME, else `.afnio` of the working folder.

    >>> home_folder("runs").as_posix()
    'runs'
    """
    return Path(given or os.environ.get("AFNIO_HOME") or ".afnio")


def shelves(home: Path) -> list[Shelf]:
    """Return the stores under `home`, in order of their names; none where the folder isn't there.

    >>> shelves(Path("nowhere"))
    []
    """
    found = sorted(home.glob("*/*.db"))
    return [Shelf(path.parent.name, path.stem, path) for path in found if path.is_file()]


def find_shelf(home: Path, namespace: str, project: str) -> Shelf | None:
    """Return the store of these names; what isn't in the folder, such as `..`, isn't found.

    >>> find_shelf(Path("nowhere"), "..", "passwords") is None
    True
    """
    for shelf in shelves(home):
        if (shelf.namespace, shelf.project) == (namespace, project):
            return shelf
    return None
