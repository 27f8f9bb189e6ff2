"""The command line: `afnio`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.cli.__main__ import COMMANDS, main

__all__ = ["COMMANDS", "main"]

# Lazily, because `python -m afnio.cli` runs `__main__` itself and would warn about a second import.
__getattr__, __dir__ = lazily(__name__, globals(), {"afnio.cli.__main__": "COMMANDS main"})
