"""SDK bodies: bounds on what the SDK's transport reads and decompresses at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

PIECE: Final = 8 << 10
"""Bytes that are decompressed at a time, to a thousand times as many at the most."""
MAX_ERROR: Final = 16 << 10
"""Bytes that are read of an error's body, which the SDK reads whole."""
RAW: Final = "X-Stainless-Raw-Response"
"""The header by which the SDK is told to leave a body unread; Afnio's requests have it."""


def bound_bodies(client: Any) -> None:
    """Have an `httpx2.AsyncClient` read the replies to Afnio's requests, and no others, within the bounds."""
    import httpx2

    if isinstance(client, httpx2.AsyncClient):
        hooks = client.event_hooks["response"]
        if _bound not in hooks:
            hooks.append(_bound)


async def _bound(response: Any) -> None:
    if response.request.headers.get(RAW) == "stream":
        response.stream = _bounded(response.stream, None if response.is_success else MAX_ERROR)


def _bounded(stream: Any, most: int | None) -> Any:
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                for start in range(0, len(chunk), PIECE):
                    piece = chunk[start : start + PIECE]
                    yield piece
                    size += len(piece)
                    if most is not None and size >= most:
                        return

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()
