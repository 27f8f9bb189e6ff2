"""Calls: the one path that every language model call takes.

    journal → budget → admission → wire → outcome → retry, or reply → journal

`perform` asks the journal first; a recorded reply costs nothing. Lanes of one launch that ask the same at temperature
0 share one reply (`_share`). The others are sent (`_send`), attempt by attempt, until one is answered or they are used
up.

Each attempt waits twice. It waits for money in the line of a budget (`_budget.py`), then for its turn in the queue of
the account (`_admission.py`). The orders of the two differ, so they can't be one wait. How the attempt *ended* is
decided once, by the table `AttemptOutcome`. Budgets, the account's limits and its health all settle by the same row.

What happens on a 429, for example: `AttemptOutcome.LIMITED` charges no money and gives the request and its tokens back.
Admission pauses the account and finds its pace (`Refusals` in `_health.py`). The call waits for the end of the pause
without money and goes back to the queue, for an hour at most, and none of that counts as a failed attempt.
"""

from __future__ import annotations

import copy
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from enum import Enum, unique
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, final

import anyio

from afnio.errors import (
    FinalModelError,
    JournalError,
    ModelError,
    RateLimitedError,
    TierUnavailableError,
    TransientModelError,
)
from afnio.runtime._admission import Sign, Tokens, current_replica
from afnio.runtime._batch_api import Batched, LineOutcome, Rider, line_id
from afnio.runtime._budget import Charge, reservation_of, time_over
from afnio.runtime._control import run_gate
from afnio.runtime._health import ATTEMPTS, is_first_contact
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import DEFAULT_OUTPUT, Account
from afnio.runtime._loop import Cancelled, Signal, deadline_at, loop_time
from afnio.runtime._parcels import Depot
from afnio.runtime._replicas import admitter
from afnio.runtime._settings import Priority, current_priority
from afnio.runtime._spending import BATCH, FLEX, AttemptEstimate, Price, at_tier, cost, possible_usage
from afnio.runtime._waiting import active_journal
from afnio.runtime.events import CallEnded, CallReplayed, CallRetried, Usage, emit, listening

if TYPE_CHECKING:
    from tenacity import AsyncRetrying, RetryCallState

    from afnio.runtime._journal import Journal
    from afnio.runtime._journal_file import Kind, Record
    from afnio.runtime._limits import RateLimits

# Seconds that one attempt may take, from its first byte out to its last byte in.
ATTEMPT_DEADLINE: Final = 600.0
# The same at the service tier "flex", which is slower. OpenAI recommends 15 minutes.
FLEX_DEADLINE: Final = 900.0


def attempt_deadline(seconds: float, tier: object) -> float:
    """Return the deadline of an attempt at a service tier. A shorter one than the default is the user's own."""
    return max(seconds, FLEX_DEADLINE) if tier == FLEX and seconds >= ATTEMPT_DEADLINE else seconds


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...
    @property
    def limits(self) -> RateLimits | None: ...
    @property
    def service_tier(self) -> str: ...


R = TypeVar("R", bound="Reply")


async def perform(runtime: Runtime, call: Call[R]) -> R:
    """Make `call`, or answer it from the journal or by an equal call; on the runtime's loop.

    With a journal, the reply is on disk when this returns. A crash loses nothing that a caller has seen.

    Raises:
        ModelError: if it failed for good or its attempts are used up.
        BudgetExceeded: if it doesn't fit a budget of its context, the budget's time is over, or its run was stopped.
        JournalError: if the journal can't record any more; then nothing is sent.
    """
    journal = active_journal.get()
    if journal is not None:
        record = journal.take(call.address, call.key, call.scope)
        if record is not None:
            reply = call.codec.decode(record.payload)
            if call.shared is not None:
                call.shared.setdefault((call.account, call.key), SharedCall(reply))
            if listening():
                url = at_tier(call.account.url, reply.service_tier)
                about = (
                    call.address,
                    url,
                    call.model,
                    call.purpose,
                    call.request,
                    reply,
                    call.node,
                    call.lane,
                )
                emit(CallReplayed(*about, str(journal.path), record.seconds))
            return reply
        if journal.broken is not None:
            raise journal.broken
    if call.shared is not None:
        return await _share(Trip(runtime, call, journal), call.shared)
    trip = Trip(runtime, call, journal)
    try:
        reply = await _send(trip)
        await _record(trip, reply)
    finally:
        trip.settled()
    return reply


