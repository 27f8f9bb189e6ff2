"""Calls: the one path that every language model call takes.

    journal → flight → budget → admission → attempt → outcome → retry, or reply → journal

`perform` asks the journal first; a recorded reply costs nothing. A call that may share its reply with equal ones (its
temperature is 0, or the journal reuses replies) joins their `Flight` (`_flight.py`). The others go alone, as a `Solo`.
What follows is the same for both, and in `_attempts.py`.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, final

import anyio

from afnio.errors import TransientModelError
from afnio.runtime._admission import count_call
from afnio.runtime._attempts import Call, R, Trip, ended, no_reply, note_unknown, record_reply, retried, send
from afnio.runtime._budget import reservation_of, time_over
from afnio.runtime._flight import Overdue, share
from afnio.runtime._kernel import Runtime
from afnio.runtime._loop import Cancelled, deadline_at, loop_time
from afnio.runtime._waiting import active_journal
from afnio.runtime.events import CallReplayed, emit, listening

if TYPE_CHECKING:
    from tenacity import RetryCallState


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
