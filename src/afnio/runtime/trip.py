"""Trip: the attempts of one call, whoever waits for it and pays for it."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, final

import anyio
from tenacity import RetryCallState

from afnio.errors import JournalError, ModelError, TransientModelError
from afnio.runtime.active_journal import active_journal
from afnio.runtime.admission import admitter
from afnio.runtime.budget import reservation_of, time_over
from afnio.runtime.budget.price import cost
from afnio.runtime.events import CallEnded, CallRetried, Usage, emit, listening
from afnio.runtime.loop import Cancelled, loop_time
from afnio.runtime.output_estimate import DEFAULT_OUTPUT
from afnio.runtime.retry import retrying

if TYPE_CHECKING:
    from afnio.runtime.call import Call, Reply
    from afnio.runtime.journal import Journal
    from afnio.runtime.limits import Account
    from afnio.runtime.runtime import Runtime

R = TypeVar("R", bound="Reply")

MOST_TOKENS: Final = 100_000_000
"""A higher count is impossible for one reply: the largest contexts are a tenth of it."""

_noted: Final[set[Account]] = set()


class Trip(ABC, Generic[R]):
    """One call on its way: how often it was tried, and for how long. Subclasses know whom it concerns.

    Attributes:
        call: what admission sees of it.
        attempts, on_wire: how many there were, and their seconds together.
        last: seconds of the last one.
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

    def attempt(self) -> Awaitable[R]:
        """Send the call once."""
        return self.call.attempt()

    @abstractmethod
    def settle(self, reply: R) -> None:
        """Charge the attempt, which got a reply."""

    @abstractmethod
    def failed(self, error: ModelError) -> None:
        """Charge the attempt, which failed."""

    @abstractmethod
    def unknown(self) -> None:
        """Charge the attempt, which was cut off on the wire, where it may have been answered and paid for."""

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
        self.attempts = 0 if failed is None else 1
        with self._reservation:
            if self._ends == math.inf:
                return await send(self, failed)
            with anyio.CancelScope(deadline=self._ends):
                return await send(self, failed)
            raise time_over(self._reservation.budgets)

    async def hold(self) -> None:
        await self._reservation.hold()

    def depart(self) -> None:
        self._reservation.attempt()
        self.wire = anyio.CancelScope(deadline=loop_time() + self.patience)

    def settle(self, reply: R) -> None:
        self._reservation.settle(reply.usage)

    def failed(self, error: ModelError) -> None:
        self._reservation.failed(error)

    def unknown(self) -> None:
        self._reservation.unknown()
        if self._journal is not None:
            note_unknown(self._journal, self.call)

    def retry(self, state: RetryCallState) -> None:
        if listening():
            emit(retried(self.call, self, state))

    def end(self, reply: R | None, error: BaseException | None) -> None:
        if listening():
            if isinstance(error, Cancelled) and loop_time() >= self._ends:
                error = time_over(self._reservation.budgets)
            emit(ended(self.call, self, reply, error))


async def send(trip: Trip[R], failed: TransientModelError | None = None) -> R:
    """Send a call until it has a reply or has failed for good.

    Args:
        failed: why the first attempt, which was made elsewhere, has failed.
    """
    trip.runtime.calls_open += 1
    try:
        try:
            if failed is not None:
                raise failed
            reply = await _attempt(trip)
        except TransientModelError as error:
            reply = await _again(trip, error)
    except BaseException as error:
        if trip.attempts > 1 and isinstance(error, ModelError):
            error.add_note(f"after {trip.attempts} attempts in {trip.seconds:.1f} s")
        trip.end(None, error)
        raise
    finally:
        trip.runtime.calls_open -= 1
    trip.end(reply, None)
    return reply


async def _again(trip: Trip[R], first: TransientModelError) -> R:
    """Try until an attempt succeeds or they are used up.

    Only a call whose first attempt failed pays for tenacity, whose every use leaves a reference cycle.
    """
    granted = admitter(trip.runtime, trip.call.account).grant_retry
    async for attempt in retrying(trip.retry, granted):
        with attempt:
            if attempt.retry_state.attempt_number == 1:
                raise first
            reply = await _attempt(trip)
    return reply


async def _attempt(trip: Trip[R]) -> R:
    """Make one attempt that counts: one that only probes a circuit and fails goes back to the queue."""
    first = trip.attempts == 0
    while True:
        await trip.hold()
        permit = admitter(trip.runtime, trip.call.account).permit(trip.call, first=first)
        try:
            async with permit:
                reply = await _attempt_once(trip)
                permit.settle(reply.usage)
                return reply
        except TransientModelError:
            if not permit.spared:
                raise
            first = False


async def _attempt_once(trip: Trip[R]) -> R:
    trip.depart()
    trip.attempts += 1
    sent = time.monotonic()
    try:
        with trip.wire:
            reply = _counted(trip.call, await trip.attempt())
            trip.settle(reply)
            return reply
    except ModelError as error:
        trip.failed(error)
        raise
    except BaseException:
        trip.unknown()
        raise
    finally:
        trip.last = time.monotonic() - sent
        trip.on_wire += trip.last
    late = no_reply(trip.call, trip.patience)
    trip.unknown()
    raise late


def no_reply(call: Call[Any], seconds: float) -> TransientModelError:
    return TransientModelError(f"{call.account.url} gave no reply within {seconds:g} s ({call.model})")


def note_unknown(journal: Journal, call: Call[Any]) -> None:
    """Have a journal's ledger count an attempt that nobody knows the end of, at what it may have used."""
    if journal.broken is not None:
        return
    from afnio.runtime.journal import Record

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
