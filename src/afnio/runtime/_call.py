"""Call: the path that every language model call takes, whoever makes it.

identify → journal? → reserve budget → single-flight → admission (priority, in flight, requests/min,
tokens/min) → attempt (deadline) → classify → retry | fail | record → settle budget and admission
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
from afnio.runtime._admission import Congestion, Sign, Tokens, admitter, congestion, count_call
from afnio.runtime._budget import Budget, Charge, Reservation, current_budgets, reservation_of, time_over
from afnio.runtime._kernel import Runtime
from afnio.runtime._limits import DEFAULT_OUTPUT, Account
from afnio.runtime._loop import Cancelled, Task, loop_time
from afnio.runtime._retries import RETRIES, AccountHealth
from afnio.runtime._settings import CallPriority, current_priority
from afnio.runtime._spending import AttemptEstimate, Price, cost
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
    from tenacity import RetryCallState

    from afnio.runtime._journal import Journal
    from afnio.runtime._journal_file import Kind
    from afnio.runtime._kernel import Runtime
    from afnio.runtime._limits import Account, RateLimits


ATTEMPT_DEADLINE: Final = 600.0
"""Seconds that one attempt may take, from its first byte out to its last byte in."""


class Reply(Protocol):
    @property
    def usage(self) -> Usage: ...
    @property
    def limits(self) -> RateLimits | None: ...


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
    priority: CallPriority = field(default_factory=lambda: CallPriority(current_priority()))
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
    def estimate(self) -> AttemptEstimate:
        """What an attempt may use up, for budgets."""
        return AttemptEstimate(
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
    from afnio.runtime._journal_file import Record

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


_UNSURE: Final = frozenset({408, 499, 502, 504, 524})
"""Statuses of a gateway that stopped waiting. The model behind it may have worked, and be paid for, all the same."""


@unique
class Outcome(Enum):
    """How an attempt ended, and what that means for everybody who counts.

    Money is for budgets. The request and its tokens are for the account's windows: providers count most of what
    they let in, and nothing of what they turn away. The sign is for the account's health. The journal keeps an
    attempt that was cut off, so that a run that continues this one knows that it may have been paid for.
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
    def of(cls, error: ModelError) -> Outcome:
        """Return the outcome of an attempt that raised `error`.

        >>> Outcome.of(ModelError("overloaded", status=503)).name
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


# Trip: the attempts of one call, whoever waits for it and pays for it.


MOST_TOKENS: Final = 100_000_000
"""A higher count is impossible for one reply: the largest contexts are a tenth of it."""

_noted: Final[set[Account]] = set()


class Trip(ABC, Generic[R]):
    """One call on its way: how often it was tried, and for how long. Subclasses know whom it concerns.

    Attributes:
        call: what admission sees of it.
        attempts, on_wire: how many there were, and their seconds together.
        last: seconds of the last one.
        outcome: how the last one ended.
        patience: seconds that the attempt under way may take.
        wire: the scope of the attempt under way.
    """

    wire: anyio.CancelScope

    def __init__(self, runtime: Runtime, call: Call[R]) -> None:
        self.runtime = runtime
        self.call = call
        self.attempts = 0
        self.on_wire = 0.0
        self.last = 0.0
        self.outcome = Outcome.UNSENT
        self.failures = 0
        self.refused_since: float | None = None
        self.known_failure: TransientModelError | None = None
        self.patience = call.deadline
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @abstractmethod
    async def hold(self) -> None:
        """Reserve the next attempt; at once if it is held already."""

    @abstractmethod
    def depart(self) -> None:
        """Count the attempt, which goes on the wire now, and give it its deadline."""

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
        """Tell that there will be another attempt."""

    @abstractmethod
    def end(self, reply: R | None, error: BaseException | None) -> None:
        """Tell how it ended."""


@final
class Solo(Trip[R]):
    """A call that one caller waits for, in the caller's own context."""

    def __init__(self, runtime: Runtime, call: Call[R]) -> None:
        super().__init__(runtime, call)
        self._journal = active_journal.get()
        self._reservation = reservation_of(runtime, call.estimate)
        self._ends = self._reservation.deadline

    async def send(self, failed: TransientModelError | None = None) -> R:
        """Send the call until it has a reply, has failed for good, or a budget's time is over.

        Args:
            failed: why the first attempt, which was made elsewhere, has failed.
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
        self.wire = anyio.CancelScope(deadline=loop_time() + self.patience)

    def settle(self, reply: R | None) -> None:
        if reply is not None:
            self._reservation.learn(reply.usage)
            self._reservation.settle(self.outcome.money, reply.usage)
            return
        self._reservation.settle(self.outcome.money)
        if self.outcome.journaled and self._journal is not None:
            note_unknown(self._journal, self.call)

    def retry(self, state: RetryCallState) -> None:
        if listening():
            emit(retried(self.call, self, state))

    def end(self, reply: R | None, error: BaseException | None) -> None:
        if listening():
            if isinstance(error, Cancelled) and loop_time() >= self._ends:
                error = time_over(self._reservation.budgets)
            emit(ended(self.call, self, reply, error))


async def send(trip: Trip[R]) -> R:
    """Send a call until it has a reply or has failed for good."""
    trip.runtime.calls_open += 1
    try:
        try:
            # Outside of tenacity, which costs 20 to 30 µs a call, a quarter of all that a call costs.
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
        trip.runtime.calls_open -= 1
    trip.end(reply, None)
    return reply


async def _attempt(trip: Trip[R]) -> R:
    """Make one attempt that counts: one that only probes a circuit and fails goes back to the queue."""
    if trip.known_failure is not None:
        failed, trip.known_failure = trip.known_failure, None
        raise failed
    first = trip.attempts == 0
    while True:
        await trip.hold()
        account = admitter(trip.runtime, trip.call.account)
        permit = await account.enter(trip.call, first=first)
        trip.outcome = Outcome.UNSENT
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
    trip.depart()  # raises if a budget's time ran out in the queue; then nothing is sent
    trip.attempts += 1
    trip.outcome = Outcome.CUT_OFF  # unless it gets further
    reply: R | None = None
    sent = time.monotonic()
    try:
        with trip.wire:
            reply = _counted(trip.call, await trip.attempt())
            trip.outcome = Outcome.REPLIED
            return reply
        trip.outcome = Outcome.NO_REPLY
        raise no_reply(trip.call, trip.patience)
    except ModelError as error:
        if trip.outcome is Outcome.CUT_OFF:
            trip.outcome = Outcome.of(error)
        raise
    finally:
        trip.settle(reply)
        trip.last = time.monotonic() - sent
        trip.on_wire += trip.last


def no_reply(call: Call[Any], seconds: float) -> TransientModelError:
    return TransientModelError(f"{call.account.url} gave no reply within {seconds:g} s ({call.model})")


def note_unknown(journal: Journal, call: Call[Any]) -> None:
    """Have a journal's ledger count an attempt that nobody knows the end of, at what it may have used."""
    if journal.broken is not None:
        return
    from afnio.runtime._journal_file import Record

    usage = Usage(call.prompt_tokens, call.max_output or DEFAULT_OUTPUT)
    record = Record(
        address=call.address, scope=call.scope, key=call.key, model=call.model, purpose=call.purpose,
        account=call.account.url, usage=usage, kind="unknown", reusable=False,
    )  # fmt: skip
    with suppress(JournalError):  # closed since; the caller is to get the error of its call
        journal.append(record, lambda error: None)


