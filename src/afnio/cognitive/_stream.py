"""Streams: an agent over more rows than fit into memory, such as a million lines of a file.

A batch is one launch with a lane for each sample: all of its inputs and outputs are in memory at the same time. A
stream launches each row by itself and keeps at most `max_pending` of them. Results come one by one, and those that
have been taken are forgotten.

**Addresses.** Row 17 of a program's first stream has the address `stream/17`, whatever arrived before it. A program
that was killed and is started again with its journal is answered row by row, in any order. `start=17` skips rows
without launching them.

**Failures are values.** A failed row is a `RowResult` with an `error`. The stream itself ends only with an error after
which no row could succeed: a budget that is spent, a journal that can't record any more.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, final

import anyio
import anyio.lowlevel

from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable
from afnio.errors import BudgetExceeded, JournalError, LaunchCancelledError, RuntimeClosedError
from afnio.runtime._callables import is_async
from afnio.runtime._kernel import Failure, Job, Launch, Scope, Slot, Watcher, current_scope, within
from afnio.runtime._loop import parking
from afnio.runtime._places import Places, places
from afnio.runtime._waiting import check_blocking

if TYPE_CHECKING:
    from afnio.cognitive._module import Module
    from afnio.runtime._kernel import Runtime

_END: Final = object()
_FOR_GOOD: Final = (BudgetExceeded, JournalError, LaunchCancelledError, RuntimeClosedError)
"""Errors after which no other row could succeed."""

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class RowResult(Generic[T]):
    """What an agent made of one row.

    Attributes:
        index: the row's number, from 0.
        row: the row itself.
        value: the agent's output, with plain values in place of Variables; None if it failed.
        error: why it failed, or None.
    """

    index: int
    row: Any = field(repr=False)
    value: T | None
    error: Exception | None = None


@final
@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """How far a stream is.

    Attributes:
        taken: the results that were taken.
        failed: how many of them have an error.
        pending: the rows that are launched and not taken.
        seconds: since the first row was read.
        places: what each executor does, and each replica.

    >>> from afnio.runtime import Places
    >>> print(StreamSnapshot(1_200, 3, 1_000, 4.0, Places()))
    1,200 rows taken, 3 failed, 1,000 pending, 300.0 rows/s
    """

    taken: int
    failed: int
    pending: int
    seconds: float
    places: Places

    def __str__(self) -> str:
        facts = [f"{self.taken:,} rows taken", *([f"{self.failed:,} failed"] if self.failed else [])]
        facts.append(f"{self.pending:,} pending")
        facts += [f"{self.taken / self.seconds:,.1f} rows/s"] if self.taken and self.seconds else []
        return "; ".join([", ".join(facts), *filter(None, [str(self.places)])])


@final
class Stream(AsyncIterator[RowResult[Any]], Iterator[RowResult[Any]]):
    """The results of an agent over rows, made by `Module.stream`. Iterate it once, with `for` or `async for`.

    Leaving it early (a `break`, an error, the end of a `with` block) cancels the rows that are pending.
    """

    def __init__(
        self,
        agent: Module,
        rows: Iterable[Any] | AsyncIterable[Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        max_pending: int,
        ordered: bool,
        start: int,
    ) -> None:
        if max_pending < 1:
            raise ValueError(f"max_pending must be at least 1 (got {max_pending}); omit it for 1,000")
        if start < 0:
            raise ValueError(f"start must be at least 0 (got {start}); omit it to begin with the first row")
        if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, (Iterable, AsyncIterable)):
            raise TypeError(
                f"rows must be an iterable of rows (got {type(rows).__name__}); pass a list, a generator or a Dataset"
            )
        self._agent = agent
        self._args = args
        self._kwargs = dict(kwargs)
        self._max_pending = max_pending
        self._source = rows
        self._start = start
        parent = current_scope()
        self._runtime = parent.runtime
        self._path = parent.child_path("stream")
        self._numbers = itertools.count(start)
        self._rows: Iterator[Any] | None = None
        self._exhausted = False
        self._pending: dict[int, _PendingRow] = {}  # in the order of the rows
        self._line: _InOrder | _AsTheyCome = (
            _InOrder(self._pending, self._runtime) if ordered else _AsTheyCome(self._pending, self._runtime)
        )
        self._tasks: anyio.abc.TaskGroup | None = None
        self._source_error: BaseException | None = None
        self._room = anyio.Event()
        self._arrived: Callable[[], object] | None = None
        self._taken = self._failed = 0
        self._began: float | None = None

    def snapshot(self) -> StreamSnapshot:
        """Return how far it is, and what runs where; from any thread."""
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return StreamSnapshot(self._taken, self._failed, len(self._pending), seconds, places(self._runtime))

    # In a script, a thread or a notebook

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowResult[Any]:
        self._fill()
        while self._pending:
            row = self._line.ready()
            if row is not None:
                return self._take(row)
            check_blocking()
            event = threading.Event()
            self._line.watch(event.set)
            event.wait()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the rows that are pending. Safe to call twice."""
        self._exhausted = True
        pending = list(self._pending.values())
        self._pending.clear()
        for row in pending:
            with suppress(RuntimeClosedError):
                row.scope.abandon()

    def __del__(self) -> None:
        if getattr(self, "_pending", None):
            self.close()

    # On an event loop

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RowResult[Any]:
        if isinstance(self._source, AsyncIterable):
            if self._tasks is None:
                raise RuntimeError(
                    "a stream over an async iterable must run in a block, because it reads rows while you take "
                    "results; write `async with agent.stream(rows) as results:`"
                )
        else:
            self._fill()
        waited = False
        while True:
            row = self._line.ready() if self._pending else None
            if row is not None:
                if not waited:
                    await anyio.lowlevel.checkpoint()
                return self._take(row)
            if not self._pending and self._exhausted:
                error, self._source_error = self._source_error, None
                raise StopAsyncIteration if error is None else error
            wake, park = parking()
            self._arrived = wake
            if self._pending:
                self._line.watch(wake)
            await park()
            waited = True

    async def __aenter__(self) -> Self:
        if isinstance(self._source, AsyncIterable):
            self._tasks = await anyio.create_task_group().__aenter__()
            self._tasks.start_soon(self._pull, aiter(self._source))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)

    async def _pull(self, rows: AsyncIterator[Any]) -> None:
        """Launch the rows of an async iterable as they come, as long as there is room."""
        try:
            index = -1
            async for row in rows:
                index += 1
                if index < self._start:
                    continue
                while len(self._pending) >= self._max_pending:
                    self._room = anyio.Event()
                    await self._room.wait()
                self._launch(index, row)
                self._tell_arrival()
        except Exception as error:
            self._source_error = error
        finally:
            self._exhausted = True
            self._tell_arrival()
            if inspect.isasyncgen(rows):
                await rows.aclose()  # here, in its own event loop, and not when it is collected

    def _tell_arrival(self) -> None:
        arrived, self._arrived = self._arrived, None
        if arrived is not None:
            arrived()

    # Both

    def _fill(self) -> None:
        """Launch rows until `max_pending` are pending."""
        if self._rows is None:
            if not isinstance(self._source, Iterable):
                raise TypeError(
                    f"rows must be an iterable for `for` (got {type(self._source).__name__}, which is asynchronous); "
                    "write `async for`"
                )
            self._rows = itertools.islice(self._source, self._start, None)
        while not self._exhausted and len(self._pending) < self._max_pending:
            row = next(self._rows, _END)
            if row is _END:
                self._exhausted = True
                return
            self._launch(next(self._numbers), row)

    def _launch(self, index: int, row: Any) -> None:
        if self._began is None:
            self._began = time.monotonic()
        scope = Scope(f"{self._path}/{index}", runtime=self._runtime)
        with within(scope), no_grad():
            try:
                output = self._call(row)
            except Exception as error:
                output = _Failed(error)
        launched = _PendingRow(index, row, scope, output)
        self._pending[index] = launched
        self._line.add(launched)

    def _call(self, row: Any) -> Any:
        args, kwargs = _arguments(row)
        forward: Callable[..., Any] = self._agent
        if not is_async(self._agent.forward):
            return forward(*self._args, *args, **self._kwargs, **kwargs)
        launch = Launch("row")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[Any]:
            output = await forward(*self._args, *args, **self._kwargs, **kwargs)
            for variable in _variables(output):
                await variable
            return [_plain(output)]

        launch.add(body, [], [slot])
        launch.start()
        return slot

    def _take(self, row: _PendingRow) -> RowResult[Any]:
        del self._pending[row.index]
        self._room.set()
        self._taken += 1
        try:
            return RowResult(row.index, row.row, _plain(row.output))
        except _FOR_GOOD as error:
            self.close()
            error.add_note(f"the stream ended at row {row.index}; pass start={row.index} to continue there")
            raise
        except Exception as error:
            self._failed += 1
            return RowResult(row.index, row.row, None, error)