async def _share(trip: Trip[R], calls: dict[Hashable, SharedCall[Any]]) -> R:
    """Return the reply to a call that equal lanes of its launch make, too. The first of them sends it.

    They have one context, so the first one's budgets, deadline, priority and subscribers are those of all. Its error
    is the error of those that wait for it. If it is cancelled, the next one sends the call. A follower has a row of its
    own in the journal, without usage, so that its address is answered when the run is resumed.
    """
    key = (trip.call.account, trip.call.key)
    if trip.journal is not None and key not in calls:
        record = trip.journal.shared_reply(trip.call.key, trip.call.node)
        if record is not None:
            calls[key] = SharedCall(trip.call.codec.decode(record.payload))
    while (first := calls.get(key)) is not None:
        await first.ended.wait()
        if first.error is not None:
            try:
                raise _copied(first.error)
            finally:
                del first  # an error that can't be copied would lead from its traceback back to itself
        if first.reply is not None:
            await _record(trip, first.reply, "shared")
            return first.reply  # type: ignore[no-any-return]
    first = calls[key] = SharedCall()
    try:
        first.reply = reply = await _send(trip)
    except Exception as error:
        first.error = _copied(error)
        trip.settled()
        raise
    finally:
        if first.reply is None:
            del calls[key]  # a lane that asks later tries again
        first.ended.set()
        del first
    try:
        await _record(trip, reply)
    finally:
        trip.settled()
    return reply


async def _send(trip: Trip[R]) -> R:
    """Send a call until it has a reply, has failed for good, or a budget's time is over."""
    ends = trip.reservation.deadline
    trip.runtime.count_open(1)
    try:
        with trip.reservation:
            if trip.gate is None and ends == math.inf:
                reply = await _repeated(trip)
            else:
                with anyio.CancelScope(deadline=ends) as scope:
                    with nullcontext() if trip.gate is None else trip.gate.call(scope, trip.reservation):
                        reply = await _repeated(trip)
                if scope.cancelled_caught:
                    if trip.gate is not None:
                        trip.gate.check()
                    raise time_over(trip.reservation.budgets)
    except BaseException as error:
        if trip.attempts > 1 and isinstance(error, ModelError):
            error.add_note(f"after {trip.attempts} attempts in {trip.seconds:.1f} s")
        trip.ended(None, error)
        raise
    finally:
        trip.runtime.count_open(-1)
    trip.ended(reply, None)
    if trip.call.count is not None:
        trip.call.count(trip.call.purpose, reply.usage)
    return reply


async def _repeated(trip: Trip[R]) -> R:
    """Make attempts until one is answered. The first one bypasses tenacity, which would double this path (30 µs)."""
    try:
        return await _attempt(trip)
    except TransientModelError as error:
        failed = [error]

    async def again(trip: Trip[R]) -> R:
        if failed:  # tenacity's first attempt is the one that was made above
            raise failed.pop()
        return await _attempt(trip)

    return await retries()(again, trip)


