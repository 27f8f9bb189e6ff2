"""HTTP/1.1 requests, read from bytes in whatever pieces they arrive."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


MAX_HEAD: Final = 64 * 1024
MAX_BODY: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class Request:
    """One request as it was read; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    keep_alive: bool
    body: bytes = b""


class HttpError(Exception):
    """A request that can't be read: the connection answers `status` and closes."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RequestReader:
    r"""Turns bytes, in whatever pieces they arrive, into requests.

    >>> reader = RequestReader()
    >>> reader.feed(b"POST /a HTTP/1.1\r\ncontent-length: 2\r\n\r\nh")
    >>> reader.next() is None
    True
    >>> reader.feed(b"i")
    >>> reader.next().body
    b'hi'
    """

    def __init__(self, max_head: int = MAX_HEAD, max_body: int = MAX_BODY) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._buffer = bytearray()
        self._head: Request | None = None
        self._length: int | None = None  # None: the body comes in chunks
        self._chunks = bytearray()
        self.wants_continue = False

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Request | None:
        """Return the next whole request, or None while bytes are missing."""
        if self._head is None and not self._read_head():
            return None
        body = self._read_chunks() if self._length is None else self._read_body(self._length)
        if body is None:
            return None
        request, self._head = cast("Request", self._head), None
        request.body = body
        self.wants_continue = False
        return request

    def _read_head(self) -> bool:
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):  # some clients end a body with one line break too many
            del buffer[:2]
        end = buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(buffer)) > self._max_head:
            raise HttpError(431, f"The request head exceeds [{self._max_head}] bytes; send less.")
        if end < 0:
            return False
        self._head = _parse_head(buffer[:end].decode("latin-1"))
        del buffer[: end + 4]
        headers = self._head.headers
        self._length = _body_length(headers)
        if (self._length or 0) > self._max_body:
            raise self._too_large()
        self.wants_continue = headers.get("expect", "").lower() == "100-continue"
        return True

    def _read_body(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    def _read_chunks(self) -> bytes | None:
        buffer = self._buffer
        while (end := buffer.find(b"\r\n", 0, self._max_head)) >= 0:
            digits = bytes(buffer[:end]).split(b";")[0].strip()
            if not digits or digits.strip(b"0123456789abcdefABCDEF") or len(digits) > 16:
                raise HttpError(400, f"The chunk size [{digits!r}] is not a hexadecimal number.")
            size, start = int(digits, 16), end + 2
            if len(self._chunks) + size > self._max_body:
                raise self._too_large()
            if size == 0:
                return self._finish_chunks(start)
            if len(buffer) < start + size + 2:
                return None
            if buffer[start + size : start + size + 2] != b"\r\n":
                raise HttpError(400, f"A chunk of [{size}] bytes does not end with a line break.")
            self._chunks += buffer[start : start + size]
            del buffer[: start + size + 2]
        if len(buffer) >= self._max_head:
            raise HttpError(400, "A chunk has no size line; send chunks as RFC 9112 describes.")
        return None

    def _finish_chunks(self, start: int) -> bytes | None:
        # `start` is behind the zero chunk; trailers may follow up to an empty line.
        end = self._buffer.find(b"\r\n\r\n", start - 2)
        if end < 0:
            if len(self._buffer) > self._max_head:
                raise HttpError(431, f"The trailers exceed [{self._max_head}] bytes; send less.")
            return None
        del self._buffer[: end + 4]
        body, self._chunks = bytes(self._chunks), bytearray()
        return body

    def _too_large(self) -> HttpError:
        return HttpError(413, f"The request body exceeds [{self._max_body}] bytes; send less.")


def _parse_head(text: str) -> Request:
    line, *rows = text.split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise HttpError(400, f"The request line [{line[:80]}] is not HTTP/1.1.")
    headers: dict[str, str] = {}
    for row in rows:
        name, colon, value = row.partition(":")
        if not colon or not name or name != name.strip():
            raise HttpError(400, f"The header line [{row[:80]}] has no valid name.")
        name, value = name.lower(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    wish = headers.get("connection", "").lower()
    keep = "keep-alive" in wish if words[2] == "HTTP/1.0" else "close" not in wish
    return Request(words[0], words[1], headers, keep)


def _body_length(headers: Mapping[str, str]) -> int | None:
    length, coding = headers.get("content-length"), headers.get("transfer-encoding")
    if coding is not None:
        if length is not None:
            raise HttpError(400, "Content-Length and Transfer-Encoding exclude each other; send one.")
        if coding.lower() != "chunked":
            raise HttpError(501, f"The transfer coding [{coding}] is unknown; send chunked.")
        return None
    if length is None:
        return 0
    if not (length.isascii() and length.isdecimal()) or len(length) > 16:
        raise HttpError(400, f"The Content-Length [{length[:80]}] is not a number.")
    return int(length)


# One client connection of the provider: reads requests, writes replies in their order.


# How long a refused client may go on sending: closing at once would reset the connection and
# lose the reply.
LINGER: Final = 2.0
PIECES: Final = 20
"""How many pieces a dripping body comes in, at most."""
_REASONS: Final = {int(status): status.phrase for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client connection: hands over one request at a time, so that replies keep their order."""

    def __init__(
        self,
        handle: Callable[[Request, Connection], None],
        refuse: Callable[[HttpError, Connection], None],
        connections: set[Connection],
    ) -> None:
        self._handle = handle
        self._refuse = refuse
        self._connections = connections
        self._reader = RequestReader()
        self._transport: asyncio.Transport
        self._busy = False
        self._keep_alive = True
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self.on_done: Callable[[], None] | None = None
        """Called once when the request in hand is answered, or its client has gone."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._finish()
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._draining:
            return
        self._reader.feed(data)
        if not self._busy:
            self._advance()
        elif len(self._reader) > MAX_HEAD:
            self._transport.pause_reading()

    def later(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """Call back after `delay` seconds, unless the client goes before."""
        self._timer = asyncio.get_running_loop().call_later(delay, callback, *args)

    def send(
        self,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        missing: int = 0,
        drip: float = 0.0,
    ) -> None:
        """Answer the request in hand.

        Args:
            missing: how many bytes more than there are the reply announces; it then ends early.
            drip: seconds over which the body goes out, in pieces.
        """
        if missing:
            self._keep_alive = False
        fields = {"content-type": "application/json", **(headers or {})}
        if not self._keep_alive:
            fields["connection"] = "close"
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        reason = _REASONS.get(status, "Status")
        length = len(body) + missing
        head = f"HTTP/1.1 {status} {reason}\r\n{lines}content-length: {length}\r\n\r\n"
        if drip > 0:
            self._transport.write(head.encode("latin-1"))
            size = -(-len(body) // PIECES) or 1
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            self._drip(pieces, drip / (len(pieces) or 1))
        else:
            self._transport.write(head.encode("latin-1") + body)
            self._end_reply()

    def _drip(self, pieces: list[bytes], pause: float) -> None:
        if pieces:
            self._transport.write(pieces[0])
            self.later(pause, self._drip, pieces[1:], pause)
        else:
            self._end_reply()

    def _end_reply(self) -> None:
        self._finish()
        if not self._keep_alive:
            if not self._draining:
                self._transport.close()
            return
        self._busy = False
        if len(self._reader):
            self._transport.resume_reading()
            asyncio.get_running_loop().call_soon(self._advance)

    def reset(self) -> None:
        """Break the connection with a TCP reset, as a crashing server does."""
        peer = self._transport.get_extra_info("socket")
        if peer is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._transport.abort()

    def _advance(self) -> None:
        if self._busy or self._transport.is_closing():
            return
        try:
            request = self._reader.next()
        except HttpError as error:
            self._busy = self._draining = True
            self._keep_alive = False
            self._refuse(error, self)
            self._transport.write_eof()
            self.later(LINGER, self._transport.abort)
            return
        if request is not None:
            self._busy = True
            self._keep_alive = request.keep_alive
            self._handle(request, self)
        elif self._reader.wants_continue:
            self._reader.wants_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _finish(self) -> None:
        callback, self.on_done = self.on_done, None
        if callback is not None:
            callback()