@final
class _PendingRow:
    """A row that is pending, and what its launches fill."""

    __slots__ = ("index", "output", "row", "scope", "slots")

    def __init__(self, index: int, row: Any, scope: Scope, output: Any) -> None:
        self.index = index
        self.row = row
        self.scope = scope
        self.output = output
        self.slots: list[Slot] = (
            [output]
            if isinstance(output, Slot)
            else [slot for variable in _variables(output) for slot in variable.cell()[0]]
        )

    @property
    def done(self) -> bool:
        return all(slot.done for slot in self.slots)


@final
class _InOrder:
    """Yields the rows of a stream in their order."""

    def __init__(self, pending: Mapping[int, _PendingRow], runtime: Runtime) -> None:
        self._pending = pending
        self._runtime = runtime

    def add(self, row: _PendingRow) -> None:
        return

    def ready(self) -> _PendingRow | None:
        first = next(iter(self._pending.values()))
        return first if first.done else None

    def watch(self, wake: Callable[[], object]) -> None:
        """Call `wake` once the first row is done."""
        first = next(iter(self._pending.values()))
        self._runtime.post(Watcher(first.slots, wake, first.scope).start)


@final
class _AsTheyCome:
    """Yields the rows of a stream in the order in which they are done.

    Pending rows refer to it. It doesn't refer to the stream, which would never be collected then, nor cancel its rows.
    """

    def __init__(self, pending: Mapping[int, _PendingRow], runtime: Runtime) -> None:
        self._pending = pending
        self._runtime = runtime
        self._done: deque[_PendingRow] = deque()
        self._wake: Callable[[], object] | None = None

    def add(self, row: _PendingRow) -> None:
        if row.done:
            self._done.append(row)
        else:
            self._runtime.post(Watcher(row.slots, partial(self._finished, row), row.scope).start)

    def _finished(self, row: _PendingRow) -> None:
        self._done.append(row)
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def ready(self) -> _PendingRow | None:
        while self._done:
            row = self._done.popleft()
            if row.index in self._pending:  # else it was cancelled
                return row
        return None

    def watch(self, wake: Callable[[], object]) -> None:
        """Call `wake` once a row is done."""
        self._wake = wake
        if self._done:  # it came before the line above
            wake()


@dataclass(frozen=True, slots=True)
class _Failed:
    """A row that the agent refused before it launched anything."""

    error: Exception


def _arguments(row: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments that a row stands for: a tuple has several, a dict has keywords, any other value is one."""
    if isinstance(row, tuple):
        return row, {}
    if isinstance(row, dict):
        return (), row
    return (row,), {}


def _variables(output: Any) -> list[Variable]:
    if isinstance(output, Variable):
        return [output]
    if isinstance(output, Mapping):
        output = output.values()
    elif not isinstance(output, (list, tuple)):
        return []
    return [variable for part in output for variable in _variables(part)]


def _plain(output: Any) -> Any:
    """Return an output without Variables, or raise the error of the first that failed. Nothing in it is pending."""
    if isinstance(output, _Failed):
        raise output.error
    if isinstance(output, Slot):
        if isinstance(output.outcome, Failure):
            raise output.outcome.raised()
        return output.outcome
    if isinstance(output, Variable):
        return output.data
    if isinstance(output, Mapping):
        return {name: _plain(part) for name, part in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_make"):
        return output._make(map(_plain, output))
    if isinstance(output, (list, tuple)):
        return type(output)(map(_plain, output))
    return output
