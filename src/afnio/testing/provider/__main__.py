"""Serve a provider until standard input ends: `python -m afnio.testing.provider`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import sys
import threading
from typing import TYPE_CHECKING

from afnio.testing.provider._provider import Provider, ProviderOptions
from afnio.testing.simulated._lm import FixedReply, SimulatedLM

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m afnio.testing.provider") -> None:
    """Serve a provider with these command-line arguments until standard input ends or Ctrl-C."""
    options = ProviderOptions.parse(argv, prog)
    _raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(_provider(options)))


def _provider(options: ProviderOptions) -> Provider:
    context = {} if options.context is None else {"context": options.context}
    lm = FixedReply(options.reply) if options.reply is not None else SimulatedLM(**context, seed=options.seed)
    return Provider(
        port=options.port,
        latency=options.latency,
        api_key=options.api_key,
        lm=lm,
        faults=options.faults,
        quota=options.quota,
        seed=options.seed,
        window=options.window,
    )


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


if __name__ == "__main__":
    main()
