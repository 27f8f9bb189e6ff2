"""Calls: the one path that every language model call takes.

    journal → flight → budget → admission → attempt → outcome → retry, or reply → journal

`perform` asks the journal first; a recorded reply costs nothing. A call that may share its reply with equal ones (its
temperature is 0, or the journal reuses replies) joins their `Flight`. The others go alone, as a `Solo`. Both are
`Trip`s: `send` repeats their attempts until one is answered or they are used up.

Each attempt waits twice. It waits for money in the line of a budget (`_budget.py`), then for its turn in the queue of
the account (`_admission.py`). The orders of the two differ, so they can't be one wait. How the attempt *ended* is
decided once, by the table `AttemptOutcome`. Budgets, the account's limits and its health all settle by the same row.

What happens on a 429, for example: `AttemptOutcome.LIMITED` charges no money and gives the request and its tokens back.
Admission pauses the account and finds its pace (`Refusals` in `_retries.py`). `RETRIES` sends the call again, for an
hour at most, and counts none of that as a failed attempt.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, final

import anyio
import anyio.lowlevel
from tenacity import RetryCallState

from afnio.errors import JournalError, ModelError, RateLimitedError, TransientModelError
from afnio.runtime._admission import (
    Congestion,
    Sign,
    Tokens,
    admitter,
    congestion,
    count_call,
    current_replica,
)
from afnio.runtime._budget import Budget, Charge, Reservation, current_budgets, reservation_of, time_over
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import DEFAULT_OUTPUT, Account
from afnio.runtime._loop import Cancelled, Deadline, Signal, Task, deadline_at, loop_time
from afnio.runtime._retries import RETRIES, AccountHealth
from afnio.runtime._settings import CallPriority, current_priority
from afnio.runtime._spending import AttemptEstimate, Price, cost, possible_usage
from afnio.runtime._waiting import active_journal
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    Subscriber,
    Usage,
    audience,
    emit,
    heard_by,
    listening,
    tell,
)

if TYPE_CHECKING:
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


async def perform(runtime: Runtime, call: Call[R]) -> R:
    """Make `call`, or answer it from the journal or by an equal call; on the runtime's loop.

    With a journal, the reply is on disk when this returns. A crash loses nothing that a caller has seen.

    Raises:
        ModelError: if it failed for good or its attempts are used up.
        BudgetExceeded: if it doesn't fit a budget of its context, or the budget's time is over.
        JournalError: if the journal can't record any more; then nothing is sent.
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
    if not call.alone and (call.deterministic or (journal is not None and journal.mode == "reuse")):
        try:
            return await share(runtime, call, journal)
        except Overdue:
            failed = no_reply(call.account.url, call, call.deadline)
    solo = Solo(runtime, call)
    reply = await solo.send(failed)
    if call.count is not None:
        call.count(call.purpose, reply.usage)
    if journal is not None:
        await record_reply(runtime, journal, call, solo.url, reply, time.monotonic() - started).wait()
    return reply


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
            reply = await RETRIES(_attempt, trip)
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


@final
class Solo(Trip[R]):
    """A call that one caller waits for, in the caller's context."""

    def __init__(self, runtime: Runtime, call: Call[R]) -> None:
        super().__init__(runtime, call)
        self._journal = active_journal.get()
        self._reservation = reservation_of(runtime, call.estimate)
        self._ends = self._reservation.deadline

    async def send(self, failed: TransientModelError | None = None) -> R:
        """Send the call until it has a reply, has failed for good, or a budget's time is over.

        Args:
            failed: the error of a first attempt that was made in a flight.
        """
        self.attempts, self.known_failure = int(failed is not None), failed
        with self._reservation:
            if self._ends == math.inf:
                return await send(self)
            with anyio.CancelScope(deadline=self._ends):
                return await send(self)
            raise time_over(self._reservation.budgets)

    async def hold(self) -> None:
        await self._reservation.hold()

    def depart(self) -> None:
        self._reservation.attempt()
        self.wire = deadline_at(loop_time() + self.patience)

    def settle(self, reply: R | None) -> None:
        if reply is not None:
            self._reservation.learn(reply.usage)
            self._reservation.settle(self.outcome.money, reply.usage)
            return
        self._reservation.settle(self.outcome.money)
        if self.outcome.journaled and self._journal is not None:
            note_unknown(self._journal, self.call, self.url)

    def retry(self, state: RetryCallState) -> None:
        if listening():
            emit(retried(self.call, self, state))

    def end(self, reply: R | None, error: BaseException | None) -> None:
        if listening():
            if isinstance(error, Cancelled) and loop_time() >= self._ends:
                error = time_over(self._reservation.budgets)
            emit(ended(self.call, self, reply, error))


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


