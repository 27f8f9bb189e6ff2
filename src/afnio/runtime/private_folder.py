"""Private folders: what Afnio writes of prompts and replies, nobody else may read."""

from __future__ import annotations

from pathlib import Path


def make_private_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this user alone, whatever the umask.

    `mkdir(parents=True)` would make those above it as the umask says.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     make_private_folder(Path(folder) / "one" / "two")
    ...     oct(Path(folder, "one").stat().st_mode)[-3:]
    '700'
    """
    if not path.is_dir():
        make_private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
