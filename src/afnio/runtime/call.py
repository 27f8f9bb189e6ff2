"""Call: the path that every language model call takes, whoever makes it.

identify → journal? → single-flight → reserve budget → admission (priority, in flight, requests/min,
tokens/min) → attempt (deadline) → classify → retry | fail | record → settle budget and admission
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Protocol, TypeVar

import anyio
from tenacity import RetryCallState

from afnio.errors import ModelError, TransientModelError
from afnio.runtime.active_journal import active_journal
from afnio.runtime.admission import admitter
from afnio.runtime.budget import Estimate, Price, Reservation, reservation_of
from afnio.runtime.budget.price import cost
from afnio.runtime.crowd import count_call
from afnio.runtime.events import CallEnded, CallReplayed, CallRetried, Usage, emit, listening
from afnio.runtime.flight import share
from afnio.runtime.limits import Account
from afnio.runtime.output_estimate import DEFAULT_OUTPUT
from afnio.runtime.priority import Urgency, current_priority
from afnio.runtime.retry import retrying
from afnio.runtime.runtime import Runtime

if TYPE_CHECKING:
    from afnio.runtime.journal import Journal

ATTEMPT_DEADLINE: Final = 600.0
"""Seconds that one attempt may take, from its first byte out to its last byte in."""


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...


R = TypeVar("R", bound=Reply)


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """How replies become bytes in a journal and come back."""

    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]
    reusable: Callable[[R], bool]
    """Whether another address may be answered with it: not a refusal, not a truncation."""


class Answer(NamedTuple, Generic[R]):
    """A reply, and whether it was paid for here or came from the journal or from an equal call."""

    reply: R
    paid: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One language model call: who asks whom for what.

    Attributes:
        address: where in the program it was launched: scope path, launch, part, lane, purpose.
        scope: the scope path alone.
        key: digest of everything that can change the reply.
        deterministic: whether the caller asked for temperature 0, so that equal calls may share a reply.
        attempt: sends it once; raises a `TransientModelError` where another attempt may help.
        depth: how many launches had to end before it could be made; deeper calls go first.
        prompt_tokens: what it sends, counted or estimated.
        max_output: tokens that its reply may have at most, where it says.
        price: what its tokens cost, None where nobody says.
        site: where the program makes calls like it; their replies are taken to be alike in length.
        request: what is asked, for events.
        node, lane: the launch and the sample that it is made for, for events.
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

    @property
    def estimate(self) -> Estimate:
        """What an attempt may use up, for budgets."""
        return Estimate(
            self.model, self.account.url, self.purpose, self.prompt_tokens, self.max_output, self.price
        )


async def perform(runtime: Runtime, call: Call[R]) -> Answer[R]:
    """Carry `call` out, or have it answered by the journal or an equal call; on the runtime's loop.

    Once it returns, the reply is on disk if there is a journal: what was acknowledged is not lost.

    Raises:
        ModelError: when it failed for good or its attempts are used up.
        JournalError: when the journal can't record any more, so that nothing new is sent.
    """
    journal = active_journal.get()
    if journal is None:
        return await _share_or_send(runtime, call, shared=call.deterministic)
    record = journal.take(call.address, call.key, call.scope)
    if record is not None:
        known = call.codec.decode(record.payload)
        count_call(waits=True)
        if listening():
            about = (call.address, call.account.url, call.model, call.purpose)
            emit(CallReplayed(*about, call.request, known, call.node, call.lane))
        return Answer(known, False)
    if journal.broken is not None:
        raise journal.broken
    started = time.monotonic()
    answer = await _share_or_send(runtime, call, shared=call.deterministic or journal.mode == "reuse")
    await _record(runtime, journal, call, answer, time.monotonic() - started)
    return answer


async def _share_or_send(runtime: Runtime, call: Call[R], *, shared: bool) -> Answer[R]:
    if not shared:
        return Answer(await _send(runtime, call), True)
    key = (call.account, call.key)
    reply, first = await share(runtime, key, call.urgency, lambda: _send(runtime, call))
    return Answer(reply, first)


async def _record(
    runtime: Runtime, journal: Journal, call: Call[R], answer: Answer[R], seconds: float
) -> None:
    """Wait until the reply is on disk; one that can't be recorded reaches its waiter all the same."""
    from afnio.runtime.journal import Record

    reply = answer.reply
    record = Record(
        address=call.address,
        scope=call.scope,
        key=call.key,
        model=call.model,
        purpose=call.purpose,
        account=call.account.url,
        usage=reply.usage,
        seconds=seconds,
        kind="reply" if answer.paid else "shared",
        reusable=call.codec.reusable(reply),
    )
    written = anyio.Event()
    journal.append(record, lambda error: runtime.post(written.set), payload=lambda: call.codec.encode(reply))
    await written.wait()


