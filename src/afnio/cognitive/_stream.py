"""Streams: an agent over more rows than fit into memory, such as a million lines of a file.

A batch is one launch with a lane for each sample: all of its inputs and outputs are in memory at the same time. A
stream launches each row by itself and keeps at most `max_pending` of them. Results come one by one, and those that
have been taken are forgotten.

**Addresses.** Row 17 of a program's first stream has the address `stream/17`, whatever arrived before it. A program
that was killed and is started again with its journal is answered row by row, in any order. `start=17` skips rows
without launching them.

All rows share the journal's scope `stream`. If a row is new at the front, the others still find their replies there.

**Failures are values.** A failed row is a `RowResult` with an `error`. The stream itself ends with an error of its
source, or one after which no row could succeed: a budget that is spent, a journal that can't record any more. What
has been paid comes first, and a note on the error names the row to start from. In order, results end at that row.

**Reading the rows.** `for` reads them in its own thread, because a database cursor must stay there, and reads on only
while it would have to wait for a result. `async for` must not block its loop, so a thread reads for it (`_Reader`).
"""

from __future__ import annotations

import inspect
import itertools
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, final

import anyio
import anyio.lowlevel

from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable
from afnio.errors import BudgetExceeded, JournalError, LaunchCancelledError, RuntimeClosedError
from afnio.runtime._callables import is_async
from afnio.runtime._kernel import Job, Launch, Runtime, Scope, Slot, Watcher, current_scope, within
from afnio.runtime._loop import parking
from afnio.runtime._places import Places, places
from afnio.runtime._tracebacks import Failure
from afnio.runtime._waiting import check_blocking

_END: Final = object()
# Errors after which no other row could succeed.
_FOR_GOOD: Final = (BudgetExceeded, JournalError, LaunchCancelledError, RuntimeClosedError)
# Seconds for a row of a source that is so slow that results go before further rows.
_SLOW: Final = 0.01
# Rows launched on an event loop before its other tasks have a turn: about 5 ms.
_AT_ONCE: Final = 50

T = TypeVar("T")


