"""ReplyReader: the body of a reply, within a size and without long silences."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, final

from afnio.errors import FinalModelError, TransientModelError
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

BETWEEN_BYTES: Final = 60.0
"""Seconds without a byte after which a reply that has begun is given up.

No such deadline holds before a reply begins, as reasoning models are silent for minutes.
"""
MAX_REPLY: Final = 64 << 20
"""Bytes of a reply at most, decompressed."""
MAX_ERROR: Final = 1 << 20
"""Bytes that are read of an error's body, whose start says what is wrong."""
LARGE: Final = 1 << 20
"""Bytes from which on a reply is a large one."""
LARGE_AT_ONCE: Final = 4
"""Large replies that are read at the same time, so that a burst of them doesn't fill the memory."""


@final
class ReplyReader:
    """Reads the replies of one account."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @classmethod
    def shared(cls, account: Account) -> ReplyReader:
        return current_runtime().resource((cls, account), cls)

    async def read(self, read: Callable[[], Awaitable[bytes]], status: int, most: int, url: str) -> bytes:
        """Return what `read` returns until it returns nothing; of an error's body only the start.

        Raises:
            TransientModelError: if nothing comes for too long.
            FinalModelError: if the reply has more than `most` bytes.
        """
        most = most if status == 200 else min(most, MAX_ERROR)
        pieces: list[bytes] = []
        size, holding = 0, False
        try:
            while piece := await _in_time(read, url):
                size += len(piece)
                if size > most:
                    if status != 200:
                        break
                    raise FinalModelError(
                        f"{url} sent a reply of more than {most:,} bytes; pass max_reply_bytes=… to the client if "
                        "its replies may be that long",
                        status=status,
                    )
                pieces.append(piece)
                if size > LARGE:
                    if not holding:
                        await self._large.acquire()
                        holding = True
                    await asyncio.sleep(
                        0
                    )  # the next piece may be there already, and takes time to decompress
            return b"".join(pieces)
        finally:
            pieces.clear()  # the frame, and what it holds, lives on in the traceback of an error
            if holding:
                self._large.release()

    async def aclose(self) -> None:
        return


async def _in_time(read: Callable[[], Awaitable[bytes]], url: str) -> bytes:
    try:
        async with asyncio.timeout(BETWEEN_BYTES):
            return await read()
    except TimeoutError as error:
        raise TransientModelError(
            f"{url} fell silent in the middle of a reply, for {BETWEEN_BYTES:g} s"
        ) from error
