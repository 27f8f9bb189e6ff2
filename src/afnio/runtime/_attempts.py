"""Attempts: what a call is, how it is sent until it is answered, and how each attempt ends.

A `Trip` is a call under way, for one caller (`Solo` in `_call.py`) or for several (`Flight` in `_flight.py`). `send`
repeats its attempts until one is answered or they are used up.

Each attempt waits twice. It waits for money in the line of a budget (`_budget.py`), then for its turn in the queue of
the account (`_admission.py`). The orders of the two differ, so they can't be one wait. How the attempt *ended* is
decided once, by the table `AttemptOutcome`. Budgets, the account's limits and its health all settle by the same row.

What happens on a 429, for example: `AttemptOutcome.LIMITED` charges no money and gives the request and its tokens back.
Admission pauses the account and finds its pace (`Refusals` in `_retries.py`). `retries` sends the call again, for an
hour at most, and counts none of that as a failed attempt.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from afnio.errors import JournalError, ModelError, RateLimitedError, TransientModelError
from afnio.runtime._admission import Sign, Tokens, admitter, current_replica
from afnio.runtime._budget import Charge
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import DEFAULT_OUTPUT, Account
from afnio.runtime._loop import Deadline, Signal
from afnio.runtime._retries import AccountHealth
from afnio.runtime._settings import CallPriority, current_priority
from afnio.runtime._spending import AttemptEstimate, Price, cost, possible_usage
from afnio.runtime.events import CallEnded, CallRetried, Usage

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from afnio.runtime._journal import Journal
    from afnio.runtime._journal_file import Kind
    from afnio.runtime._limits import RateLimits


ATTEMPT_DEADLINE: Final = 600.0
"""Seconds that one attempt may take, from its first byte out to its last byte in."""


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...
    @property
    def limits(self) -> RateLimits | None: ...


R = TypeVar("R", bound="Reply")


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One language model call.

    Attributes:
        address: where in the program it was launched: scope path, launch, part, lane, purpose.
        scope: the scope path alone.
        key: digest of everything that can change the reply; empty if there is no journal and it isn't deterministic.
        plain_key: the key in journals of format 1, which left out what the client adds to requests; None if it
            adds nothing.
        deterministic: True if the temperature is 0, so that equal calls may share a reply.
        attempt: sends it once; raises a `TransientModelError` if another attempt may help.
        depth: how many launches had to end before it could be made; deeper calls go first.
        prompt_tokens: of the request, counted or estimated.
        max_output: the tokens that the reply may have, or None without a limit.
        price: of its tokens, or None if unknown.
        site: the place in the program; replies to calls of one site are assumed to be alike in length.
        prefix: hash of the prompt's beginning, for groups of replicas.
        request: for events.
        node, lane: the launch and the sample that it is made for, for events.
        alone: True if it never shares its reply with equal calls: its reader needs a stream as it arrives.
        count: called with the purpose and the usage of a reply that was paid for, and once for calls that share a
            reply if their `count` is equal.
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
    priority: CallPriority = field(default_factory=lambda: CallPriority(current_priority()))
    depth: int = 0
    prompt_tokens: int = 0
    max_output: int | None = None
    price: Price | None = None
    site: Hashable = None
    prefix: int = 0
    request: Any = None
    node: str = ""
    lane: int | None = None
    plain_key: str | None = None
    count: Callable[[str, Usage], object] | None = None
    alone: bool = False

    @property
    def estimate(self) -> AttemptEstimate:
        """The most that an attempt may use up, for budgets."""
        return AttemptEstimate(
            self.model, self.account.url, self.purpose, self.prompt_tokens, self.max_output, self.price
        )


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """How replies become bytes in a journal and come back."""

    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]
    reusable: Callable[[R], bool]
    """Returns True if the reply may answer another address: it wasn't refused or cut off."""
    recount: Callable[[R, Usage], R]
    """Returns the reply with other counts of tokens."""


def record_reply(
    runtime: Runtime,
    journal: Journal,
    call: Call[R],
    url: str,
    reply: R,
    seconds: float,
    kind: Kind = "reply",
) -> Signal:
    """Record a reply. The signal that is returned comes once it is on disk, or the journal takes no more.

    It raises if this reply can't be recorded, and others can.
    """
    from afnio.runtime._journal_file import Record

    record = Record(
        address=call.address,
        scope=call.scope,
        key=call.key,
        model=call.model,
        purpose=call.purpose,
        account=url,
        usage=reply.usage,
        seconds=seconds,
        kind=kind,
        reusable=call.codec.reusable(reply),
    )
    written = Signal()

    def done(error: BaseException | None) -> None:
        # A full disk isn't this reply's fault: its caller gets it, and the next call raises.
        runtime.post(written.set, None if error is journal.broken else error)

    journal.append(record, done, payload=lambda: call.codec.encode(reply))
    return written


