"""Single flight: equal calls at the same time are sent once.

A flight belongs to none of its callers. It runs in its own task and context, with the priority of the most urgent
caller and the deadline of the most patient one. Each caller (a rider) keeps its own budgets, journal, subscribers and
deadline, and reserves money before it boards. Everything that counts money (a budget, a journal, a client, a
subscriber) counts a shared attempt once, however many riders it has among them.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, final

import anyio
import anyio.lowlevel

from afnio.errors import JournalError
from afnio.runtime._admission import Congestion, congestion
from afnio.runtime._attempts import Call, R, Trip, ended, note_unknown, record_reply, retried, send
from afnio.runtime._budget import Budget, Charge, Reservation, current_budgets, reservation_of, time_over
from afnio.runtime._kernel import Runtime
from afnio.runtime._loop import Signal, Task, deadline_at, loop_time
from afnio.runtime.events import Subscriber, Usage, audience, heard_by, tell

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from afnio.runtime._journal import Journal


async def share(runtime: Runtime, call: Call[R], journal: Journal | None) -> R:
    """Return the reply to `call`; equal calls at the same time are sent once.

    A more urgent caller that joins raises the call's priority to its own. A caller that is cancelled doesn't cancel
    it for the others; the last one to leave does.

    Raises:
        Overdue: if the call's own deadline has passed while others wait longer. The caller sends it alone then.
    """
    flights = runtime.resource(Flights, Flights).by_key
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
class Flights:
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
