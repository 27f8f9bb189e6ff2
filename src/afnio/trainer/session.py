"""Session: what holds around everything that a Trainer does: journal, budget, quorum, seeds, and an address."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import final

import anyio
import anyio.to_thread

from afnio.models._prices import earlier_ledger
from afnio.runtime._budget import Budget
from afnio.runtime._callables import tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import seed_source
from afnio.runtime._spending import Ledger
from afnio.runtime._waiting import active_journal, journal, scope
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.folder import JOURNAL
from afnio.trainer.options import Options


@final
class Session:
    """What a Trainer's calls have in common: their budget, and the journal that a fit began."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._spending = Budget(max_cost=options.max_cost)
        self._folder: Path | None = None
        self._journals: list[Path] = []
        self._uses: dict[str, int] = {}

    @property
    def ledger(self) -> Ledger:
        """What was spent; what the journals say was spent before counts."""
        return self._spending.ledger

    @asynccontextmanager
    async def entered(self, name: str, folder: Path | None, resumed: Checkpoint | None) -> AsyncIterator[str]:
        """Hold in the block what the options say; gives the address path of what is launched there.

        Args:
            name: of what is done; the path's last element.
            folder: where a fit keeps its checkpoints, and so its journal; later passes use the journal too.
            resumed: the checkpoint that a fit goes on from, whose path it takes: the journal knows its calls by it.
        """
        options = self._options
        async with AsyncExitStack() as stack:
            if folder is not None:
                self._folder, self._uses = folder, {}
            if active_journal.get() is None and self._folder is not None:
                await self._open(stack, self._folder / JOURNAL)
                uses = self._uses[name] = self._uses.get(name, 0) + 1
                path = f"journal/{name}" if uses == 1 else f"journal/{name}#{uses}"
            else:
                path = current_scope().child_path(name)
            if resumed is not None:
                path = resumed.counters.get("scope") or path
            stack.enter_context(self._spending)
            if options.max_time is not None and name == "fit":
                stack.enter_context(Budget(max_seconds=options.max_time))
            if options.quorum is not None:
                stack.enter_context(tolerate(options.quorum))
            if options.seed is not None:
                stack.enter_context(seed_source.override(_drawing(options.seed)))
            await stack.enter_async_context(scope(path, rooted=True))
            yield path

    async def _open(self, stack: AsyncExitStack, path: Path) -> None:
        opened = await stack.enter_async_context(journal(path))
        assert opened is not None
        # Once: what it holds later was spent by this Trainer, which has counted it. And now, not with the first
        # call: a training that goes on may be over already.
        before = Ledger()
        if path not in self._journals:
            before = await anyio.to_thread.run_sync(earlier_ledger, opened)
        self._spending.charge(before, opened)
        self._journals.append(path)


def _drawing(seed: int) -> Callable[[], int]:
    numbers = itertools.count()
    return lambda: random.Random(f"{seed}/{next(numbers)}").getrandbits(63)
