"""The connections of one account: opened a few at a time, and over TLS with a resumed session.

A launch of a thousand calls meets an empty pool. aiohttp would open a thousand connections at once: more than many
servers' accept queues hold, and more than the calls need, for the first of them end while the last still shake hands.
`Connections` therefore lets only `OPENING` calls at a time wait for a connection of their own. The others wait for
that or for a connection that another call gives back, whatever comes first. A pool that is warm, or smaller than
`OPENING`, never waits. If there is no connection and none can be opened, all that wait fail.

A full TLS handshake verifies a chain of certificates. `resuming_context` makes contexts whose connections offer the
server the session of an earlier one to the same host, which skips that (RFC 8446, section 2.2). Servers that don't
resume it do the full handshake instead.

asyncio allocates a buffer of 256 kB for each TLS connection. Nothing public makes it smaller, so it is left.
"""

from __future__ import annotations

import asyncio
import copy
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Final, final

import aiohttp

from afnio.models._forwarding import PROBES

if TYPE_CHECKING:
    from aiohttp import AddrInfoType
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace

# The number of connections opened at the same time.
#
# At 1 ms of CPU time for each handshake, more would only wait for the CPU, unless a handshake takes longer
# than 128 ms.
OPENING: Final = 128


@final
class Connections(aiohttp.TCPConnector):
    """An aiohttp connector that opens at most `OPENING` connections at the same time.

    Args:
        limit: the largest number of connections.
        keepalive_timeout: seconds until an idle connection is closed.
        tls: whether a context is needed: it reads all of the system's certificates, for some milliseconds.
    """

    def __init__(self, *, limit: int, keepalive_timeout: float, tls: bool) -> None:
        context = resuming_context() if tls else True
        super().__init__(
            limit=limit, keepalive_timeout=keepalive_timeout, ssl=context, socket_factory=probed_socket
        )
        # Connections that are open, and those that may be opened now, less the calls that have one or wait for one.
        self._spare = OPENING
        self._open: set[ResponseHandler] = set()
        self._queue: deque[asyncio.Future[None]] = deque()

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - as in aiohttp
    ) -> Connection:
        """Return an idle connection, or open one. It waits while too many are being opened."""
        if self._spare > 0:  # then the queue is empty
            self._spare -= 1
        else:
            await self._turn()
        try:
            connection = await super().connect(req, traces, timeout)
        except BaseException as error:
            if not self._open and isinstance(error, (aiohttp.ClientConnectorError, TimeoutError)):
                self._fail(error)
            self._add()
            raise
        protocol = connection.protocol
        if protocol is not None and protocol not in self._open:
            self._opened(protocol)
        connection.add_callback(self._add)
        return connection

    async def _turn(self) -> None:
        waiting = asyncio.get_running_loop().create_future()
        self._queue.append(waiting)
        try:
            await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled() and waiting.exception() is None:  # its turn had come
                self._add()
            raise

    def _add(self) -> None:
        """Let a call go on: a connection was given back or opened, or a call has given up."""
        self._spare += 1
        while self._spare > 0 and self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():  # or its call was cancelled
                self._spare -= 1
                waiting.set_result(None)

    def _fail(self, error: Exception) -> None:
        """End the wait of all calls. A host that drops packets would otherwise fail 128 of them every ten seconds."""
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done():
                waiting.set_exception(copy.copy(error))

    def _opened(self, protocol: ResponseHandler) -> None:
        closed = protocol.closed
        if closed is None:  # already lost: the call that got it will fail
            return

        def lost(closed: asyncio.Future[None]) -> None:
            if not closed.cancelled():
                closed.exception()  # or asyncio logs that it was never retrieved
            self._open.discard(protocol)
            self._spare -= 1

        self._open.add(protocol)
        closed.add_done_callback(lost)
        self._add()


def probed_socket(address: AddrInfoType) -> socket.socket:
    """Return a socket whose connection ends when its host is gone."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    for option in PROBES:
        made.setsockopt(*option)
    return made


def resuming_context() -> ssl.SSLContext:
    """Return the system's default context for clients, with sessions that are resumed.

    SSL_CERT_FILE and SSL_CERT_DIR replace the system's certificates, as with OpenSSL itself.
    """
    # A server sends its sessions after the handshake (TLS 1.3), so they are asked for when the next one starts.
    latest: dict[str | None, ssl.SSLObject] = {}
    sessions: dict[str | None, ssl.SSLSession] = {}

    class ResumingTls(ssl.SSLObject):
        _started = False

        def do_handshake(self) -> None:
            host = self.server_hostname
            if not self._started:  # asyncio calls this again for each message of the server
                self._started = True
                earlier = latest.get(host)
                session = None if earlier is None else earlier.session
                if session is not None and session.has_ticket:
                    sessions[host] = session
                if host in sessions:
                    self.session = sessions[host]
            super().do_handshake()
            latest[host] = self

    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = ResumingTls
    return context
