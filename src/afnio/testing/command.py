"""The command that serves a provider while its standard input lasts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import threading
from collections.abc import Sequence

from afnio.testing.options import Options
from afnio.testing.provider import Provider


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m afnio.testing.provider") -> None:
    """Serve as the arguments say, until standard input ends or Ctrl-C."""
    options = Options.parse(argv, prog)
    _raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.provider()))


async def _serve(provider: Provider) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop may have ended first
            loop.call_soon_threadsafe(ended.set)

    async with provider:
        sys.stdout.write(json.dumps({"base_url": provider.base_url}) + "\n")
        sys.stdout.flush()
        if _stdin_can_end():
            threading.Thread(target=watch, name="stdin", daemon=True).start()
        await ended.wait()


def _stdin_can_end() -> bool:
    """Return whether standard input is a parent's pipe or a terminal, not the /dev/null of a service."""
    try:
        return os.isatty(0) or not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:
        return False


def _raise_file_limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
