"""The command line: `afnio`."""

from afnio.cli._commands import COMMANDS, main

__all__ = ["COMMANDS", "main"]