@final
@dataclass(frozen=True, slots=True)
class RowResult(Generic[T]):
    """The result of one row.

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

    Leave it early through a `with` block: its end cancels the rows that are pending. A plain `for` that is left cancels
    them when Python deletes the stream, which a variable that holds it puts off; `close` cancels them, too.
    """

    def __init__(
        self,
        agent: Any,
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
        self._ordered = ordered
        self._source = rows
        self._start = start
        parent = current_scope()
        self._runtime = parent.runtime
        self._path = parent.child_path("stream")
        self._next = start  # the number of the next row to launch
        self._rows: Iterator[Any] | None = None
        self._reader: _Reader | None = None
        self._slow = False
        self._exhausted = False
        self._ending: tuple[int, BaseException] | None = None  # and the first row that has no result
        self._pending: dict[int, _PendingRow] = {}  # in the order of the rows
        self._line: _InOrder | _AsTheyCome = (
            _InOrder(self._pending, self._runtime) if ordered else _AsTheyCome(self._pending, self._runtime)
        )
        self._tasks: anyio.abc.TaskGroup | None = None
        self._room = anyio.Event()
        self._arrived: Callable[[], object] | None = None
        self._taken = self._failed = 0
        self._began: float | None = None

    def snapshot(self) -> StreamSnapshot:
        """Return how far it is: `taken`, `failed` and `pending` rows, `seconds`, and `places`. From any thread."""
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        return StreamSnapshot(self._taken, self._failed, len(self._pending), seconds, places(self._runtime))

    # In a script, a thread or a notebook

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RowResult[Any]:
        while True:
            self._fill()
            if not self._pending:
                raise self._end() or StopIteration
            row = self._line.ready()
            if row is None:
                check_blocking()
                event = threading.Event()
                self._line.watch(event.set)
                event.wait()
            elif (result := self._take(row)) is not None:
                return result

    def _fill(self) -> None:
        """Launch rows until a result is ready or `max_pending` are pending, but one for each result that is taken."""
        if self._rows is None:
            if not isinstance(self._source, Iterable):
                raise TypeError(
                    f"rows must be an iterable for `for` (got {type(self._source).__name__}, which is asynchronous); "
                    "write `async for`"
                )
            self._rows = itertools.islice(self._source, self._start, None)
        enough = self._slow
        while not self._exhausted and len(self._pending) < self._max_pending:
            if enough and self._pending and self._line.ready() is not None:
                return
            began = time.monotonic()
            try:
                row = next(self._rows, _END)
            except Exception as error:
                self._end_at(self._next, error)
                return
            if row is _END:
                self._exhausted = True
                return
            self._slow = time.monotonic() - began > _SLOW
            self._launch(row)
            enough = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the rows that are pending. Safe to call twice."""
        self._stop_reading()
        pending = list(self._pending.values())
        self._pending.clear()
        for row in pending:
            with suppress(RuntimeClosedError):
                row.scope.abandon()
            row.scope.unread()  # those that have failed by now: no one asks for them any more

    def __del__(self) -> None:
        if hasattr(self, "_began"):
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
        elif self._reader is None:
            self._reader = _Reader(itertools.islice(self._source, self._start, None), self._max_pending)
        await anyio.lowlevel.checkpoint()
        while True:
            self._launch_arrived()
            row = self._line.ready() if self._pending else None
            if row is not None:
                result = self._take(row)
                if result is not None:
                    return result
                continue
            if self._exhausted and not self._pending:
                raise self._end() or StopAsyncIteration
            wake, park = parking()
            if self._reader is None:
                self._arrived = wake
            else:
                self._reader.watch(wake)
            if self._pending:
                self._line.watch(wake)
            await park()

    def _launch_arrived(self) -> None:
        """Launch rows that the thread has read."""
        if self._reader is None or self._exhausted:
            return
        for _ in range(_AT_ONCE):
            if not self._reader.rows:
                return
            row = self._reader.rows.popleft()
            if isinstance(row, _Broken):
                self._end_at(self._next, row.error)
            if row is _END or isinstance(row, _Broken):
                self._exhausted = True
                return
            self._launch(row)

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
            skipped = 0
            async for row in rows:
                if skipped < self._start:
                    skipped += 1
                    continue
                while len(self._pending) >= self._max_pending:
                    self._room = anyio.Event()
                    await self._room.wait()
                if self._exhausted:
                    return
                self._launch(row)
                self._tell_arrival()
        except Exception as error:
            self._end_at(self._next, error)
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

    def _stop_reading(self) -> None:
        self._exhausted = True
        if self._reader is not None:
            self._reader.close()

    def _end_at(self, row: int, error: BaseException) -> None:
        """Read no further, and raise `error` after the results that are still to come."""
        self._stop_reading()
        if self._ending is None or row < self._ending[0]:
            self._ending = row, error

    def _end(self) -> BaseException | None:
        """Return the error that the stream ends with, once."""
        ending, self._ending = self._ending, None
        if ending is None:
            return None
        row, error = ending
        error.add_note(f"the stream ended at row {row}; pass start={row} to continue there")
        return error

    def _launch(self, row: Any) -> None:
        if self._began is None:
            self._began = time.monotonic()
        index, self._next = self._next, self._next + 1
        scope = Scope(f"{self._path}/{index}", runtime=self._runtime, matched_in=self._path)
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

    def _take(self, row: _PendingRow) -> RowResult[Any] | None:
        """Return a row's result, or None if the row ends the stream after the results still to come."""
        del self._pending[row.index]
        self._room.set()
        if self._reader is not None:
            self._reader.grant()
        try:
            result = RowResult(row.index, row.row, _plain(row.output))
        except _FOR_GOOD as error:
            self._end_at(row.index, error)
            if self._ordered:
                self.close()
            return None
        except Exception as error:
            self._failed += 1
            result = RowResult(row.index, row.row, None, error)
        self._taken += 1
        return result


@final
class _Reader:
    """Reads the rows of a synchronous source in a thread, no further than there is room.

    The thread is a daemon. No one can interrupt a source that waits, and it must not keep the program from ending.
    """

    def __init__(self, source: Iterator[Any], room: int) -> None:
        self.rows: deque[Any] = deque()
        self._room = threading.Semaphore(room)
        self._closed = False
        self._wake: Callable[[], object] | None = None
        context = copy_context()
        threading.Thread(
            target=context.run, args=(self._read, source), name="afnio-rows", daemon=True
        ).start()

    def _read(self, source: Iterator[Any]) -> None:
        row: Any = None
        while row is not _END and not isinstance(row, _Broken):
            self._room.acquire()
            if self._closed:
                return
            try:
                row = next(source, _END)
            except BaseException as error:
                row = _Broken(error)
            self.rows.append(row)
            self._rouse()

    def watch(self, wake: Callable[[], object]) -> None:
        """Call `wake` once there is a row."""
        self._wake = wake
        if self.rows:  # it came before the line above
            self._rouse()

    def _rouse(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def grant(self) -> None:
        """Make room for another row."""
        self._room.release()

    def close(self) -> None:
        """Read no further row."""
        self._closed = True
        self._room.release()


@dataclass(frozen=True, slots=True)
class _Broken:
    """The end of a source that raised."""

    error: BaseException


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
            if self._done[0].index in self._pending:
                return self._done[0]
            self._done.popleft()  # it was taken or cancelled
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
