"""Scope: who owns a launch, and what its address is.

Every launch belongs to a scope. Leaving a `with scope():` waits for its launches and raises what nobody
read, one error bare and several as an ExceptionGroup; an exception in the block cancels them first. A
launch's address is the scope's path and its number there, in program order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar, Token, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

import anyio

from afnio.errors import BlockingReadError, LaunchCancelledError, RuntimeClosedError, TooManyPendingError
from afnio.likeness import reason
from afnio.runtime.events import ScopeEnded, emit, listening
from afnio.runtime.fold import folding
from afnio.runtime.slot import Slot
from afnio.runtime.waiting import may_block, wait, wait_async

if TYPE_CHECKING:
    from afnio.runtime.launch import Launch
    from afnio.runtime.runtime import Runtime
    from afnio.runtime.slot import Failure


@final
class Scope:
    """The owner of launches; a node of the tree whose root lives as long as the runtime."""

    def __init__(
        self,
        path: str,
        *,
        runtime: Runtime,
        is_root: bool = False,
        owner: Scope | None = None,
        max_pending: int | None = None,
    ) -> None:
        self.path = path
        self.runtime = runtime
        # The scope that owns what is launched here: itself, unless this one only lends an address.
        self.owner = self if owner is None else owner
        self.max_pending = max_pending
        self.pending: dict[Launch, None] = {}
        self.failures: list[Failure] = []
        self.drained: Slot | None = None
        self.abandoned = False
        self.is_root = is_root
        self._numbers = itertools.count(1)
        self._names: dict[str, int] = {}

    def next_address(self) -> str:
        return f"{self.path}/{next(self._numbers)}"

    def child_path(self, name: str | None) -> str:
        """Return the path of a new child: with its `name`, numbered from its second use on."""
        if name is None:
            name = f"scope {next(self._numbers)}"
        else:
            uses = self._names[name] = self._names.get(name, 0) + 1
            name = name if uses == 1 else f"{name}#{uses}"
        return f"{self.path}/{name}" if self.path else name

    def check_room(self) -> None:
        """Raise, at the line that would launch, when `max_pending` launches are under way, or after `abandon`.

        A worker thread outlives its cancellation: without this it could launch for a block that was left.
        """
        if self.abandoned:
            raise LaunchCancelledError(f"scope {self.path!r} was cancelled; nothing more is launched in it")
        if self.max_pending is not None and len(self.pending) >= self.max_pending:
            raise TooManyPendingError(
                f"this scope already has max_pending={self.max_pending} launches under way; "
                "await some of them before you launch more"
            )

    def note(self, failure: Failure) -> None:
        """Keep a failure of a launch, until somebody reads it; the root only has them logged."""
        if failure.read or self.is_root:
            return
        self.failures = [kept for kept in self.failures if not kept.read]
        self.failures.append(failure)

    def release(self, launch: Launch) -> None:
        """Let a finished launch go; on the runtime's thread."""
        self.pending.pop(launch, None)
        if not self.pending and self.drained is not None:
            drained, self.drained = self.drained, None
            drained.fill(True)

    def watch(self, drained: Slot) -> None:
        """Fill `drained` once nothing is pending; on the runtime's thread."""
        if self.pending:
            self.drained = drained
        else:
            drained.fill(True)

    def cancel(self) -> None:
        """Cancel the scope's pending launches; their values raise `LaunchCancelledError`."""
        if self.pending:
            self.runtime.post(self.runtime.cancel_scope, self)

    def abandon(self) -> None:
        """Cancel what is pending and launch nothing more: nobody will wait for it."""
        self.abandoned = True
        self.cancel()

    def unread(self) -> list[BaseException]:
        """Return the errors that nobody read, marking them read."""
        unread = [failure for failure in self.failures if not failure.read]
        summed_up = {id(cause) for failure in unread for cause in failure.causes}
        for failure in unread:
            failure.mark_read()
        self.failures.clear()
        return [failure.raised() for failure in unread if id(failure) not in summed_up]


_current: ContextVar[Scope | None] = ContextVar("afnio_scope", default=None)


def current_scope() -> Scope:
    """Return the scope that a launch here would belong to."""
    from afnio.runtime.runtime import current_runtime

    scope = _current.get()
    runtime = current_runtime()
    # A scope of the parent process means nothing after a fork: its runtime's thread is not here.
    if scope is None or scope.runtime.pid != runtime.pid:
        return runtime.root
    return scope


class scope(AbstractContextManager[Scope], AbstractAsyncContextManager[Scope]):  # noqa: N801
    """Own what is launched in the block, as `with` in a script and `async with` on a loop.

    Args:
        name: element of the address path; give one where tasks or threads launch side by side.
        max_pending: how many launches may be under way before the next one raises.
        rooted: start the address path anew with `name`, so that it is the same wherever the block is run;
            for blocks with a journal of their own.

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
            raise ValueError(f"max_pending must be at least 1 (got {max_pending}); omit it for no limit")
        self._name = name
        self._max_pending = max_pending
        self._rooted = rooted
        self._scope: Scope | None = None
        self._token: Token[Scope | None] | None = None

    def _enter(self) -> Scope:
        if self._scope is not None:
            raise RuntimeError("this scope has been entered before; make a new one with afnio.scope()")
        parent = current_scope()
        name = self._name if self._rooted and self._name is not None else parent.child_path(self._name)
        self._scope = Scope(name, runtime=parent.runtime, max_pending=self._max_pending)
        self._token = _current.set(self._scope)
        return self._scope

    def _leave(self, error: BaseException | None) -> Scope:
        assert self._scope is not None
        assert self._token is not None
        _current.reset(self._token)
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
                # The block's own task was cancelled while it waited: what it owns ends with it, and before.
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
    raise BaseExceptionGroup(message, errors)


def _tell_end(scope: Scope) -> None:
    if listening():
        with suppress(RuntimeClosedError):
            scope.runtime.post(copy_context().run, emit, ScopeEnded(scope.path))


@contextmanager
def within(inner: Scope) -> Iterator[None]:
    """Have what is launched in the block belong to `inner`."""
    token = _current.set(inner)
    try:
        yield
    finally:
        _current.reset(token)