async def _attempt(trip: Trip[R]) -> R:
    """Make one attempt: reserve its money, wait for its turn, send it, and settle with the account."""
    call, account = trip.call, trip.account
    if call.batched is not None and not trip.live:
        return await _by_parcel(trip, call.batched)
    if trip.gate is not None:
        await trip.gate.pass_through()
    await trip.reservation.hold()
    permit = await account.enter(call, first=trip.attempts == 0, last=trip.replica)
    trip.replica, trip.outcome = permit.account, AttemptOutcome.UNSENT
    try:
        reply = await _on_wire(trip)
    except BaseException as error:
        limits = error.limits if isinstance(error, ModelError) else None
        account.leave(permit, trip.outcome, limits=limits, error=error)
        trip.spared = permit.spared
        raise
    account.leave(permit, trip.outcome, usage=reply.usage, limits=reply.limits)
    return reply


async def _by_parcel(trip: Trip[R], batched: Batched[R]) -> R:
    """Let the call wait for a parcel that carries it out, and charge it; send it at once if none does so.

    A parcel is no request of its own, so it takes no turn in the account's queue. What it doesn't carry out is tried
    again here, and not by `retries`: a thousand lines that have expired must not use up the account's retry budget.
    """
    call, plan, reservation = trip.call, batched.plan, trip.reservation
    depot, ends = Depot.of(trip.runtime), loop_time() + plan.max_wait
    price = call.tier_prices.get(BATCH, call.price)
    estimate = replace(call.estimate, client=at_tier(call.account.url, BATCH), price=price)
    address = call.address if call.shared is None else call.node  # any lane may be the first in the next run
    ident = line_id(call.key, call.scope, address)
    for tries in range(1, plan.retries + 2):
        if trip.gate is not None:
            await trip.gate.pass_through()
        reservation.price_as(estimate)
        await reservation.hold()
        trip.rider = rider = Rider(ident, call.scope, batched, call.prompt_tokens, trip.depart, trip.keep)
        began = time.monotonic()
        try:
            outcome = await depot.carry(rider, ends, reached=trip.account.health.reached)
        except BaseException:
            if rider.unpaid and rider.sent:
                reservation.settle(Charge.NOTHING)
            raise
        finally:
            trip.last = time.monotonic() - began
            trip.on_wire += trip.last
        charge, reason = Charge.NOTHING, outcome.reason
        if outcome.kind == "answered":
            try:
                reply = _counted(call, batched.read(outcome.status, outcome.body))
            except ModelError as error:
                charge, reason, failed = AttemptOutcome.of(error).money, str(error), error
            else:
                reservation.learn(reply.usage)
                charge = Charge.NOTHING if rider.counted else Charge.USED
                reservation.settle(charge, reply.usage, actual=call.charged(reply))
                return reply
        elif outcome.kind in ("lost", "late"):
            charge = Charge.RESERVE
        if rider.sent:
            reservation.settle(charge)
        if charge is Charge.RESERVE and (outcome.kind != "late" or plan.late == "live"):
            _note_unknown(trip, BATCH)  # a late line may still be claimed, unless the call goes live
            rider.settled()
        if outcome.kind == "answered" and not isinstance(failed, TransientModelError):
            raise failed
        if outcome.kind in ("late", "live"):
            break
        if tries <= plan.retries:
            trip.retried(TransientModelError(reason), plan.linger)
    if outcome.kind != "live" and plan.late != "live":
        raise FinalModelError(
            f"{call.account.url} didn't carry out a call of {call.model} in {tries} batches ({reason}); raise max_wait "
            'or retries of afnio.batch_api, or pass late="live"'
        )
    trip.live = True
    reservation.price_as(call.estimate)
    return await _attempt(trip)


