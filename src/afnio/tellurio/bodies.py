"""Bodies: messages and replies in the store, each once in a run, as prompts are long and repeat."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections import OrderedDict
from typing import Final

PACKED_FROM: Final = 256
"""Bytes from which a body is compressed."""
KEPT: Final = 20_000
"""Bodies whose numbers are remembered; an older one is looked up."""

FIND: Final = "SELECT id FROM bodies WHERE run_id = ? AND digest = ?"
INSERT: Final = "INSERT OR IGNORE INTO bodies (run_id, digest, packed, body) VALUES (?, ?, ?, ?)"


class Bodies:
    """The bodies of one run, in the writing thread."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def number(self, connection: sqlite3.Connection, text: str) -> int:
        """Return the row that holds `text`, made if there is none."""
        body = text.encode()
        digest = hashlib.blake2b(body, digest_size=16).digest()
        known = self._numbers.get(digest)
        if known is not None:
            self._numbers.move_to_end(digest)
            return known
        packed = len(body) >= PACKED_FROM
        stored = zlib.compress(body, 1) if packed else body
        made = connection.execute(INSERT, (self._run_id, digest, packed, stored))
        if made.rowcount:
            number = made.lastrowid or 0
        else:
            (number,) = connection.execute(FIND, (self._run_id, digest)).fetchone()
        self._numbers[digest] = number
        if len(self._numbers) > KEPT:
            self._numbers.popitem(last=False)
        return number


def unpacked(packed: int, body: bytes) -> str:
    """The JSON of a row of `bodies`.

    >>> unpacked(1, zlib.compress(b'"hello"'))
    '"hello"'
    """
    return (zlib.decompress(body) if packed else body).decode()
