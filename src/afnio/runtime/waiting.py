"""Waiting: the only two ways to wait for slots, and where the blocking one is allowed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Final, Literal, final

import anyio.lowlevel

from afnio.errors import BlockingReadError
from afnio.runtime.loop import parking, running_library
from afnio.runtime.setting import Assignment, Setting
from afnio.runtime.slot import PENDING, Slot

SyncMode = Literal["auto", "allow", "warn", "error"]

sync_mode: Final[Setting[SyncMode]] = Setting("sync_mode", "auto")
inside_node: Final[ContextVar[bool]] = ContextVar("afnio_inside_node", default=False)
"""True in the callables of nodes, where every input is there already and a wait could deadlock."""


class set_sync_mode(Assignment[SyncMode]):  # noqa: N801
    """Decide what a blocking read does on a running event loop: "auto", "allow", "warn" or "error".

    "auto" allows it in a notebook and raises elsewhere. A plain call sets the process default; as a
    `with` block it holds for the block's context.

    >>> with set_sync_mode("allow"):
    ...     pass
    """

    def __init__(self, mode: SyncMode) -> None:
        if mode not in ("auto", "allow", "warn", "error"):
            raise ValueError(f"sync mode must be 'auto', 'allow', 'warn' or 'error' (got {mode!r})")
        super().__init__(sync_mode, mode)


@final
class Watcher:
    """Waits for several slots on behalf of one caller; lives on the runtime's thread."""

    __slots__ = ("_left", "_wake", "scope", "slots")

    def __init__(self, slots: Sequence[Slot], wake: Callable[[], object], scope: object) -> None:
        self.slots = slots
        self.scope = scope
        self._left = 0
        self._wake = wake

    def start(self) -> None:
        pending = [slot for slot in self.slots if slot.outcome is PENDING]
        self._left = len(pending)
        for slot in pending:
            slot.add(self)
        if not pending:
            self._wake()

    def notify(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._wake()


def may_block() -> bool:
    """Whether a blocking wait is allowed here, without saying why not."""
    return _objection() is None


def check_blocking() -> None:
    """Raise `BlockingReadError`, with the fix, where a blocking wait is not allowed."""
    objection = _objection()
    if objection is not None:
        raise BlockingReadError(objection)
    if sync_mode.get() == "warn" and running_library() is not None:
        import warnings

        warnings.warn("a read blocks the running event loop until the value is there", stacklevel=5)


def wait(slots: Iterable[Slot]) -> None:
    """Block this thread until `slots` are done.

    Raises:
        BlockingReadError: where waiting would block an event loop or deadlock.
    """
    pending = [slot for slot in slots if slot.outcome is PENDING]
    if not pending:
        return
    runtime, scope = _runtime_of(pending)
    check_blocking()
    event = threading.Event()
    watcher = Watcher(pending, event.set, scope)
    runtime.post(watcher.start)
    try:
        event.wait()
    except BaseException:  # Ctrl-C
        runtime.post(runtime.forget, watcher)
        raise


async def wait_async(slots: Iterable[Slot]) -> None:
    """Wait until `slots` are done, without blocking the running asyncio or trio loop."""
    pending = [slot for slot in slots if slot.outcome is PENDING]
    if not pending:
        if running_library() == "trio":  # where every await is a checkpoint
            await anyio.lowlevel.checkpoint()
        return
    runtime, scope = _runtime_of(pending)
    wake, park = parking()
    watcher = Watcher(pending, wake, scope)
    runtime.post(watcher.start)
    try:
        await park()
    except BaseException:  # this waiter was cancelled
        runtime.post(runtime.forget, watcher)
        raise


def _runtime_of(pending: Sequence[Slot]):  # type: ignore[no-untyped-def]
    from afnio.runtime.launch import check_owner
    from afnio.runtime.runtime import current_runtime
    from afnio.runtime.scope import current_scope

    runtime = current_runtime()
    for slot in pending:
        check_owner(slot, runtime)
    return runtime, current_scope()


def _objection() -> str | None:
    from afnio.runtime.runtime import on_runtime_thread

    if inside_node.get():
        return (
            "a callable of a node read a pending value, which could deadlock; its arguments are values "
            "already, and what it launches only an `async def` callable may await"
        )
    if on_runtime_thread():
        return "the runtime's own thread can't wait for a value that it is to fill; await the value instead"
    library = running_library()
    if library is None:
        return None
    mode = sync_mode.get()
    if mode in ("allow", "warn") or (mode == "auto" and _in_notebook()):
        return None
    return (
        f"this read would block the running {library} loop until the value is there; write `await value` "
        "(per sample: `value.map(fn)`; in a forward that reads: `async def forward`), "
        "or call afnio.set_sync_mode('allow')"
    )


def _in_notebook() -> bool:
    """Whether this loop belongs to an IPython kernel, where a wait stalls the cell and nothing else."""
    ipython = sys.modules.get("IPython")
    if ipython is None or threading.current_thread() is not threading.main_thread():
        return False
    # Another thread may be importing it just now.
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")
