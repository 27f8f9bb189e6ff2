"""The active journal: the one that the calls launched in a context are answered from and recorded in."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

import anyio
import anyio.to_thread

from afnio.runtime.scope import scope
from afnio.runtime.setting import Setting

if TYPE_CHECKING:
    from afnio.runtime.journal import Journal

active_journal: Final[Setting[Journal | None]] = Setting("journal", None)


class journal(AbstractContextManager["Journal | None"], AbstractAsyncContextManager["Journal | None"]):  # noqa: N801
    """Record the calls of the block in a file, and answer from it those that are there already.

    As `with` in a script and `async with` on a loop; it owns what is launched in the block, as
    `afnio.scope` does, and closes the file at its end.

    Args:
        path: the file; made, readable by its owner alone, if it isn't there.
        mode: "resume" answers the calls of the same program again, each at its place; "reuse" answers
            equal requests of any program, the n-th use of one by its n-th reply; "off" does neither.

    Raises:
        JournalError: when entered: the file is held by another process, foreign, damaged or newer.

    >>> import afnio, tempfile
    >>> from afnio.testing import ScriptedClient
    >>> ask = {"messages": [{"role": "user", "content": "Hi"}], "model": "m"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for client in (ScriptedClient("Hello"), ScriptedClient([])):
    ...         with afnio.journal(f"{folder}/calls.journal"):
    ...             print(client.chat(**ask), len(client.requests))
    Hello 1
    Hello 0
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: Literal["resume", "reuse", "off"] = "resume"
    ) -> None:
        if mode not in ("resume", "reuse", "off"):
            raise ValueError(f'the journal\'s mode must be "resume", "reuse" or "off" (got {mode!r})')
        self._path = path
        self._mode: Literal["resume", "reuse", "off"] = mode
        self._scope = scope(name="journal", rooted=True)
        self._entered = ExitStack()
        self._journal: Journal | None = None

    def _open(self) -> Journal | None:
        if self._mode == "off":
            return None
        from afnio.runtime.journal import Journal

        return Journal.open(self._path, self._mode)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Journal | None:
        self._journal = self._open()
        self._entered.enter_context(active_journal.override(self._journal))
        self._scope.__enter__()
        return self._journal

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._scope.__exit__(kind, error, traceback)
        finally:
            self._entered.close()
            self._close()

    async def __aenter__(self) -> Journal | None:
        self._journal = await anyio.to_thread.run_sync(self._open)
        self._entered.enter_context(active_journal.override(self._journal))
        self._scope.__enter__()
        return self._journal

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, traceback)
        finally:
            self._entered.close()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(self._close)