# Single flight: equal calls at the same time are sent once.
#
# A flight belongs to none of its callers. It runs in its own task and context, with the priority of the most urgent
# caller and the deadline of the most patient one. Each caller (a rider) keeps its own budgets, journal, subscribers and
# deadline, and reserves money before it boards. Everything that counts money (a budget, a journal, a client, a
# subscriber) counts a shared attempt once, however many riders it has among them.


async def share(runtime: Runtime, call: Call[R], journal: Journal | None) -> R:
    """Return the reply to `call`; equal calls at the same time are sent once.

    A more urgent caller that joins raises the call's priority to its own. A caller that is cancelled doesn't cancel
    it for the others; the last one to leave does.

    Raises:
        Overdue: if the call's own deadline has passed while others wait longer. The caller sends it alone then.
    """
    flights = runtime.resource(_Flights, _Flights).by_key
    key = (call.account, call.key)
    rider = Rider(runtime, call, journal)
    while not rider.landed:
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = Flight(runtime, call, key, flights)
            flight.task = runtime.spawn(flight.run(), Context())
        await flight.carry(rider)
    if rider.error is not None:
        try:
            raise rider.error
        finally:
            del rider  # breaks a cycle: its error's traceback leads back to this frame
    if rider.written is not None:
        await rider.written.wait()
    assert rider.reply is not None
    return rider.reply


@final
class _Flights:
    """The flights of one runtime by key; it owns their tasks."""

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Flight[Any]] = {}

    async def aclose(self) -> None:
        for flight in self.by_key.values():
            if flight.task is not None:
                flight.task.cancel()


