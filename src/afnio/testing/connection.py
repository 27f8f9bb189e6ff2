"""One client connection of the provider: reads requests, writes replies in their order."""

from __future__ import annotations

import asyncio
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from afnio.testing.http import MAX_HEAD, HttpError, Request, RequestReader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