def note_unknown(journal: Journal, call: Call[Any], url: str) -> None:
    """Record an attempt whose end is unknown in a journal, at the most that it may have used."""
    if journal.broken is not None:
        return
    from afnio.runtime._journal_file import Record

    usage = Usage(call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    record = Record(
        address=call.address, scope=call.scope, key=call.key, model=call.model, purpose=call.purpose,
        account=url, usage=usage, kind="unknown", reusable=False,
    )  # fmt: skip
    with suppress(JournalError):  # closed meanwhile; the caller gets the error of its call
        journal.append(record, lambda error: None)


# How attempts end.


_UNSURE: Final = frozenset({408, 499, 502, 504, 524})
"""Statuses of a gateway that stopped waiting. The model behind it may have worked, and be paid for, all the same."""


@unique
class AttemptOutcome(Enum):
    """How an attempt ended, and what that means for everything that counts attempts.

    *Money* is for budgets. *Request* and *tokens* are for the account's limits: providers count most of what they let
    in, and nothing that they turn away. *Sign* is for the account's health: its circuit breaker, concurrency and pace.
    *Journal* is True if the attempt is recorded, so that a run that continues this one knows that it may have been
    paid for.
    """

    # fmt: off
    #           money           request  tokens        sign           journal
    REPLIED = (Charge.USED,     True,  Tokens.USED, Sign.ANSWERS,  False)
    LIMITED = (Charge.NOTHING,  False, Tokens.FREE, Sign.REFUSES,  False)  # 429; the whole account pauses
    REJECTED = (Charge.NOTHING, True,  Tokens.FREE, Sign.BY_ERROR, False)  # other 4xx; 429 without money left
    GAVE_UP = (Charge.RESERVE,  True,  Tokens.FREE, Sign.BY_ERROR, False)  # 408, 499
    FAILED = (Charge.NOTHING,   True,  Tokens.KEPT, Sign.BY_ERROR, False)  # 500, 503 and other 5xx
    UNKNOWN = (Charge.RESERVE,  True,  Tokens.KEPT, Sign.BY_ERROR, False)  # 502, 504, 524, a reset, an unusable 200
    NO_REPLY = (Charge.RESERVE, True,  Tokens.KEPT, Sign.BY_ERROR, True)   # the attempt's deadline passed
    CUT_OFF = (Charge.RESERVE,  True,  Tokens.KEPT, Sign.NOTHING,  True)   # cancelled on the wire
    UNSENT = (Charge.NOTHING,   False, Tokens.FREE, Sign.NOTHING,  False)  # a budget's time ran out in the queue
    # fmt: on

    def __init__(
        self, money: Charge, request_counts: bool, tokens: Tokens, sign: Sign, journaled: bool
    ) -> None:
        self.money = money
        self.request_counts = request_counts
        self.tokens = tokens
        self.sign = sign
        self.journaled = journaled

    @classmethod
    def of(cls, error: ModelError) -> AttemptOutcome:
        """Return the outcome of an attempt that raised `error`.

        >>> AttemptOutcome.of(ModelError("overloaded", status=503)).name
        'FAILED'
        """
        if isinstance(error, RateLimitedError):
            return cls.LIMITED
        status = error.status
        if status is None or status < 400:
            return cls.UNKNOWN
        if status in _UNSURE:
            return cls.GAVE_UP if status < 500 else cls.UNKNOWN
        return cls.REJECTED if status < 500 else cls.FAILED


# The attempts of one call.


class Trip(ABC, Generic[R]):
    """One call, from attempt to attempt. Subclasses know who waits and pays for it.

    Attributes:
        call: as admission sees it.
        attempts, on_wire: their number, and their seconds together.
        last: seconds of the last one.
        outcome: how the last one ended.
        replica: where the last one went, or None if the account is no group of replicas.
        failures, refused_since: see `Repeated` in `_retries.py`.
        known_failure: the error of an attempt that was already made; the next one raises it instead of sending.
        patience: seconds that the current attempt may take.
        wire: the deadline of the current attempt.
    """

    wire: Deadline

    def __init__(self, runtime: Runtime, call: Call[R]) -> None:
        self.runtime = runtime
        self.call = call
        self.attempts = 0
        self.on_wire = 0.0
        self.last = 0.0
        self.outcome = AttemptOutcome.UNSENT
        self.replica: Account | None = None
        self.failures = 0
        self.refused_since: float | None = None
        self.known_failure: TransientModelError | None = None
        self.patience = call.deadline
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def url(self) -> str:
        """The endpoint of the last attempt."""
        return self.call.account.url if self.replica is None else self.replica.url

    @abstractmethod
    async def hold(self) -> None:
        """Reserve money for the next attempt."""

    @abstractmethod
    def depart(self) -> None:
        """Count the attempt, because it is sent now, and set its deadline."""

    @property
    def health(self) -> AccountHealth:
        return admitter(self.runtime, self.call.account).health

    def attempt(self) -> Awaitable[R]:
        """Send the call once."""
        return self.call.attempt()

    @abstractmethod
    def settle(self, reply: R | None) -> None:
        """Charge the attempt to those who pay for it, as its outcome decides."""

    @abstractmethod
    def retry(self, state: RetryCallState) -> None:
        """Notify subscribers that there will be another attempt."""

    @abstractmethod
    def end(self, reply: R | None, error: BaseException | None) -> None:
        """Notify subscribers how it ended."""


async def send(trip: Trip[R]) -> R:
    """Send a call until it has a reply or has failed for good."""
    trip.runtime.count_open(1)
    try:
        try:
            # The first attempt bypasses tenacity: it would cost 25 to 35 µs a call, a quarter of a call's CPU time.
            reply = await _attempt(trip)
        except TransientModelError as error:
            trip.known_failure = error
            reply = await trip.health.retrying(_attempt, trip)
    except BaseException as error:
        if trip.attempts > 1 and isinstance(error, ModelError):
            error.add_note(f"after {trip.attempts} attempts in {trip.seconds:.1f} s")
        trip.end(None, error)
        raise
    finally:
        trip.runtime.count_open(-1)
    trip.end(reply, None)
    return reply


async def _attempt(trip: Trip[R]) -> R:
    """Make one attempt that counts. A probe of an open circuit that fails doesn't: it goes back to the queue."""
    if trip.known_failure is not None:
        failed, trip.known_failure = trip.known_failure, None
        raise failed
    first = trip.attempts == 0
    while True:
        await trip.hold()
        account = admitter(trip.runtime, trip.call.account)
        permit = await account.enter(trip.call, first=first, last=trip.replica)
        trip.replica = permit.account
        trip.outcome = AttemptOutcome.UNSENT
        try:
            reply = await _send_once(trip)
        except BaseException as error:
            limits = error.limits if isinstance(error, ModelError) else None
            account.leave(permit, trip.outcome, limits=limits, error=error)
            if not permit.spared:
                raise
            first = False
        else:
            account.leave(permit, trip.outcome, usage=reply.usage, limits=reply.limits)
            return reply


async def _send_once(trip: Trip[R]) -> R:
    """Send the call, note the outcome, and charge it."""
    trip.depart()  # raises if a budget's time ran out in the queue
    trip.attempts += 1
    trip.outcome = AttemptOutcome.CUT_OFF  # until it is known how it ended
    reply: R | None = None
    sent = time.monotonic()
    try:
        async with trip.wire:
            reply = _counted(trip.call, await _at(trip.replica, trip.attempt))
            trip.outcome = AttemptOutcome.REPLIED
            return reply
    except ModelError as error:
        trip.outcome = AttemptOutcome.of(error)
        raise
    except TimeoutError:
        if not trip.wire.expired():  # the client's own
            raise
        trip.outcome = AttemptOutcome.NO_REPLY
        raise no_reply(trip.url, trip.call, trip.patience) from None
    finally:
        trip.settle(reply)
        trip.last = time.monotonic() - sent
        trip.on_wire += trip.last


async def _at(replica: Account | None, attempt: Callable[[], Awaitable[R]]) -> R:
    """Make an attempt at a replica."""
    if replica is None:
        return await attempt()
    token = current_replica.set(replica)
    try:
        return await attempt()
    finally:
        current_replica.reset(token)


def no_reply(url: str, call: Call[Any], seconds: float) -> TransientModelError:
    return TransientModelError(f"{url} gave no reply within {seconds:g} s ({call.model})")


def retried(call: Call[Any], trip: Trip[Any], state: RetryCallState) -> CallRetried:
    error = state.outcome.exception() if state.outcome is not None else None
    return CallRetried(
        call.address,
        trip.url,
        call.model,
        call.purpose,
        state.attempt_number,
        str(error),
        state.next_action.sleep if state.next_action is not None else 0.0,
        trip.last,
    )


def ended(call: Call[R], trip: Trip[R], reply: R | None, error: BaseException | None) -> CallEnded:
    usage = Usage() if reply is None else reply.usage
    return CallEnded(
        call.address,
        trip.url,
        call.model,
        call.purpose,
        trip.attempts,
        trip.on_wire,
        trip.seconds - trip.on_wire,
        usage,
        None if error is None else f"{type(error).__name__}: {error}",
        call.request,
        reply,
        None if call.price is None or reply is None else cost(call.price, usage),
        call.node,
        call.lane,
    )


_noted: Final[set[Account]] = set()


def _counted(call: Call[R], reply: R) -> R:
    """Return the reply with impossible token counts corrected, before budgets, journals and events see them."""
    usage = reply.usage
    possible = possible_usage(usage, call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    if possible is usage:
        return reply
    if possible != usage and call.account not in _noted:
        _noted.add(call.account)
        text = "%s reported an impossible token count (%s), which is counted as %s; this is said once"
        logging.getLogger("afnio").warning(text, call.account.url, usage, possible)
    return call.codec.recount(reply, possible)
