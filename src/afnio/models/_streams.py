"""Streams: what arrives of a reply event by event, and the pipe to its reader, who may be on any thread or loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, final

import anyio

from afnio.errors import RuntimeClosedError
from afnio.models._dialect import Dialect
from afnio.runtime._kernel import current_runtime
from afnio.runtime._loop import parking
from afnio.runtime.events import Usage

# Bytes of a stream that wait for a slow reader. Then nothing more is read from the connection.
BUFFER: Final = 256 << 10


class Head(NamedTuple):
    """The beginning of a response."""

    status: int
    headers: Mapping[str, str]


class BrokenReplyError(Exception):
    """A stream broke off after its first content. The bridge's transports raise it as their HTTP client's error."""


@final
class Pipe:
    """Carries a reply from the runtime's loop to its one reader, who may be on any thread or loop.

    The head comes first, then pieces. The writer waits while `BUFFER` bytes are unread. Neither side takes a lock:
    each changes only its own counters, and looks again after it has said that it waits.
    """

    def __init__(self, *, log: bool = False) -> None:
        self._pieces: deque[bytes] = deque()
        self._head: Head | None = None
        self._ended = False
        self._error: BaseException | None = None
        self._wake: Callable[[], object] | None = None
        self._written = self._read = 0
        self._room: anyio.Event | None = None
        self._runtime = current_runtime()
        self.left = False
        self.on_leave: Callable[[], object] | None = None
        self.taken: list[bytes] | None = [] if log else None
        """The pieces that the reader got, if someone wants to know."""
        self.on_end: Callable[[], object] | None = None
        """Called on the reader's side when it has got everything, or leaves."""

    @property
    def ended(self) -> bool:
        return self._ended

    @property
    def broken(self) -> bool:
        return self._error is not None

    @property
    def size(self) -> int:
        """The bytes that were written."""
        return self._written

    # The writer, on the runtime's loop

    def open(self, status: int, headers: Mapping[str, str]) -> None:
        self._head = Head(status, headers)
        self._notify()

    def put(self, piece: bytes) -> None:
        if not self.left and piece:
            self._pieces.append(piece)
            self._written += len(piece)
            self._notify()

    async def room(self) -> None:
        """Wait until the reader has taken enough."""
        while self._written - self._read > BUFFER and not self.left:
            self._room = anyio.Event()
            if self._written - self._read > BUFFER and not self.left:
                await self._room.wait()

    def end(self, error: BaseException | None = None) -> None:
        """End it; with an error, the reader gets that after all the pieces."""
        if not self._ended:
            self._error = error
            self._ended = True
            self._notify()

    def fill(self, head: Head, pieces: list[bytes], error: BaseException | None) -> None:
        """Deliver a whole reply at once. The reader wakes only once."""
        if self._ended:
            return
        self._pieces.extend(piece for piece in pieces if piece)
        self._written += sum(map(len, pieces))
        self._error = error
        self._ended = True
        self._head = head
        self._notify()

    def _notify(self) -> None:
        # The reader clears it: the writer could otherwise wipe out a newer one.
        wake = self._wake
        if wake is not None:
            wake()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()

    def _left(self) -> None:
        self._make_room()
        if self.on_leave is not None:
            self.on_leave()

    # The reader

    async def head(self) -> Head:
        """Wait for the status and the headers."""
        while self._head is None:
            await self._park(lambda: self._head is not None)
        return self._head

    def wait_for_head(self) -> Head:
        """Block this thread until the status and the headers are there."""
        while self._head is None:
            self._block(lambda: self._head is not None)
        return self._head

    async def piece(self) -> bytes | None:
        """Wait for the next piece; None at the end.

        Raises:
            BrokenReplyError: at the end of a reply that broke off.
        """
        while (piece := self._take()) is None and not self._is_over():
            await self._park(lambda: bool(self._pieces) or self._ended)
        return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (piece := await self.piece()) is not None:
            yield piece

    def __iter__(self) -> Iterator[bytes]:
        while True:
            piece = self._take()
            if piece is not None:
                yield piece
            elif self._is_over():
                return
            else:
                self._block(lambda: bool(self._pieces) or self._ended)

    def leave(self) -> None:
        """Say that nothing more will be read. Safe to call twice, and after the end."""
        if not self.left:
            self.left = True
            self._finish()
            if not self._ended:
                with suppress(RuntimeClosedError):
                    self._runtime.post(self._left)

    def _take(self) -> bytes | None:
        try:
            piece = self._pieces.popleft()
        except IndexError:
            return None
        self._read += len(piece)
        if self.taken is not None:
            self.taken.append(piece)
        if self._room is not None and self._written - self._read <= BUFFER // 2:
            room, self._room = self._room, None
            with suppress(RuntimeClosedError):
                self._runtime.post(room.set)
        return piece

    def _is_over(self) -> bool:
        if not self._ended or self._pieces:
            return False
        self._finish()
        if self._error is not None:
            raise self._error
        return True

    def _finish(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()

    async def _park(self, ready: Callable[[], bool]) -> None:
        wake, park = parking()
        self._wake = wake
        try:
            if not ready():
                await park()
        finally:
            self._wake = None

    def _block(self, ready: Callable[[], bool]) -> None:
        event = threading.Event()
        self._wake = event.set
        try:
            if not ready():
                event.wait()
        finally:
            self._wake = None


@final
class Received:
    """The part of a stream that has arrived.

    Attributes:
        events: as they go to the reader and into the journal.
        size: bytes.
        written: characters of the answer.
        usage: the tokens that it counted so far, or None.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.events: list[bytes] = []
        self.size = self.written = self.written_at_leave = 0
        self._dialect = dialect
        self._counting: list[dict[str, Any]] = []
        self._tier_in: dict[str, Any] | None = None  # the last event that names a service tier
        self._latest: deque[dict[str, Any]] = deque(maxlen=8)
        self._left = False

    def add(self, event: bytes, parsed: dict[str, Any] | None, *, dropped: bool) -> None:
        self.size += len(event)
        if not dropped:
            self.events.append(event)
        if parsed is not None:
            self.written += self._dialect.written(parsed)
            self._latest.append(parsed)
            if b'"usage' in event and b'"usage":null' not in event:
                self._counting.append(parsed)
            if b'"service_tier' in event and b'"service_tier":null' not in event:
                self._tier_in = parsed

    def note_leave(self, *, left: bool) -> None:
        if left and not self._left:
            self._left, self.written_at_leave = True, self.written

    @property
    def usage(self) -> Usage | None:
        return self._dialect.usage(self._dialect.joined(self._counting)) if self._counting else None

    @property
    def service_tier(self) -> str:
        """The service tier that it came at, or "" if it named none."""
        if self._tier_in is None:
            return ""
        return self._dialect.service_tier(self._dialect.joined([self._tier_in]))

    def is_complete(self) -> bool:
        return bool(self._latest) and self._dialect.is_complete(self._dialect.joined(self._latest))