async def _on_wire(trip: Trip[R]) -> R:
    """Send the call once, note the outcome, and charge it to its budgets."""
    call, reservation = trip.call, trip.reservation
    trip.depart()
    trip.outcome = AttemptOutcome.CUT_OFF  # until it is known how it ended
    deadline = deadline_at(loop_time() + call.deadline)
    replica = None if trip.replica is None else current_replica.set(trip.replica)
    sent = time.monotonic()
    usage = actual = None
    depot = None if call.batched is None else Depot.of(trip.runtime)
    if depot is not None:
        depot.live += 1
    try:
        async with deadline:
            reply = _counted(call, await call.attempt())
            trip.outcome, usage = AttemptOutcome.REPLIED, reply.usage
            actual = call.charged(reply)
            return reply
    except ModelError as error:
        trip.outcome = AttemptOutcome.of(error)
        raise
    except TimeoutError:
        if not deadline.expired():  # the client's own
            raise
        trip.outcome = AttemptOutcome.NO_REPLY
        raise TransientModelError(
            f"{trip.url} gave no reply within {call.deadline:g} s ({call.model})"
        ) from None
    finally:
        if depot is not None:
            depot.live -= 1
        if replica is not None:
            current_replica.reset(replica)
        if usage is not None:
            reservation.learn(usage)
        reservation.settle(trip.outcome.money, usage, actual=actual)
        if trip.outcome.journaled:
            _note_unknown(trip)
        trip.last = time.monotonic() - sent
        trip.on_wire += trip.last


@final
class Trip(Generic[R]):
    """A call under way, from attempt to attempt.

    Attributes:
        account: the queue of its account, under the limits that held when the call was made.
        reservation: what it holds of the budgets of its context.
        attempts, on_wire: their number, and their seconds together.
        last: seconds of the last one.
        outcome: how the last one ended.
        spared: True if the last one was a probe for others that failed. It uses up no attempt.
        replica: where the last one went, or None if the account is no group of replicas.
        failures: attempts that were neither answered nor refused.
        refused_since: when the refusals began that its last attempts have met, or None.
        refusals: how many of them were because its service tier had no room.
        rider: its last line in a parcel, or None.
        live: True if it is sent at once, because no parcel carries it out.
        gate: that of its run, or None.
    """

    __slots__ = (
        "_started", "account", "attempts", "call", "failures", "gate", "journal", "last", "live", "on_wire", "outcome",
        "refusals", "refused_since", "replica", "reservation", "rider", "runtime", "spared",
    )  # fmt: skip

    def __init__(self, runtime: Runtime, call: Call[R], journal: Journal | None) -> None:
        self.runtime = runtime
        self.call = call
        self.journal = journal
        self.account = admitter(runtime, call.account)
        self.reservation = reservation_of(runtime, call.estimate)
        self.attempts = 0
        self.on_wire = 0.0
        self.last = 0.0
        self.outcome = AttemptOutcome.UNSENT
        self.spared = False
        self.replica: Account | None = None
        self.failures = 0
        self.refused_since: float | None = None
        self.refusals = 0
        self.rider: Rider | None = None
        self.live = False
        self.gate = run_gate.get()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def url(self) -> str:
        """The endpoint of the last attempt."""
        return self.call.account.url if self.replica is None else self.replica.url

    def depart(self) -> None:
        """Count an attempt, because it is sent now.

        Raises:
            BudgetExceeded: if a budget's time ran out in the queue.
        """
        self.reservation.attempt()
        self.attempts += 1

    def keep(self, rider: Rider) -> None:
        """Record the end of a line whose call has left: it was paid for."""
        call, outcome = self.call, rider.outcome
        assert call.batched is not None
        assert isinstance(outcome, LineOutcome)
        if outcome.kind == "lost":
            _note_unknown(self, BATCH)
        if outcome.kind != "answered" or self.journal is None:
            return
        try:
            reply = _counted(call, call.batched.read(outcome.status, outcome.body))
            record, encode = _row_of(self, reply), call.codec.encode
            settled = partial(self.runtime.post, rider.settled)
            self.journal.append(record, lambda error: settled(), payload=lambda: encode(reply))
        except ModelError as error:
            if AttemptOutcome.of(error).money is Charge.RESERVE:
                _note_unknown(self, BATCH)
            rider.settled()
        except JournalError:  # closed meanwhile: the line is claimed or counted in the next run
            return

    def settled(self) -> None:
        """Note that its line in a parcel has its end on disk, if it has one."""
        rider = self.rider
        if rider is not None and isinstance(rider.outcome, LineOutcome) and not rider.left:
            rider.settled()

    def retried(self, error: BaseException | None, wait: float) -> None:
        """Notify subscribers that there will be another attempt."""
        if listening():
            call = self.call
            about = (call.address, self.url, call.model, call.purpose)
            emit(CallRetried(*about, self.attempts, str(error), wait, self.last))

    def ended(self, reply: R | None, error: BaseException | None) -> None:
        """Notify subscribers how the call ended."""
        if not listening():
            return
        call, usage = self.call, Usage() if reply is None else reply.usage
        url = self.url if reply is None else at_tier(self.url, reply.service_tier)
        price = call.price if reply is None else (call.charged(reply) or call.estimate).price
        if isinstance(error, Cancelled) and loop_time() >= self.reservation.deadline:
            error = time_over(self.reservation.budgets)
        emit(
            CallEnded(
                call.address,
                url,
                call.model,
                call.purpose,
                self.attempts,
                self.on_wire,
                self.seconds - self.on_wire,
                usage,
                None if error is None else f"{type(error).__name__}: {error}",
                call.request,
                reply,
                None if price is None or reply is None else cost(price, usage),
                call.node,
                call.lane,
            )
        )


