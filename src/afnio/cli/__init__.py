"""The command line: `afnio`. Each command is a file, imported when it is asked for."""

from afnio.cli._commands import main

__all__ = ["main"]