def _note_unknown(call: Call[R]) -> None:
    """Have the journal's ledger count an attempt that nobody knows the end of, at what it may have used."""
    journal = active_journal.get()
    if journal is None or journal.broken is not None:
        return
    from afnio.runtime.journal import Record

    usage = Usage(call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    record = Record(
        address=call.address, scope=call.scope, key=call.key, model=call.model, purpose=call.purpose,
        account=call.account.url, usage=usage, kind="unknown", reusable=False,
    )  # fmt: skip
    journal.append(record, lambda error: None)


async def _send(runtime: Runtime, call: Call[R]) -> R:
    """Send the call until it has a reply or has failed for good."""
    progress = _Progress(reservation_of(runtime, call.estimate))
    runtime.calls_open += 1
    try:
        with progress.reservation:
            try:
                reply = await _attempt(runtime, call, progress)
            except TransientModelError as error:
                reply = await _again(runtime, call, progress, error)
    except BaseException as error:
        if progress.attempts > 1 and isinstance(error, ModelError):
            error.add_note(f"after {progress.attempts} attempts in {progress.seconds:.1f} s")
        _tell_end(call, progress, None, f"{type(error).__name__}: {error}")
        raise
    finally:
        runtime.calls_open -= 1
    _tell_end(call, progress, reply, None)
    return reply


class _Progress:
    """How often a call was tried, for how long, and since when."""

    __slots__ = ("_started", "attempts", "last", "on_wire", "reservation")

    def __init__(self, reservation: Reservation) -> None:
        self.reservation = reservation
        self.attempts = 0
        self.on_wire = 0.0
        self.last = 0.0  # of it, the last attempt
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started


async def _again(runtime: Runtime, call: Call[R], progress: _Progress, first: TransientModelError) -> R:
    """Try until an attempt succeeds or they are used up.

    Only a call whose first attempt failed pays for tenacity, whose every use leaves a reference cycle.
    """
    granted = admitter(runtime, call.account).grant_retry
    async for attempt in retrying(lambda state: _tell_retry(call, progress, state), granted):
        with attempt:
            if attempt.retry_state.attempt_number == 1:
                raise first
            reply = await _attempt(runtime, call, progress)
    return reply


async def _attempt(runtime: Runtime, call: Call[R], progress: _Progress) -> R:
    """Make one attempt that counts: one that only probes a circuit and fails goes back to the queue."""
    first = progress.attempts == 0
    while True:
        await progress.reservation.hold()
        permit = admitter(runtime, call.account).permit(call, first=first)
        try:
            async with permit:
                reply = await _attempt_once(call, progress)
                permit.settle(reply.usage)
                return reply
        except TransientModelError:
            if not permit.spared:
                raise
            first = False


async def _attempt_once(call: Call[R], progress: _Progress) -> R:
    reservation = progress.reservation
    reservation.attempt()
    progress.attempts += 1
    sent = time.monotonic()
    try:
        with anyio.move_on_after(call.deadline):
            reply = await call.attempt()
            reservation.settle(reply.usage)
            return reply
    except ModelError as error:
        reservation.failed(error)
        raise
    except BaseException:  # cut off on the wire, where it may have been answered and paid for
        _note_unknown(call)
        raise
    finally:
        progress.last = time.monotonic() - sent
        progress.on_wire += progress.last
    reservation.unknown()
    _note_unknown(call)
    raise TransientModelError(f"{call.account.url} gave no reply within {call.deadline:g} s ({call.model})")


def _tell_retry(call: Call[R], progress: _Progress, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome is not None else None
    wait = state.next_action.sleep if state.next_action is not None else 0.0
    emit(
        CallRetried(
            call.address,
            call.account.url,
            call.model,
            call.purpose,
            state.attempt_number,
            str(error),
            wait,
            progress.last,
        )
    )


def _tell_end(call: Call[R], progress: _Progress, reply: R | None, error: str | None) -> None:
    if not listening():
        return
    usage = Usage() if reply is None else reply.usage
    emit(
        CallEnded(
            call.address,
            call.account.url,
            call.model,
            call.purpose,
            progress.attempts,
            progress.on_wire,
            progress.seconds - progress.on_wire,
            usage,
            error,
            call.request,
            reply,
            None if call.price is None or reply is None else cost(call.price, usage),
            call.node,
            call.lane,
        )
    )
