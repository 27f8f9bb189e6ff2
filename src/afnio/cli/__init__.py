"""The command line: `afnio`."""

from afnio.cli._commands import main

__all__ = ["main"]
