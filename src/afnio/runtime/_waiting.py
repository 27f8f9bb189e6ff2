"""Waiting: the two ways to wait for slots, where the blocking one is allowed, and the blocks that wait at their end.

`wait` blocks the calling thread; `wait_async` awaits on the caller's asyncio or trio loop. Every read of a pending
value goes through one of them. A blocking wait isn't allowed everywhere:

    on the runtime's thread             never: it would wait for itself
    in a callable of a node             never: all worker threads could end up waiting for each other
    in a thread without an event loop   always
    in a notebook                       yes: the cell stalls and nothing else
    on any other running event loop     no, unless `set_sync_mode` allows it: every other task would stall

Where it isn't allowed a read raises `BlockingReadError`, which names the fix. Nothing else depends on the loop:
`backward()` and `step()` return the same `Pending` everywhere, and wait only if a wait is allowed.

`scope` owns the launches of a block and waits for them at its end. `journal` is such a block with a file in which
calls are recorded.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    suppress,
)
from contextvars import ContextVar, Token, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, final

import anyio
import anyio.lowlevel
import anyio.to_thread

from afnio.errors import BlockingReadError, RuntimeClosedError, distinct, reason
from afnio.runtime._kernel import (
    PENDING,
    Runtime,
    Scope,
    Slot,
    Watcher,
    active_scope,
    check_owner,
    current_runtime,
    current_scope,
    on_runtime_thread,
)
from afnio.runtime._loop import parking, running_caller, running_library
from afnio.runtime._settings import Assignment, OpenBlock, Setting
from afnio.runtime._tracebacks import Failure, folding
from afnio.runtime.events import ScopeEnded, emit, listening

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal

SyncMode = Literal["auto", "allow", "warn", "error"]

sync_mode: Final[Setting[SyncMode]] = Setting("sync_mode", "auto")
# True in the callables of nodes. Their inputs are done, so a pending read there is a mistake that could
# deadlock.
inside_node: Final[ContextVar[bool]] = ContextVar("afnio_inside_node", default=False)


class set_sync_mode(Assignment[SyncMode]):  # noqa: N801
    """Choose what a blocking read does on a running event loop: "auto", "allow", "warn" or "error".

    "auto" allows it in a notebook and raises elsewhere. A plain call sets the process default, a `with` block sets
    the mode for its context only.

    Raises:
        ValueError: for any other mode.

    >>> with set_sync_mode("allow"):
    ...     pass
    """

    def __init__(self, mode: SyncMode) -> None:
        if mode not in ("auto", "allow", "warn", "error"):
            raise ValueError(f"mode must be 'auto', 'allow', 'warn' or 'error' (got {mode!r})")
        super().__init__(sync_mode, mode)


def may_block() -> bool:
    """Return True if a blocking wait is allowed here."""
    return _objection() is None


def check_blocking(*, call: bool = False) -> None:
    """Raise `BlockingReadError` with the fix if a blocking wait isn't allowed here.

    Args:
        call: it is a wait for a model call. It needs no worker thread, so a callable of a node may wait for it.
    """
    objection = _objection(call=call)
    if objection is not None:
        raise BlockingReadError(objection)
    if sync_mode.get() == "warn" and running_library() is not None:
        import warnings

        warnings.warn("a read blocks the running event loop until the value is done", stacklevel=5)


def wait(slots: Iterable[Slot], *, check: bool = True) -> None:
    """Block this thread until `slots` are done.

    Args:
        check: False for slots that no callable of a node has to fill, such as those of one call. Waiting for them
            is safe everywhere but on the runtime's thread.

    Raises:
        BlockingReadError: if the wait would block an event loop or deadlock.
    """
    pending = [slot for slot in slots if slot.outcome is PENDING]
    if not pending:
        return
    runtime, scope = _runtime_of(pending)
    if check:
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
        if running_library() == "trio":  # trio expects every await to be a checkpoint
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


def _runtime_of(pending: Sequence[Slot]) -> tuple[Runtime, Scope]:
    runtime = current_runtime()
    for slot in pending:
        check_owner(slot, runtime)
    return runtime, current_scope()


def _objection(*, call: bool = False) -> str | None:
    if inside_node.get() and not call:
        return (
            "a callable of a node read a pending value, which could deadlock; use its arguments, which are values, "
            "or make it an `async def` to await what it launches"
        )
    if on_runtime_thread():
        return "the runtime's thread read a value that it must fill itself; await the value instead"
    library = running_library()
    if library is None:
        return None
    caller = running_caller(make=False)
    if caller is not None and any(
        not job.done for launch in list(caller.awaited) for job in list(launch.jobs)
    ):
        return (
            "this read would block the loop that callables of loop='caller' run on, and so wait for itself; write "
            "`await value`"
        )
    mode = sync_mode.get()
    if mode in ("allow", "warn") or (mode == "auto" and _in_notebook()):
        return None
    return (
        f"this read would block the running {library} loop until the value is done; write `await value` "
        "(per sample: `value.map(fn)`; in a forward that reads: `async def forward`), "
        "or call afnio.set_sync_mode('allow')"
    )


def _in_notebook() -> bool:
    """Return True if the running loop belongs to an IPython kernel."""
    ipython = sys.modules.get("IPython")
    if ipython is None or threading.current_thread() is not threading.main_thread():
        return False
    # Another thread may be in the middle of importing IPython.
    shell = getattr(ipython, "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


# The handle


T = TypeVar("T")


@final
class Pending(Generic[T]):
    """The handle that `backward()`, `step()` and `to_thread()` return. Await it, call `wait()`, or ignore it.

    An error that is never read this way is raised by the surrounding `afnio.scope()`, or logged.

    >>> import afnio
    >>> work = afnio.to_thread(lambda: 1)
    >>> work.wait(), work.done
    (1, True)
    """

    def __init__(self, slot: Slot, result: Callable[[Any], T]) -> None:
        self._slot = slot
        self._result = result

    @property
    def done(self) -> bool:
        return self._slot.outcome is not PENDING

    @folding
    def wait(self) -> T:
        """Block until it is done, and return its result or raise its error.

        Raises:
            BlockingReadError: if a blocking wait isn't allowed here; write `await` instead.
        """
        wait([self._slot])
        return self._read()

    def wait_for_call(self) -> None:
        """Block until a model call is done, also in a callable of a node; after `check_blocking(call=True)`."""
        wait([self._slot], check=False)

    @folding
    def wait_if_allowed(self) -> Pending[T]:
        """Wait if a blocking wait is allowed here, so that an error surfaces on this line. Returns self."""
        if self.done or may_block():
            self.wait()
        return self

    @folding
    def __await__(self) -> Generator[Any, None, T]:
        yield from wait_async([self._slot]).__await__()
        return self._read()

    def _read(self) -> T:
        outcome = self._slot.outcome
        if isinstance(outcome, Failure):
            raise outcome.raised()
        return self._result(outcome)

    def __repr__(self) -> str:
        return f"<Pending {'done' if self.done else 'pending'}>"


# The blocks


class scope(AbstractContextManager[Scope], AbstractAsyncContextManager[Scope]):  # noqa: N801
    """Own what is launched in the block. Use `with` in a script and `async with` on an event loop.

    Leaving the block waits for its launches and raises the errors that haven't been read: a single one unchanged,
    several in an ExceptionGroup. An exception in the block cancels the launches first. A launch's address is the
    scope's path and the launch's number in the scope, in program order.

    Args:
        name: element of the address path. Name the scopes of tasks or threads that run side by side: numbers would
            depend on which one is first.
        max_pending: launches that may be pending at the same time. One more raises `TooManyPendingError`.
        rooted: begin the address path with `name` instead of the outer scope's path, so that it doesn't depend on
            where the block runs. For blocks with their own journal.

    Raises:
        ValueError: if `max_pending` is below 1.
        RuntimeError: when entered a second time.

    >>> import afnio
    >>> with afnio.scope(name="example"):
    ...     total = afnio.Variable(1) + afnio.Variable(2)
    >>> total.data
    3
    """

    def __init__(
        self, name: str | None = None, *, max_pending: int | None = None, rooted: bool = False
    ) -> None:
        if max_pending is not None and max_pending < 1:
            raise ValueError(f"max_pending must be at least 1 (got {max_pending}); leave it out for no limit")
        self._name = name
        self._max_pending = max_pending
        self._rooted = rooted
        self._scope: Scope | None = None
        self._token: Token[Scope | None] | None = None

    def _enter(self) -> Scope:
        if self._scope is not None:
            raise RuntimeError("a scope can be entered only once; make a new one with afnio.scope()")
        parent = current_scope()
        name = self._name if self._rooted and self._name is not None else parent.child_path(self._name)
        self._scope = Scope(name, runtime=parent.runtime, max_pending=self._max_pending)
        self._scope.job = parent.job
        self._token = active_scope.set(self._scope)
        return self._scope

    def _leave(self, error: BaseException | None) -> Scope:
        assert self._scope is not None
        assert self._token is not None
        active_scope.reset(self._token)
        if error is not None:
            self._scope.abandon()
        return self._scope

    def __enter__(self) -> Scope:
        return self._enter()

    @folding
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = self._leave(error)
        if scope.pending:
            if not may_block():
                scope.abandon()
                message = (
                    f"leaving `with afnio.scope()` would block this event loop while {len(scope.pending)} "
                    "launches are pending (they have been cancelled); write `async with afnio.scope()`"
                )
                if error is None:
                    raise BlockingReadError(message)
                return
            try:
                wait([_drained(scope)])
            except BaseException:  # Ctrl-C
                scope.abandon()
                raise
        _raise_unread(scope, error)

    async def __aenter__(self) -> Self | Scope:  # type: ignore[override]
        return self._enter()

    @folding
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        scope = self._leave(error)
        if scope.pending:
            try:
                await wait_async([_drained(scope)])
            except BaseException:
                # The task was cancelled while it waited. Its launches must end before it does.
                scope.abandon()
                with anyio.CancelScope(shield=True):
                    await wait_async([_drained(scope)])
                raise
        _raise_unread(scope, error)


def _drained(scope: Scope) -> Slot:
    slot = Slot()
    scope.runtime.post(scope.watch, slot)
    return slot


def _raise_unread(scope: Scope, error: BaseException | None) -> None:
    _tell_end(scope)
    errors = scope.unread()
    if error is not None or not errors:
        return
    if len(errors) == 1:
        raise errors[0]
    message = f"{len(errors)} launches of scope {scope.path!r} failed, first with {reason(errors[0])}"
    raise BaseExceptionGroup(message, distinct(errors))


def _tell_end(scope: Scope) -> None:
    if listening():
        with suppress(RuntimeClosedError):
            scope.runtime.post(copy_context().run, emit, ScopeEnded(scope.path))


# The journal that records and answers the calls launched in this context.
active_journal: Final[Setting[Journal | None]] = Setting("journal", None)


class journal(AbstractContextManager["Journal | None"], AbstractAsyncContextManager["Journal | None"]):  # noqa: N801
    """Record the block's calls in a file, and answer calls from it that have been recorded before.

    Use `with` in a script and `async with` on an event loop. Like `afnio.scope`, the block owns its launches. It
    closes the file at its end.

    Args:
        path: the file. A new one is readable only by its owner.
        mode: "resume" answers the calls of the same program by their address; "reuse" answers equal requests of any
            program, the n-th use of a request by its n-th reply; "off" neither reads nor records.

    Raises:
        ValueError: for any other mode.
        JournalError: when entered, if another process uses the file, or it is foreign, damaged or newer.

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
            raise ValueError(f'mode must be "resume", "reuse" or "off" (got {mode!r})')
        self._path = path
        self._mode: Literal["resume", "reuse", "off"] = mode
        self._scope = scope(name="journal", rooted=True)
        self._entered = ExitStack()
        self._journal: Journal | None = None

    def _open(self) -> Journal | None:
        if self._mode == "off":
            return None
        from afnio.runtime._journal import Journal

        return Journal.open(self._path, self._mode)

    def _close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Journal | None:
        self._journal = self._open()
        self._entered.enter_context(active_journal.override(self._journal))
        self._scope.__enter__()
        self._entered.callback(OpenBlock().close)
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
        self._entered.callback(OpenBlock().close)
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
