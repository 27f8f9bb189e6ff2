"""Matching: which record answers a call.

*Resume* repeats a run: a call gets the reply that its own address got, if it asks the same. Where the
program has changed, the rest of the scope takes what it asked before, wherever in the scope that was.
*Reuse* is a cache across runs: the n-th use of a request in a run gets the n-th reply on record.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, final

from afnio.runtime.journal.reader import Reader
from afnio.runtime.journal.record import Record

_NONE_LEFT: Final = array("q")


@dataclass(frozen=True, slots=True)
class ProgramChanged:
    """An address asks for something else than it did when the journal was written.

    Attributes:
        recorded: key of the request on record.
        asked: key of the request made now.
    """

    address: str
    scope: str
    recorded: str
    asked: str

    def __str__(self) -> str:
        return (
            f"The program has changed: at [{self.address}] it made the request [{self.recorded[:12]}], and now "
            f"makes [{self.asked[:12]}]; from here on this scope takes recorded replies to equal requests."
        )


class Matching(Protocol):
    """Chooses among the records that were there when the journal was opened; from one thread."""

    def take(self, address: str, key: bytes, scope: str) -> Record | None: ...


@final
class Resume:
    """Answers an address with its own record, each record once.

    Of several records of one address and key the newest session's goes first: a changed program left its
    own behind, and is resumed from them. `moved(address, scope, id, record)` is called for a reply that
    another address gave up, to record that this address had it.
    """

    def __init__(
        self,
        reader: Reader,
        changed: Callable[[ProgramChanged], object],
        moved: Callable[[str, str, int, Record], object],
    ) -> None:
        self._reader = reader
        self._used = bytearray(reader.last + 1)
        self._tell_changed = changed
        self._tell_moved = moved
        self._changed: set[str] = set()
        self._left: dict[tuple[str, bytes], array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        on_record = self._reader.at(address)
        same = [found for found in on_record if found.key == key]
        for found in same:
            if not self._used[found.reply]:
                record = self._reader.record(found)
                self._used[found.reply] = True
                return record
        if on_record and not same and scope not in self._changed:
            self._changed.add(scope)
            self._tell_changed(ProgramChanged(address, scope, on_record[0].key.hex(), key.hex()))
        return self._take_moved(address, key, scope) if scope in self._changed else None

    def _take_moved(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get((scope, key))
        if left is None:
            left = self._left[scope, key] = _stack(self._reader.replies(key, scope))
        while left:
            number = left.pop()
            if not self._used[number]:
                record = self._reader.by_id(number)
                self._used[number] = True
                self._tell_moved(address, scope, number, record)
                return record
        return None


@final
class Reuse:
    """Answers the n-th use of a key with the n-th reusable reply to it, whatever run that is of."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._left: dict[bytes, array[int]] = {}

    def take(self, address: str, key: bytes, scope: str) -> Record | None:
        left = self._left.get(key)
        if left is None:
            left = _stack(self._reader.replies(key))
            if not left:
                return None
        record = self._reader.by_id(left.pop()) if left else None
        self._left[key] = left or _NONE_LEFT
        return record


def _stack(numbers: list[int]) -> array[int]:
    return array("q", reversed(numbers))