@final
class Flight(Trip[R]):
    """A call that several callers share. It runs in its own task while they come and go.

    A rider boards once its budgets can pay for the attempt. Between two attempts it waits on the ground, and must
    reserve again. One that can't pay doesn't get the reply.

    Attributes:
        over: True if no rider can board any more.
        task: the task it runs in.
    """

    def __init__(self, runtime: Runtime, call: Call[R], key: Hashable, flights: dict[Hashable, Any]) -> None:
        super().__init__(runtime, call)
        self.over = False
        self.task: Task | None = None
        self._key = key
        self._flights = flights
        self._riders: dict[Rider[R], None] = {}
        self._aboard: dict[Rider[R], None] = {}
        self._grounded: dict[Rider[R], None] = {}
        self._boarded: anyio.Event | None = None
        self._ready = False  # a rider has reserved the attempt that is queued or on the wire
        self._sent_at: float | None = None
        self._ends = math.inf
        # The budgets and journals of the riders on board, each with the number of riders that brought it.
        self._held: dict[Budget, Reservation] = {}
        self._payers: Counter[Budget] = Counter()
        self._journals: Counter[Journal] = Counter()
        # Of all riders.
        self._listeners: Counter[Hashable] = Counter()
        self._congestion = Congestion()

    @property
    def waiting(self) -> int:
        """How many riders it has."""
        return len(self._riders)

    async def run(self) -> None:
        congestion.set(self._congestion)
        with heard_by(lambda event: self._tell(self._riders, lambda call: event)):
            try:
                await send(self)
            except BaseException:  # the riders have it, each of whom raises it
                return

    # For riders

    async def carry(self, rider: Rider[R]) -> None:
        """Wait until `rider` has an outcome, or the flight is over without it.

        Raises:
            BudgetExceeded: if its budgets can't pay, or their time is over.
            Overdue: if its own deadline has passed, and others wait longer.
        """
        self._riders[rider] = None
        if rider.audience:
            self._listeners.update(rider.audience.keys())
        try:
            with anyio.CancelScope(deadline=rider.ends) as rider.patience:
                while not rider.landed and not self.over:
                    if await self._reserve(rider):
                        self._board(rider)
                        await rider.turn.wait()
            if rider.patience.cancelled_caught and not rider.landed:
                if loop_time() < rider.ends:
                    raise Overdue
                self._charge_leaver(rider)  # first, because the error quotes what was spent
                raise time_over(rider.budgets)
        except Overdue:
            self._leave(rider, None)
            raise
        except BaseException as error:
            self._leave(rider, error)
            raise
        self._leave(rider, None)

    async def _reserve(self, rider: Rider[R]) -> bool:
        """Reserve in those budgets of `rider` that no rider on board has brought. Return False if it is too late."""
        reservation = rider.reservation
        while True:
            missing = self._missing(rider)
            reservation.budgets = missing
            if missing:
                with anyio.CancelScope() as rider.holding:
                    await reservation.hold()
                rider.holding = None
            else:
                reservation.take()
            if self.over:
                return False
            if reservation.held:
                if missing == self._missing(rider):
                    return True
                reservation.release()  # riders have come or gone in the meantime

    def _missing(self, rider: Rider[R]) -> tuple[Budget, ...]:
        return tuple(budget for budget in rider.budgets if not self._payers[budget])

    def _board(self, rider: Rider[R]) -> None:
        rider.turn = anyio.Event()
        brought = rider.reservation.split()
        if rider.budgets:
            self._held |= brought
            self._payers.update(rider.budgets)
        if rider.journal is not None:
            self._journals[rider.journal] += 1
        self._aboard[rider] = None
        self.call.priority.raise_to(rider.call.priority.level)
        if self._sent_at is not None:
            for held in brought.values():
                held.send()
            rider.boarded_at = loop_time()
            if rider.call.deadline > self.patience:
                self._move_deadlines()
            else:
                self._set_deadline(rider)
        if self._boarded is not None:
            self._boarded.set()
        if brought:  # others that wait for the same budgets needn't pay any more
            for other in self._riders:
                if other.holding is not None and not brought.keys().isdisjoint(other.reservation.budgets):
                    other.holding.cancel()

    def _leave(self, rider: Rider[R], error: BaseException | None) -> None:
        """Let `rider` go. The last one to leave cancels the flight.

        Args:
            error: reported to the subscribers that listen to none of the riders who stay; None isn't reported.
        """
        if rider in self._riders:
            self._charge_leaver(rider)
            self._forget(rider)
            if error is not None:
                for listener, subscriber in rider.audience.items():
                    if not self._listeners[listener]:
                        tell(subscriber, ended(rider.call, self, None, error))
        if rider.reservation.held:
            rider.reservation.release()
        if not self.over and not self._aboard and (self._ready or not self._riders):
            self._close()
            if self.task is not None:
                self.task.cancel()

    def _charge_leaver(self, rider: Rider[R]) -> None:
        """Charge the budgets and journals that no rider on board shares with `rider`."""
        if rider not in self._aboard:
            return
        del self._aboard[rider]
        sent = self._sent_at is not None
        self._payers.subtract(rider.budgets)
        for budget in rider.budgets:
            if not self._payers[budget] and (held := self._held.pop(budget, None)) is not None:
                held.settle(Charge.RESERVE) if sent else held.release()
        if rider.journal is not None:
            self._journals[rider.journal] -= 1
            if sent and not self._journals[rider.journal]:
                note_unknown(rider.journal, rider.call, self.url)
        if sent and self._aboard and all(other.call.deadline < self.patience for other in self._aboard):
            self._move_deadlines()

    def _forget(self, rider: Rider[R]) -> None:
        del self._riders[rider]
        self._grounded.pop(rider, None)
        if rider.audience:
            self._listeners.subtract(rider.audience.keys())

    def _close(self) -> None:
        self.over = True
        if self._flights.get(self._key) is self:
            del self._flights[self._key]
        for rider in self._riders:  # those that still wait for their budgets start the next flight
            if rider.holding is not None:
                rider.holding.cancel()

    # Deadlines

    def _set_deadlines(self) -> None:
        assert self._sent_at is not None
        self.patience = max(rider.call.deadline for rider in self._aboard)
        self._ends = self._sent_at + self.patience
        for rider in self._aboard:
            self._set_deadline(rider)

    def _move_deadlines(self) -> None:
        """Change the deadline of an attempt on the wire."""
        self._set_deadlines()
        if not self.wire.expired():
            self.wire.reschedule(self._ends)

    def _set_deadline(self, rider: Rider[R]) -> None:
        """Let a rider leave at its own deadline if the attempt lasts longer."""
        own = rider.boarded_at + rider.call.deadline
        rider.patience.deadline = min(rider.ends, own if own < self._ends else math.inf)

    # The trip

    async def hold(self) -> None:
        self._ready = False
        grounded, self._grounded = self._grounded, {}
        for rider in grounded:
            rider.turn.set()
        if grounded:  # those whose budgets can pay board within this turn of the loop
            await anyio.lowlevel.checkpoint()
        while not self._aboard:
            self._boarded = anyio.Event()
            await self._boarded.wait()
        self._ready = True

    def depart(self) -> None:
        self._sent_at = loop_time()
        for held in self._held.values():
            held.send()
        waits, self._congestion.waited = self._congestion.waited > 0, 0
        for rider in self._aboard:
            rider.boarded_at = self._sent_at
            if rider.congestion is not None:
                rider.congestion.count(waits=waits)
        self._set_deadlines()
        self.wire = deadline_at(self._ends)

    def attempt(self) -> Any:
        # Send it by the most patient rider's client: the transports have deadlines, too.
        return max(self._aboard, key=lambda rider: rider.call.deadline).call.attempt()

    def settle(self, reply: R | None) -> None:
        usage = Usage() if reply is None else reply.usage
        if reply is not None:
            next(iter(self._aboard)).reservation.learn(usage)
        for held in self._held.values():
            held.settle(self.outcome.money, usage)
        if reply is not None:
            self._held.clear()
            self._sent_at = None
            return
        if self.outcome.journaled:
            self._note_unknown()
        self._ground()

    def _note_unknown(self) -> None:
        noted: set[Journal] = set()
        for rider in self._aboard:
            if rider.journal is not None and rider.journal not in noted:
                noted.add(rider.journal)
                note_unknown(rider.journal, rider.call, self.url)

    def _ground(self) -> None:
        """Move the riders to the ground. They must reserve again for the next attempt."""
        self._ready, self._sent_at = False, None
        self._held.clear()
        self._payers.clear()
        self._journals.clear()
        for rider in self._aboard:
            rider.patience.deadline = rider.ends
        self._grounded |= self._aboard
        self._aboard.clear()

    def retry(self, state: RetryCallState) -> None:
        self._tell(self._riders, lambda call: retried(call, self, state))

    def end(self, reply: R | None, error: BaseException | None) -> None:
        self._close()
        for held in self._held.values():
            held.release()
        riders = [*self._grounded, *self._aboard]
        self._tell(riders, lambda call: ended(call, self, reply, error))
        counted: set[Hashable] = set()
        for rider in riders:
            self._forget(rider)
            rider.landed = True
            rider.reply = reply
            rider.error = error if error is None or rider is riders[0] else _own(error)
            if reply is not None:
                self._count(rider, reply, counted)
            rider.turn.set()
        self._aboard.clear()

    def _count(self, rider: Rider[R], reply: R, counted: set[Hashable]) -> None:
        """Count the reply for the rider's client and journal, unless they counted it for another rider."""
        call, journal = rider.call, rider.journal
        if call.count is not None and call.count not in counted:
            call.count(call.purpose, reply.usage)
        if journal is not None:
            try:
                rider.written = record_reply(
                    self.runtime,
                    journal,
                    call,
                    self.url,
                    reply,
                    time.monotonic() - rider.started,
                    kind="shared" if journal in counted else "reply",
                )
            except JournalError as error:
                rider.error = error
        counted.update((call.count, journal))

    def _tell(self, riders: Iterable[Rider[R]], event: Callable[[Call[R]], Any]) -> None:
        """Notify each subscriber of the first of `riders` that it listens to."""
        notified: set[Hashable] = set()
        for rider in riders:
            for listener, subscriber in rider.audience.items():
                if listener not in notified:
                    notified.add(listener)
                    tell(subscriber, event(rider.call))


