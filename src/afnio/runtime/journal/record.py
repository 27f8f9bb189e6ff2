"""Record: what a journal keeps of one call; and its row in the file."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from afnio.runtime.events import Usage

Kind = Literal["reply", "shared", "failed", "unknown"]

COMPRESSION: Final = 1
"""zlib's level; level 6 takes twice the time for a tenth less, on replies of a few kB."""

_NO_TOKENS: Final = Usage()
_MOST: Final = 10**12
"""Of one count; the file's integers end at 2^63."""

COLUMNS: Final = (
    "kind", "address", "scope", "key", "model", "purpose", "account", "reusable", "prompt_tokens",
    "completion_tokens", "cached_tokens", "reasoning_tokens", "attempts", "seconds", "created", "payload",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One call's reply, or an attempt that cost something and gave none.

    Attributes:
        address: where in the program the call was made, such as "epoch 2/step 5/3/17/forward".
        scope: the part of the address that names the scope, here "epoch 2/step 5".
        key: digest, in hex, of everything that can change the reply.
        account: base URL without credentials.
        payload: the encoded reply, opaque here; empty where there was none.
        usage: tokens as the provider counted them; of an "unknown" attempt, as they were reserved.
        attempts: how often the call was sent.
        seconds: what it took, from admission on.
        created: seconds since 1970 UTC.
        kind: "reply"; "shared" for a reply that another record of this journal counts; "failed" for an attempt
            that was paid and gave nothing; "unknown" for one that timed out on the wire and may have been
            paid. The first two answer a call, all but "shared" count as spent.
        reusable: whether another address may be answered with it: not a refusal, not a truncation.

    >>> Record(address="1/forward", scope="", key="c0ffee", model="m", purpose="forward").kind
    'reply'
    """

    address: str
    scope: str
    key: str
    model: str
    purpose: str
    account: str = ""
    payload: bytes = b""
    usage: Usage = _NO_TOKENS
    attempts: int = 1
    seconds: float = 0.0
    created: float = field(default_factory=time.time)
    kind: Kind = "reply"
    reusable: bool = True


def storable(record: Record) -> Record:
    """Return the record with counts that the file can hold, and sums of them too."""
    usage = record.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if all(0 <= count <= _MOST for count in counts):
        return record
    return replace(record, usage=Usage(*(min(max(count, 0), _MOST) for count in counts)))


def to_row(record: Record, kind: str, payload: bytes) -> tuple[Any, ...]:
    """Return the values of COLUMNS.

    Raises:
        ValueError: a text that is no Unicode, a key that is no hex number.
    """
    texts = (record.address, record.scope, record.model, record.purpose, record.account)
    "".join(texts).encode()  # raises here, where it concerns one record, and not in the transaction
    usage = record.usage
    return (
        kind, texts[0], texts[1], bytes.fromhex(record.key), *texts[2:], record.reusable, usage.prompt_tokens,
        usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens, record.attempts, record.seconds,
        record.created, zlib.compress(payload, COMPRESSION),
    )  # fmt: skip


def from_row(row: Sequence[Any]) -> Record:
    """Return the record of a reply's row.

    Raises:
        zlib.error: the payload is damaged.
    """
    return Record(
        kind=row[0],
        address=row[1],
        scope=row[2],
        key=row[3].hex(),
        model=row[4],
        purpose=row[5],
        account=row[6],
        reusable=bool(row[7]),
        usage=Usage(*row[8:12]),
        attempts=row[12],
        seconds=row[13],
        created=row[14],
        payload=zlib.decompress(row[15]),
    )
