"""Flight: one call on its way that several callers wait for (single-flight).

A flight belongs to none of them: it runs in a context of its own, at the urgency of the most urgent and with
the deadline of the most patient. Each rider keeps its own budgets, journal, subscribers and deadline, and
reserves before it boards. Whatever counts money (a budget, a journal, a client, a subscriber) counts an
attempt once, however many of its riders share it.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

import anyio
import anyio.lowlevel

from afnio.errors import JournalError, ModelError
from afnio.runtime.budget import Budget, Reservation, current_budgets, reservation_of, time_over
from afnio.runtime.crowd import Crowd, crowd
from afnio.runtime.events import Subscriber, audience, heard_by, tell
from afnio.runtime.loop import Task, loop_time
from afnio.runtime.trip import Trip, ended, note_unknown, retried, send

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from afnio.runtime.call import Call, Reply
    from afnio.runtime.journal import Journal
    from afnio.runtime.runtime import Runtime

R = TypeVar("R", bound="Reply")


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
        self.crowd = crowd.get()
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
        self._crowd = Crowd()

    @property
    def waiting(self) -> int:
        """How many riders it has."""
        return len(self._riders)

    async def run(self) -> None:
        crowd.set(self._crowd)
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
        self.call.urgency.raise_to(rider.call.urgency.rank)
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
                held.unknown() if sent else held.release()
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
        waits, self._crowd.waited = self._crowd.waited > 0, 0
        for rider in self._aboard:
            rider.boarded_at = self._sent_at
            if rider.crowd is not None:
                rider.crowd.count(waits=waits)
        self._set_deadlines()

    def attempt(self) -> Any:
        # Another client's transport may have a deadline of its own.
        return max(self._aboard, key=lambda rider: rider.call.deadline).call.attempt()

    def settle(self, reply: R) -> None:
        next(iter(self._aboard)).reservation.learn(reply.usage)
        for held in self._held.values():
            held.charge(reply.usage)
        self._held.clear()
        self._sent_at = None

    def failed(self, error: ModelError) -> None:
        for held in self._held.values():
            held.failed(error)
        self._ground()

    def unknown(self) -> None:
        for held in self._held.values():
            held.unknown()
        noted: set[Journal] = set()
        for rider in self._aboard:
            if rider.journal is not None and rider.journal not in noted:
                noted.add(rider.journal)
                note_unknown(rider.journal, rider.call)
        self._ground()

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
        from afnio.runtime.call import record_reply

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
