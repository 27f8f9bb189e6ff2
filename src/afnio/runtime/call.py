"""Call: the path that every language model call takes, whoever makes it.

identify → journal? → reserve budget → single-flight → admission (priority, in flight, requests/min,
tokens/min) → attempt (deadline) → classify → retry | fail | record → settle budget and admission
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio

from afnio.runtime.active_journal import active_journal
from afnio.runtime.budget import Estimate, Price
from afnio.runtime.crowd import count_call
from afnio.runtime.events import CallReplayed, Usage, emit, listening
from afnio.runtime.flight import Overdue, share
from afnio.runtime.limits import Account
from afnio.runtime.priority import Urgency, current_priority
from afnio.runtime.runtime import Runtime
from afnio.runtime.trip import Solo, no_reply

if TYPE_CHECKING:
    from afnio.runtime.journal import Journal
    from afnio.runtime.journal.record import Kind

ATTEMPT_DEADLINE: Final = 600.0
"""Seconds that one attempt may take, from its first byte out to its last byte in."""


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...


R = TypeVar("R", bound="Reply")


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """What the engine does with replies: how they become bytes in a journal and come back."""

    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]
    reusable: Callable[[R], bool]
    """Whether another address may be answered with it: not a refusal, not a truncation."""
    recount: Callable[[R, Usage], R]
    """Returns the reply with other counts of tokens."""


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One language model call: who asks whom for what.

    Attributes:
        address: where in the program it was launched: scope path, launch, part, lane, purpose.
        scope: the scope path alone.
        key: digest of everything that can change the reply.
        plain_key: the key as journals of format 1 have it, without what the client adds to the request; None
            where it adds nothing.
        deterministic: whether the caller asked for temperature 0, so that equal calls may share a reply.
        attempt: sends it once; raises a `TransientModelError` where another attempt may help.
        depth: how many launches had to end before it could be made; deeper calls go first.
        prompt_tokens: what it sends, counted or estimated.
        max_output: tokens that its reply may have at most, where it says.
        price: what its tokens cost, None where nobody says.
        site: where the program makes calls like it; their replies are taken to be alike in length.
        request: what is asked, for events.
        node, lane: the launch and the sample that it is made for, for events.
        count: told the purpose and the usage of a reply that was paid for; once for a reply that calls with
            an equal `count` share.
    """

    address: str
    scope: str
    key: str
    deterministic: bool
    codec: Codec[R]
    account: Account
    model: str
    purpose: str
    attempt: Callable[[], Awaitable[R]]
    deadline: float = ATTEMPT_DEADLINE
    urgency: Urgency = field(default_factory=lambda: Urgency(current_priority()))
    depth: int = 0
    prompt_tokens: int = 0
    max_output: int | None = None
    price: Price | None = None
    site: Hashable = None
    request: Any = None
    node: str = ""
    lane: int | None = None
    plain_key: str | None = None
    count: Callable[[str, Usage], object] | None = None

    @property
    def estimate(self) -> Estimate:
        """What an attempt may use up, for budgets."""
        return Estimate(
            self.model, self.account.url, self.purpose, self.prompt_tokens, self.max_output, self.price
        )


async def perform(runtime: Runtime, call: Call[R]) -> R:
    """Carry `call` out, or have it answered by the journal or an equal call; on the runtime's loop.

    Once it returns, the reply is on disk if there is a journal: what was acknowledged is not lost.

    Raises:
        ModelError: when it failed for good or its attempts are used up.
        BudgetExceeded: when a budget of its context leaves no room, or its time is over.
        JournalError: when the journal can't record any more, so that nothing new is sent.
    """
    journal = active_journal.get()
    if journal is not None:
        record = journal.take(call.address, call.key, call.scope, call.plain_key)
        if record is not None:
            known = call.codec.decode(record.payload)
            count_call(waits=True)
            if listening():
                about = (call.address, call.account.url, call.model, call.purpose)
                emit(CallReplayed(*about, call.request, known, call.node, call.lane))
            return known
        if journal.broken is not None:
            raise journal.broken
    started = time.monotonic()
    failed = None
    if call.deterministic or (journal is not None and journal.mode == "reuse"):
        try:
            return await share(runtime, call, journal)
        except Overdue:
            failed = no_reply(call, call.deadline)
    reply = await Solo(runtime, call).send(failed)
    if call.count is not None:
        call.count(call.purpose, reply.usage)
    if journal is not None:
        await record_reply(runtime, journal, call, reply, time.monotonic() - started).wait()
    return reply


def record_reply(
    runtime: Runtime, journal: Journal, call: Call[R], reply: R, seconds: float, kind: Kind = "reply"
) -> anyio.Event:
    """Have a reply recorded; return what is set once it is on disk, or can't be recorded."""
    from afnio.runtime.journal import Record

    record = Record(
        address=call.address,
        scope=call.scope,
        key=call.key,
        model=call.model,
        purpose=call.purpose,
        account=call.account.url,
        usage=reply.usage,
        seconds=seconds,
        kind=kind,
        reusable=call.codec.reusable(reply),
    )
    written = anyio.Event()
    journal.append(record, lambda error: runtime.post(written.set), payload=lambda: call.codec.encode(reply))
    return written