def retried(call: Call[Any], trip: Trip[Any], state: RetryCallState) -> CallRetried:
    error = state.outcome.exception() if state.outcome is not None else None
    return CallRetried(
        call.address,
        call.account.url,
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
        call.account.url,
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


def _counted(call: Call[R], reply: R) -> R:
    """Return the reply with possible token counts, the only ones that budgets, journals and events ever see.

    An impossible count is replaced by what was expected of the call: 0 would make the reply free, and a huge
    number would end every budget.
    """
    usage = reply.usage
    counts = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    if all(isinstance(count, int) and 0 <= count <= MOST_TOKENS for count in counts):
        return reply
    expected = (call.prompt_tokens, call.max_output or DEFAULT_OUTPUT, 0, 0)
    possible = Usage(*map(_count, counts, expected))
    if possible != usage and call.account not in _noted:
        _noted.add(call.account)
        logging.getLogger("afnio").warning(
            "%s reported an impossible token count (%s), which is counted as %s; this is said once",
            call.account.url,
            usage,
            possible,
        )
    return call.codec.recount(reply, possible)


def _count(tokens: Any, otherwise: int) -> int:
    """Return a count of tokens as a whole number, 0 for None; `otherwise` if it is impossible."""
    try:
        whole = math.ceil(tokens or 0)
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinite
        return otherwise
    return whole if 0 <= whole <= MOST_TOKENS else otherwise


# Flight: one call on its way that several callers wait for (single-flight).
#
# A flight belongs to none of them: it runs in a context of its own, at the urgency of the most urgent and with
# the deadline of the most patient. Each rider keeps its own budgets, journal, subscribers and deadline, and
# reserves before it boards. Whatever counts money (a budget, a journal, a client, a subscriber) counts an
# attempt once, however many of its riders share it.


class Overdue(Exception):  # noqa: N818 - it never leaves the engine
    """A rider's own deadline has passed while others wait on."""


@final
class Rider(Generic[R]):
    """One caller that waits for a flight, and what is its own.

    Attributes:
        reservation: reserves in those of its budgets that no other rider has brought.
        ends: when its budgets' time is over.
        patience: the scope of its waiting.
        holding: the scope of its waiting for room in its budgets, or None.
        turn: set when there is something for it to do: to reserve anew, or to leave with the outcome.
        landed: whether there is an outcome: `reply` or `error`.
        written: set once the reply is in its journal.
    """

    patience: anyio.CancelScope
    turn: anyio.Event

    def __init__(self, runtime: Runtime, call: Call[R], journal: Journal | None) -> None:
        self.call = call
        self.journal = journal
        self.budgets = current_budgets()
        # Two that are equal are one: the same method of the same object.
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
        self.written: anyio.Event | None = None


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
    """A call in a task of its own; its riders come and go.

    A rider is on board from when its budgets have room, waits on the ground between two attempts, and then
    reserves anew. It doesn't share what its budgets have no room for.

    Attributes:
        over: whether nobody can board any more.
        task: in which it runs.
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
        self._ready = False  # somebody has reserved the attempt that is queued or on the wire
        self._sent_at: float | None = None
        # What counts the attempt under way, and for how many of those on board.
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
        """Have `rider` wait until it has an outcome, or the flight is over without it.

        Raises:
            BudgetExceeded: when its budgets leave no room, or their time is over.
            Overdue: when its own deadline has passed, and others wait on.
        """
        self._riders[rider] = None
        if rider.audience:
            self._listeners.update(rider.audience.keys())
        try:
            with anyio.CancelScope(deadline=rider.ends) as rider.patience:
                while not rider.landed and not self.over:
                    if await self._has_room(rider):
                        self._board(rider)
                        await rider.turn.wait()
            if rider.patience.cancelled_caught and not rider.landed:
                if loop_time() < rider.ends:
                    raise Overdue
                self._charge_leaver(rider)  # before the error says what was spent
                raise time_over(rider.budgets)
        except Overdue:
            self._leave(rider, None)
            raise
        except BaseException as error:
            self._leave(rider, error)
            raise
        self._leave(rider, None)

    async def _has_room(self, rider: Rider[R]) -> bool:
        """Reserve in those budgets of `rider` that nobody on board has brought; False if the flight is over."""
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
                reservation.release()  # others have come or gone while it waited

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
                self._set_deadlines()
            else:
                self._set_deadline(rider)
        if self._boarded is not None:
            self._boarded.set()
        if brought:  # those who wait for room in the same budgets need none
            for other in self._riders:
                if other.holding is not None and not brought.keys().isdisjoint(other.reservation.budgets):
                    other.holding.cancel()

    def _leave(self, rider: Rider[R], error: BaseException | None) -> None:
        """Let `rider` go; the last one to leave cancels the flight.

        Args:
            error: what those are told who hear of no rider that is left; nothing is told of None.
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
        """Charge what nobody who stays on board pays for."""
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
                note_unknown(rider.journal, rider.call)
        if sent and self._aboard and all(other.call.deadline < self.patience for other in self._aboard):
            self._set_deadlines()

    def _forget(self, rider: Rider[R]) -> None:
        del self._riders[rider]
        self._grounded.pop(rider, None)
        if rider.audience:
            self._listeners.subtract(rider.audience.keys())

    def _close(self) -> None:
        self.over = True
        if self._flights.get(self._key) is self:
            del self._flights[self._key]
        for rider in self._riders:  # those who wait for room go on to the next flight
            if rider.holding is not None:
                rider.holding.cancel()

    # Deadlines

    def _set_deadlines(self) -> None:
        assert self._sent_at is not None
        self.patience = max(rider.call.deadline for rider in self._aboard)
        self.wire.deadline = self._sent_at + self.patience
        for rider in self._aboard:
            self._set_deadline(rider)

    def _set_deadline(self, rider: Rider[R]) -> None:
        """Have a rider leave at its own deadline, if the attempt goes on after it."""
        own = rider.boarded_at + rider.call.deadline
        rider.patience.deadline = min(rider.ends, own if own < self.wire.deadline else math.inf)

    # The trip

    async def hold(self) -> None:
        self._ready = False
        grounded, self._grounded = self._grounded, {}
        for rider in grounded:
            rider.turn.set()
        if grounded:  # whose budgets have room boards in this turn of the loop
            await anyio.lowlevel.checkpoint()
        while not self._aboard:
            self._boarded = anyio.Event()
            await self._boarded.wait()
        self._ready = True

    def depart(self) -> None:
        self._sent_at = loop_time()
        self.wire = anyio.CancelScope()
        for held in self._held.values():
            held.send()
        waits, self._congestion.waited = self._congestion.waited > 0, 0
        for rider in self._aboard:
            rider.boarded_at = self._sent_at
            if rider.congestion is not None:
                rider.congestion.count(waits=waits)
        self._set_deadlines()

    def attempt(self) -> Any:
        # Another client's transport may have a deadline of its own.
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
                note_unknown(rider.journal, rider.call)

    def _ground(self) -> None:
        """Have those on board wait for the next attempt, which they reserve anew."""
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
        """Have the rider's client and journal count the reply, unless they have done so for another rider."""

        call, journal = rider.call, rider.journal
        if call.count is not None and call.count not in counted:
            call.count(call.purpose, reply.usage)
        if journal is not None:
            try:
                rider.written = record_reply(
                    self.runtime,
                    journal,
                    call,
                    reply,
                    time.monotonic() - rider.started,
                    kind="shared" if journal in counted else "reply",
                )
            except JournalError as error:
                rider.error = error
        counted.update((call.count, journal))

    def _tell(self, riders: Iterable[Rider[R]], event: Callable[[Call[R]], Any]) -> None:
        """Tell whoever listens to the riders: of the first one that each of them listens to."""
        told: set[Hashable] = set()
        for rider in riders:
            for listener, subscriber in rider.audience.items():
                if listener not in told:
                    told.add(listener)
                    tell(subscriber, event(rider.call))


async def share(runtime: Runtime, call: Call[R], journal: Journal | None) -> R:
    """Return the reply to `call`; equal calls at the same time are sent once.

    A more urgent caller that joins makes the call under way as urgent as it is itself. A caller that is
    cancelled leaves the others their reply; the last one to leave cancels the call.

    Raises:
        Overdue: when the call's own deadline has passed while others wait on, so that it goes on alone.
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
            del rider  # its error's traceback would lead back to it
    if rider.written is not None:
        await rider.written.wait()
    assert rider.reply is not None
    return rider.reply


def _hashable(subscriber: Subscriber) -> Hashable:
    try:
        hash(subscriber)
    except TypeError:
        return id(subscriber)
    return subscriber


def _own(error: BaseException) -> BaseException:
    """Return a copy of a shared error: each caller's is noted with where it was launched."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__, own.__traceback__ = error.__cause__, error.__traceback__
    if hasattr(error, "__notes__"):
        own.__notes__ = list(error.__notes__)
    return own
