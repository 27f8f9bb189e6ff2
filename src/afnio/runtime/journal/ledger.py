"""Ledger: what was spent, per purpose, model and account."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from afnio.runtime.events import Usage
from afnio.runtime.journal.record import Record

NUMBERS: Final = (
    "calls", "failed", "unknown", "prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens",
    "reserved_prompt_tokens", "reserved_completion_tokens",
)  # fmt: skip

_NO_TOKENS: Final = Usage()
_PLACES: Final = ", ".join("?" * (3 + len(NUMBERS)))
_SUMS: Final = ", ".join(f"{name} = {name} + excluded.{name}" for name in NUMBERS)

ADD: Final = f"INSERT INTO ledger VALUES ({_PLACES}) ON CONFLICT DO UPDATE SET {_SUMS}"  # noqa: S608 - constants
READ: Final = f"SELECT purpose, model, account, {', '.join(NUMBERS)} FROM ledger"  # noqa: S608 - constants


class Item(NamedTuple):
    """What the ledger tells apart."""

    purpose: str
    model: str
    account: str


@dataclass(frozen=True, slots=True)
class Spent:
    """A sum over calls.

    Attributes:
        calls: those that got a reply.
        failed: attempts that were paid and gave nothing.
        unknown: attempts that timed out on the wire, paid or not.
        usage: tokens of the calls and the failed attempts, as the provider counted them.
        reserved: tokens that the unknown attempts may have used at most.
    """

    calls: int = 0
    failed: int = 0
    unknown: int = 0
    usage: Usage = _NO_TOKENS
    reserved: Usage = _NO_TOKENS

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.calls + other.calls,
            self.failed + other.failed,
            self.unknown + other.unknown,
            self.usage + other.usage,
            self.reserved + other.reserved,
        )


def of(record: Record) -> Spent:
    """Return what one record adds."""
    if record.kind == "unknown":
        return Spent(unknown=1, reserved=record.usage)
    return Spent(calls=record.kind == "reply", failed=record.kind == "failed", usage=record.usage)


def total(records: Iterable[Record]) -> dict[Item, Spent]:
    """Add records up."""
    sums: dict[Item, Spent] = {}
    for record in records:
        item = Item(record.purpose, record.model, record.account)
        sums[item] = sums.get(item, Spent()) + of(record)
    return sums


def read(connection: sqlite3.Connection) -> dict[Item, Spent]:
    """Return what the file says was spent so far."""
    return {
        Item(*row[:3]): Spent(row[3], row[4], row[5], Usage(*row[6:10]), Usage(*row[10:12]))
        for row in connection.execute(READ).fetchall()
    }


def add(connection: sqlite3.Connection, sums: Mapping[Item, Spent]) -> None:
    """Add sums to the file's, in the caller's transaction."""
    for item, spent in sums.items():
        usage, reserved = spent.usage, spent.reserved
        connection.execute(
            ADD,
            (
                *item, spent.calls, spent.failed, spent.unknown, usage.prompt_tokens, usage.completion_tokens,
                usage.cached_tokens, usage.reasoning_tokens, reserved.prompt_tokens,
                reserved.completion_tokens,
            ),
        )  # fmt: skip
