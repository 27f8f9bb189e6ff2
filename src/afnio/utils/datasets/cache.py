"""Where the files of datasets are: the user's cache folder, and a folder that the user names."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder for Afnio."""
    # A relative path in XDG_CACHE_HOME is to be ignored, says the XDG specification.
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "afnio"


def read_data_folder(name: str) -> bytes:
    """The content of a file in the folder AFNIO_DATA."""
    folder = os.environ.get("AFNIO_DATA")
    if not folder:
        raise FileNotFoundError("the variable is not set")
    return (Path(folder) / name).read_bytes()