@final
class SharedCall(Generic[R]):
    """A call that lanes of one launch share.

    Attributes:
        reply, error: how it ended; neither if it was cancelled.
        ended: set once it has ended.
    """

    __slots__ = ("ended", "error", "reply")

    def __init__(self, reply: R | None = None) -> None:
        self.reply = reply
        self.error: Exception | None = None
        self.ended = anyio.Event()
        if reply is not None:
            self.ended.set()


def _copied(error: Exception) -> Exception:
    """Return a copy of a shared error: each caller adds a note on where its call was launched.

    The copy has no traceback, which would lead back to the frame that holds it, a reference cycle.
    """
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error.__cause__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own


# Retries.


# Seconds of nothing but refusals after which a call fails: a quota by the hour is waited for, one by the day
# isn't.
REFUSED_FOR: Final = 3600.0
BACKOFF_FIRST: Final = 0.5
BACKOFF_MAX: Final = 30.0
# The longest backoff of a call whose service tier has no room.
TIER_BACKOFF_MAX: Final = 60.0
# The longest backoff towards a host that was never reached, so that a wrong URL is reported within five
# seconds.
FIRST_CONTACT_MAX: Final = 2.0


@cache
def retries() -> AsyncRetrying:
    """Return what repeats attempts: `await retries()(attempt, trip)`. Only transient errors are tried again.

    There is one object for all calls, and it is called. One made for each call would leave a reference cycle. Iterating
    this one would mix up concurrent calls, because it keeps the state of an iteration in itself.
    """
    from tenacity import AsyncRetrying, retry_if_exception_type

    return AsyncRetrying(
        stop=_used_up,
        wait=backoff,
        retry=retry_if_exception_type(TransientModelError),
        sleep=anyio.sleep,
        before_sleep=_announce,
        reraise=True,
    )


def _used_up(state: RetryCallState) -> bool:
    """Return True if a call has been tried often enough.

    A failed probe and refusals use up no attempts and no retry budget: the account is alive, and the call's turn will
    come. Refusals end after an hour.
    """
    trip, error = _failed(state)
    if trip.spared:
        return False
    if isinstance(error, RateLimitedError | TierUnavailableError):
        now = loop_time()
        if trip.refused_since is None:
            trip.refused_since = now
        trip.refusals += isinstance(error, TierUnavailableError)
        if now - trip.refused_since < REFUSED_FOR:
            return False
        error.add_note(f"not tried again: it was refused for {REFUSED_FOR / 60:g} minutes, each time")
        return True
    trip.refused_since, trip.refusals = None, 0
    trip.failures += 1
    # A first contact ends by time; a server that took its time over each refusal would never end it.
    most = 2 * ATTEMPTS if is_first_contact(error) else ATTEMPTS
    return trip.failures >= most or not trip.account.health.grant_retry(error, loop_time())