@final
class Rider(Generic[R]):
    """One caller of a flight.

    Attributes:
        reservation: reserves in those of its budgets that no other rider has brought.
        ends: the time at which its budgets' time is over.
        patience: the scope in which it waits.
        holding: the scope in which it waits for its budgets, or None.
        turn: set when it must reserve again, or leave with the outcome.
        landed: True if there is an outcome: `reply` or `error`.
        written: set once the reply is in its journal.
    """

    patience: anyio.CancelScope
    turn: anyio.Event

    def __init__(self, runtime: Runtime, call: Call[R], journal: Journal | None) -> None:
        self.call = call
        self.journal = journal
        self.budgets = current_budgets()
        # Equal subscribers count as one: they are the same method of the same object.
        self.audience = {_hashable(subscriber): subscriber for subscriber in audience()}
        self.congestion = congestion.get()
        self.reservation = reservation_of(runtime, call.estimate)
        self.ends = self.reservation.deadline
        self.holding: anyio.CancelScope | None = None
        self.started = time.monotonic()
        self.boarded_at = 0.0
        self.landed = False
        self.reply: R | None = None
        self.error: BaseException | None = None
        self.written: Signal | None = None


class Overdue(Exception):  # noqa: N818 - it never leaves the engine
    """A rider's own deadline has passed while others wait longer."""


def _hashable(subscriber: Subscriber) -> Hashable:
    try:
        hash(subscriber)
    except TypeError:
        return id(subscriber)
    return subscriber


def _own(error: BaseException) -> BaseException:
    """Return a copy of a shared error, because each caller adds a note on where its call was launched."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__, own.__traceback__ = error.__cause__, error.__traceback__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own
