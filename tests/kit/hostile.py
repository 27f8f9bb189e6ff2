"""A server that answers in every way that servers and what stands before them get wrong."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any, Final, Literal, Self, final

PACE: Final = 0.01
"""Seconds between the pieces of a reply that drips."""
MIB: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer.

    Args:
        sent: what is sent first.
        then: what happens to the connection.
        pieces: what is sent afterwards, one after the other, until the client has gone.
    """

    sent: bytes = b""
    then: Literal["keep", "close", "reset", "hang"] = "keep"
    pieces: Iterable[bytes] = ()


def completion(content: Any = "ok", **more: Any) -> dict[str, Any]:
    """Return a completion as it should be."""
    message = {"role": "assistant", "content": content}
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **more}


def encoded(content: Any = "ok", **more: Any) -> bytes:
    return json.dumps(completion(content, **more)).encode()


def reply(
    body: bytes | None = None,
    status: str = "200 OK",
    headers: str = "",
    *,
    kind: str = "application/json",
    version: str = "1.1",
    length: int | None = -1,
) -> bytes:
    """Return the bytes of a reply; `length` is what it claims, by default the truth."""
    body = encoded() if body is None else body
    if length is not None:
        headers += f"content-length: {len(body) if length == -1 else length}\r\n"
    return f"HTTP/{version} {status}\r\ncontent-type: {kind}\r\n{headers}\r\n".encode("latin-1") + body


def refusal(status: str = "200 OK", headers: str = "", **error: Any) -> bytes:
    return reply(json.dumps({"error": {"message": "refused", **error}}).encode(), status, headers)


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(map(chunk, pieces)) + end
    return reply(body, headers="transfer-encoding: chunked\r\n", length=None)


@cache
def bomb(mib: int, wbits: int = 31) -> bytes:
    """Return so many MiB of zeros in a thousandth of the size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(mib)) + packer.flush()


def forever(piece: bytes) -> Iterator[bytes]:
    while True:
        yield piece


def numbered() -> Iterator[bytes]:
    number = 0
    while True:
        number += 1
        yield b"x-%d: y\r\n" % number


@final
class HostileServer:
    """Answers each request in the way that the first segment of its path names.

    >>> HostileServer({"good": Way(reply())}).seen["good"]
    0
    """

    def __init__(self, ways: dict[str, Way]) -> None:
        self._ways = ways
        self.seen: Counter[str] = Counter()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()
        while self._writers:
            await asyncio.sleep(0)

    def url(self, way: str) -> str:
        return f"http://127.0.0.1:{self.port}/{way}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)", head)
        await reader.readexactly(int(length[1]) if length else 0)
        name = head.split(b" ")[1].decode().split("/")[1]
        self.seen[name] += 1
        way = self._ways[name]
        writer.write(way.sent)
        await writer.drain()
        for piece in way.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(PACE)
        if way.then == "hang":
            await reader.read()
        elif way.then == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return way.then == "keep"