def backoff(state: RetryCallState) -> float:
    """Return seconds to wait: full jitter (AWS, 2015), on top of what the provider asked for.

    A refused call waits for as long as its account pauses. In the queue it would hold money that others may need.
    """
    trip, error = _failed(state)
    if trip.spared:
        return 0.0
    if isinstance(error, RateLimitedError):
        return trip.account.pause(loop_time())
    longest, tries = FIRST_CONTACT_MAX if is_first_contact(error) else BACKOFF_MAX, trip.failures
    if isinstance(error, TierUnavailableError):
        longest, tries = TIER_BACKOFF_MAX, trip.refusals
    ceiling = min(longest, BACKOFF_FIRST * 2 ** min(tries, 10))
    return (error.retry_after or 0.0) + random.uniform(0, ceiling)


async def _announce(state: RetryCallState) -> None:
    trip, error = _failed(state)
    if trip.spared or state.next_action is None:
        return
    wait = state.next_action.sleep
    trip.retried(error, wait)
    await trip.account.health.log_retry(error, wait)


def _failed(state: RetryCallState) -> tuple[Trip[Any], ModelError]:
    """Return what an attempt was made for, and the error that it raised."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, ModelError), "only transient errors are tried again"
    return state.args[0], error


# How attempts end.


# Statuses of a gateway that stopped waiting. The model behind it may have worked, and be paid for, all the
# same.
_UNSURE: Final = frozenset({408, 499, 502, 504, 524})


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
    NO_ROOM = (Charge.NOTHING,  True,  Tokens.FREE, Sign.NOTHING,  False)  # 429 of a service tier, not of the account
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
        if isinstance(error, TierUnavailableError):
            return cls.NO_ROOM
        status = error.status
        if status is None or status < 400:
            return cls.UNKNOWN
        if status in _UNSURE:
            return cls.GAVE_UP if status < 500 else cls.UNKNOWN
        return cls.REJECTED if status < 500 else cls.FAILED


# Calls.


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """One language model call.

    Attributes:
        address: where in the program it was launched: scope path, launch, part, lane, purpose.
        scope: the scope path alone.
        key: digest of everything that can change the reply; empty if neither a journal nor equal calls ask for it.
        attempt: sends it once; raises a `TransientModelError` if another attempt may help.
        depth: how many launches had to end before it could be made; deeper calls go first.
        prompt_tokens: of the request, counted or estimated.
        max_output: the tokens that the reply may have, or None without a limit.
        price: of its tokens at the standard service tier, or None if unknown. It is reserved for every attempt: a
            provider may answer at that tier whatever was asked for.
        tier_prices: of its tokens at other service tiers, by their names in replies.
        site: the place in the program; replies to calls of one site are assumed to be alike in length.
        prefix: hash of the prompt's beginning, for groups of replicas.
        request: for events.
        node, lane: the launch and the sample that it is made for, for events.
        count: called with the purpose and the usage of a reply that was paid for.
        shared: the calls of its launch by account and key, if equal ones may share a reply (its temperature is 0);
            otherwise None.
        batched: how it goes by a batch API, or None if it goes live.
    """

    address: str
    scope: str
    key: str
    codec: Codec[R]
    account: Account
    model: str
    purpose: str
    attempt: Callable[[], Awaitable[R]]
    deadline: float = ATTEMPT_DEADLINE
    priority: Priority = field(default_factory=current_priority)
    depth: int = 0
    prompt_tokens: int = 0
    max_output: int | None = None
    price: Price | None = None
    tier_prices: Mapping[str, Price | None] = field(default_factory=dict)
    site: Hashable = None
    prefix: int = 0
    request: Any = None
    node: str = ""
    lane: int | None = None
    count: Callable[[str, Usage], object] | None = None
    shared: dict[Hashable, SharedCall[Any]] | None = None
    batched: Batched[R] | None = None

    @property
    def estimate(self) -> AttemptEstimate:
        """The most that an attempt may use up, for budgets."""
        return AttemptEstimate(
            self.model, self.account.url, self.purpose, self.prompt_tokens, self.max_output, self.price
        )

    def charged(self, reply: R) -> AttemptEstimate | None:
        """Return what the reply is charged as, or None if as the estimate: it came at the standard service tier."""
        tier = reply.service_tier
        if tier not in (FLEX, BATCH):
            return None
        price = self.tier_prices.get(tier, self.price)
        return replace(self.estimate, client=at_tier(self.account.url, tier), price=price)


@dataclass(frozen=True, slots=True)
class Codec(Generic[R]):
    """How replies become bytes in a journal and come back."""

    encode: Callable[[R], bytes]
    decode: Callable[[bytes], R]
    # Returns True if the reply may answer another address: it wasn't refused or cut off.
    reusable: Callable[[R], bool]
    # Returns the reply with other counts of tokens.
    recount: Callable[[R, Usage], R]


# Records in a journal.


async def _record(trip: Trip[R], reply: R, kind: Kind = "reply") -> None:
    """Record a reply, and return once it is on disk or the journal is broken.

    Raises:
        JournalError: if this reply can't be recorded, and others can.
    """
    journal = trip.journal
    if journal is None:
        return
    record, encode = _row_of(trip, reply, kind), trip.call.codec.encode
    written = Signal()

    def done(error: BaseException | None) -> None:
        # A full disk isn't this reply's fault: its caller gets it, and the next call raises.
        trip.runtime.post(written.set, None if error is journal.broken else error)

    journal.append(record, done, payload=lambda: encode(reply))
    await written.wait()


def _row_of(trip: Trip[R], reply: R, kind: Kind = "reply") -> Record:
    from afnio.runtime._journal_file import Record  # with sqlite3, which `import afnio` leaves out

    call, rider = trip.call, trip.rider
    if rider is not None and rider.counted and not trip.live:
        kind = "shared"  # a row of an earlier program has its tokens
    return Record(
        address=call.address,
        scope=call.scope,
        key=call.key,
        model=call.model,
        purpose=call.purpose,
        account=at_tier(trip.url, reply.service_tier),
        usage=reply.usage if kind == "reply" else Usage(),
        seconds=trip.on_wire,
        kind=kind,
        reusable=call.codec.reusable(reply),
    )


def _note_unknown(trip: Trip[Any], tier: str = "") -> None:
    """Record an attempt whose end is unknown, at the most that it may have used."""
    journal, call = trip.journal, trip.call
    if journal is None or journal.broken is not None:
        return
    from afnio.runtime._journal_file import Record

    usage = Usage(call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    record = Record(
        address=call.address, scope=call.scope, key=call.key, model=call.model, purpose=call.purpose,
        account=at_tier(trip.url, tier), usage=usage, kind="unknown", reusable=False,
    )  # fmt: skip
    with suppress(JournalError):  # closed meanwhile; the caller gets the error of its call
        journal.append(record, lambda error: None)


_noted: Final[set[Account]] = set()


def _counted(call: Call[R], reply: R) -> R:
    """Return the reply with impossible token counts corrected, before budgets, journals and events see them."""
    usage = reply.usage
    possible = possible_usage(usage, call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    if possible is usage:
        return reply
    if possible != usage and call.account not in _noted:
        _noted.add(call.account)
        text = "%s reported an impossible token count (%s), which is counted as %s (logged once per account)"
        logging.getLogger("afnio").warning(text, call.account.url, usage, possible)
    return call.codec.recount(reply, possible)
