"""Admission: one queue for each account decides which call goes on the wire next.

A provider counts requests and tokens for each account, and refuses what is too much. So every attempt of every call
asks the account's `Admitter` first. It needs four things: a place in flight, a request and some tokens of what the
limits allow, and an account that isn't paused or broken. `enter` waits until there is all of it and `leave` gives back
what wasn't used.

The admitter takes the four together, for the head of the queue. If a call held a place while it waited for tokens, the
places could fill up with calls that can't go, and urgent ones would wait behind them.

Nothing here suspends between the choice of a call and the booking. `enter` admits a call on the spot if the queue is
empty; else an event wakes it. Whatever may let a call go (a reply, a timer, a new limit) runs `_admit`.

`ReplicaAdmitter` is the same queue for several accounts that serve the same models. It chooses one of them when a call
goes, and not before.

How fast an account may go is in `_limits.py`, how it recovers from failures in `_retries.py`. What each ending of an
attempt means for the account is the table `AttemptOutcome` in `_attempts.py`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import deque
from collections.abc import Hashable, Sequence
from contextvars import ContextVar
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol, final
from zlib import crc32

from afnio.errors import ProviderDownError, RateLimitedError, TransientModelError, UnreachableError
from afnio.runtime._kernel import Runtime, existing_runtime
from afnio.runtime._limits import (
    MINUTE,
    NO_LIMIT,
    Account,
    Allowance,
    Grant,
    Limits,
    OutputEstimate,
    RateLimits,
    ServerLimit,
    given_limits,
    replicas_of,
    total_limits,
    warn_once,
)
from afnio.runtime._loop import Signal, call_later, loop_time
from afnio.runtime._retries import GIVES_UP, AccountHealth, Concurrency, Refusals
from afnio.runtime._settings import CallPriority
from afnio.runtime.events import LimitsLearnt, ReplicaLeftOut, ReplicaTakenBack, Usage, emit

_logger = logging.getLogger("afnio")
_TICK: Final = 1e-4
"""Seconds of the shortest timer: a wait rounded down to 0 would spin."""


class Admitter:
    """Admits the calls of one account; on the runtime's loop.

    Attributes:
        in_flight: requests on the wire.
        concurrency: how many may be.
        health: the circuit breaker and the retry budget.
        refusals: the pace that was learnt from 429s.
        output: how long replies are.
        total: what all accounts together may still send, or None without such a limit.
        group: the queue of the replicas that the account is one of, or None.
    """

    def __init__(self, account: Account | None = None) -> None:
        self.url = "the account" if account is None else account.url
        self.concurrency = Concurrency()
        self.in_flight = 0
        self.health = AccountHealth(self.url)
        self.refusals = Refusals(self._learnt)
        self.output = OutputEstimate()
        self.total: Allowance | None = None
        self.group: ReplicaAdmitter | None = None
        self._queue = CallQueue()
        self._sent = 0
        self._paused_until: float | None = None
        self._timer: float | None = None
        self._limits: Limits | None = None
        self._given = Allowance()
        self._models: dict[str, Allowance] = {}

    def apply(self, limits: Limits) -> None:
        """Use new limits. Equal ones change nothing, so what was learnt in the meantime is kept."""
        if limits is self._limits or limits == self._limits:
            return
        self._limits = limits
        self._given = Allowance.given(limits, loop_time())
        for allowance in self._models.values():
            allowance.yield_to(limits)
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(limits, name)
            if value is not None and value >= NO_LIMIT:
                warn_once(self.url, name, "%s was given %s=%s, which is taken for no limit", name, value)
        if limits.max_in_flight is not None:
            self.concurrency.set_ceiling(limits.max_in_flight)
        self._admit()

    async def enter(self, demand: Demand, *, first: bool, last: Account | None = None) -> Permit:
        """Wait until an attempt of a call may go on the wire. Pass the permit to `leave` afterwards.

        Args:
            first: True for the call's first attempt.
            last: the replica that the attempt before it went to.

        Raises:
            ProviderDownError: if the account has failed for too long to wait for it.
        """
        permit = Permit(demand, first=first)
        permit.account = last
        now = loop_time()
        if first:
            self.health.retries.count_call(now)
        if not self._queue and self._held(now) <= 0:
            cost = self._cost(demand)
            if self._wait(cost, now) <= 0 and self._wait_of_model(demand, cost, now) <= 0:
                self._take(permit, now)
                count_call(waits=False)
                return permit
        entry = QueueEntry(permit)
        self._queue.push(entry)
        demand.priority.on_raise = partial(self._reorder, entry)
        self._admit()
        count_call(waits=entry.waiting)
        try:
            await entry.admission()
        except BaseException:
            if entry.waiting:
                self._queue.remove(entry)
            elif entry.error is None:
                self._release(permit)
            self._admit()
            raise
        if entry.error is not None:
            raise entry.error
        return permit

    def _reorder(self, entry: QueueEntry) -> None:
        if entry.waiting:
            self._queue.reorder(entry)
            self._admit()

    def leave(
        self,
        permit: Permit,
        ending: Ending,
        *,
        usage: Usage | None = None,
        limits: RateLimits | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Take back `permit`, settle what its attempt used, and learn from how it ended.

        Args:
            usage: the tokens that the reply counted.
            limits: what the response reported, be it a reply or an error.

        Raises:
            ProviderDownError: if the account has failed for so long that no call should wait for it.
        """
        now = loop_time()
        if limits is not None:
            self._update(permit, limits, now)
        self.in_flight -= 1
        if ending.tokens is Tokens.USED and usage is not None:
            self._settle(permit, usage, now)
        elif ending.tokens is Tokens.FREE:
            self._refund(permit, now, counted=ending.request_counts)
        if ending.sign is Sign.ANSWERS:
            self._answered(permit, now)
            if permit.first:
                self.concurrency.succeeded(now)
        elif ending.sign is Sign.NOTHING:
            self.health.circuit.released(probe=permit.probe)
        elif ending.sign is Sign.REFUSES:
            assert isinstance(error, RateLimitedError)
            self._limited(permit, error, now)
        elif isinstance(error, TransientModelError):
            self._failed(permit, error, now)
        else:
            self._answered(permit, now)
        self._admit()

    def _release(self, permit: Permit) -> None:
        """Take back a permit if its call was cancelled after it was admitted and before it ran again."""
        self.in_flight -= 1
        self.health.circuit.released(probe=permit.probe)
        self._refund(permit, loop_time(), counted=False)

    def _update(self, permit: Permit, limits: RateLimits, now: float) -> None:
        """Learn from the limits that a response reported for its model."""
        model = permit.demand.model
        allowance = self._allowance(model)
        grant = permit.grants[0]
        if grant.allowance is not allowance:
            return  # the model has been merged with another one since the request was sent
        if allowance.update(grant, limits, now, self._limits):
            emit(
                LimitsLearnt(self.url, model, _per_minute(allowance.requests), _per_minute(allowance.tokens))
            )
        if allowance.requests is not None and allowance.requests.shared:
            self._join(allowance, now)

    # The queue

    def _admit(self) -> None:
        """Admit calls until the next one has to wait; then set a timer for it."""
        while self._queue:
            now = loop_time()
            wait = self._held(now)
            if wait <= 0:
                entry, wait = self._next(now)
                if entry is not None:
                    self._queue.admit(entry)
                    self._take(entry.permit, now)
                    entry.wake()
                    continue
            self._wake_in(wait, now)
            break
        if self.group is not None:
            self.group._admit()

    def _held(self, now: float) -> float:
        """Return the seconds until any call may go; infinite if only a reply or the end of a pause can tell."""
        if self.in_flight >= self.concurrency.limit or self._paused_until is not None:
            return math.inf
        return max(self.health.circuit.wait(now), self.refusals.wait(now))

    def _next(self, now: float) -> tuple[QueueEntry | None, float]:
        """Return the next call, or the seconds until there may be one.

        Models whose window is full are skipped. If the head lacks tokens of the whole account, everything waits for it:
        if smaller requests went ahead, a large one would never get through.
        """
        soonest = math.inf
        for entry in self._queue.heads():
            demand = entry.permit.demand
            cost = self._cost(demand)
            wait = self._wait(cost, now)
            if wait > 0:
                return None, min(soonest, wait)
            wait = self._wait_of_model(demand, cost, now)
            if wait <= 0:
                return entry, 0.0
            soonest = min(soonest, wait)
        return None, soonest

    def _take(self, permit: Permit, now: float) -> None:
        demand = permit.demand
        cost = self._cost(demand)
        self.in_flight += 1
        self.concurrency.sent(self.in_flight)
        permit.number, self._sent = self._sent, self._sent + 1
        permit.probe = self.health.circuit.send(permit.number)
        self.refusals.sent(permit.number, now)
        permit.grants = [self._allowance(demand.model).take(cost, now)]
        if self._given.paced:
            permit.grants.append(self._given.take(cost, now))
        if self.total is not None:
            permit.grants.append(self.total.take(cost, now))

    def _wake_in(self, seconds: float, now: float) -> None:
        due = now + max(seconds, _TICK)
        if due < math.inf and (self._timer is None or due < self._timer):
            self._timer = due
            call_later(due - now, partial(self._wake, due))

    def _wake(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self._admit()

    # Limits and failures

    def _allowance(self, model: str) -> Allowance:
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = Allowance()
        return found

    def _wait(self, cost: int, now: float) -> float:
        """Return the seconds until the limits that don't depend on the model allow a request, 0 if they do now."""
        wait = self._given.wait(cost, now)
        return wait if self.total is None else max(wait, self.total.wait(cost, now))

    def _wait_of_model(self, demand: Demand, cost: int, now: float) -> float:
        """Return the seconds until the model's limits allow a request."""
        return self._allowance(demand.model).wait(cost, now)

    def _cost(self, demand: Demand) -> int:
        """Return the tokens to reserve: the prompt and the reply at its limit, or at its usual length without one."""
        output = demand.max_output
        if output is None:
            output = self.output.tokens(demand.purpose, demand.model, demand.site)
        return demand.prompt_tokens + output

    def _join(self, allowance: Allowance, now: float) -> None:
        """Count models together if they draw on the same limit."""
        assert allowance.requests is not None
        for model, other in list(self._models.items()):
            theirs = other.requests
            if other is not allowance and theirs is not None and theirs.limit == allowance.requests.limit:
                allowance.absorb(other, now, self._limits)
                self._models[model] = allowance

    def _settle(self, permit: Permit, usage: Usage, now: float) -> None:
        """Correct the tokens to those that the provider counted against the account.

        A request that limits its reply is counted with all of that limit when the provider admits it.
        """
        demand, most = permit.demand, permit.demand.max_output
        if usage.completion_tokens:
            self.output.observe(demand.purpose, demand.model, usage.completion_tokens, demand.site)
        if not usage.total_tokens:
            return
        prompt = usage.prompt_tokens or demand.prompt_tokens
        used = prompt + (usage.completion_tokens if most is None else most)
        for grant in permit.grants:
            grant.allowance.settle(grant, used, now)

    def _refund(self, permit: Permit, now: float, *, counted: bool) -> None:
        for grant in permit.grants:
            grant.allowance.refund(grant, now, counted=counted)

    def _answered(self, permit: Permit, now: float) -> None:
        self.health.answered(permit.number, now)
        self.refusals.answered(permit.number, now)

    def _limited(self, permit: Permit, error: RateLimitedError, now: float) -> None:
        self.health.answered(permit.number, now)
        self.concurrency.limited(now, error.retry_after)
        self._pause(self.refusals.refused(permit.number, permit.grants[0].at, error.retry_after, now), now)
        if self.refusals.shut:
            text = "%s refuses one request after another (%s); its calls wait, for an hour at most"
            warn_once(self.url, "shut", text, error)

    def _failed(self, permit: Permit, error: TransientModelError, now: float) -> None:
        permit.spared = permit.probe
        hopeless = self.health.failed(permit.number, error, now, probe=permit.probe)
        if hopeless is not None:
            permit.spared = False
            self._fail_all(hopeless)
            raise hopeless from None  # it quotes the error

    def _learnt(self, requests: int, seconds: float) -> None:
        per_minute = requests / seconds * MINUTE
        warn_once(
            self.url,
            "refusals",
            "%s refuses requests; it let in %d within %.0f s, so its calls go at %.0f a minute, and faster as long as "
            "it takes them",
            requests,
            seconds,
            per_minute,
        )
        emit(LimitsLearnt(self.url, "", per_minute, None))

    def _fail_all(self, error: ProviderDownError) -> None:
        for entry in self._queue.drain():
            entry.error = ProviderDownError(str(error), status=error.status)
            entry.wake()

    def _pause(self, seconds: float, now: float) -> None:
        """Send nothing for this account for a while: its other calls would be refused as well."""
        if seconds > 0 and now + seconds > (self._paused_until or 0.0):
            self._paused_until = now + seconds
            call_later(seconds, partial(self._resume, self._paused_until))

    def _resume(self, until: float) -> None:
        # Compare timers, not times: the clock may be a tick early. A longer pause has its own timer.
        if self._paused_until == until:
            self._paused_until = None
            self._admit()

    async def aclose(self) -> None:
        return


@final
class ReplicaAdmitter(Admitter):
    """One queue for replicas: accounts that serve the same models.

    A call gets its replica when one has a place for it, and not before: calls that were dealt out early would wait
    behind a replica that has just died. Limits, pauses and the circuit are each replica's, the retry budget is the
    group's.

    Of the replicas that may take a call, the one with the fewest calls in flight gets it. Among those within 10 % of
    the fewest, a hash of the prompt's beginning decides, so that equal prefixes meet the same cache.

    A replica that can't be reached is left out at once, for half a second, then twice as long each time. Then one call
    tries it. The call that found out goes to another replica and has used up no attempt. So does one that a replica
    refused while another is well: `retry-after` is said for one replica only.
    """

    def __init__(self, runtime: Runtime, account: Account, members: Sequence[Account]) -> None:
        super().__init__(account)
        self.replicas = [Replica(member, admitter(runtime, member)) for member in members]
        for replica in self.replicas:
            replica.admitter.group = self
            replica.admitter.health.is_replica = True

    def apply(self, limits: Limits) -> None:
        """Limits are given to the members."""

    def leave(
        self,
        permit: Permit,
        ending: Ending,
        *,
        usage: Usage | None = None,
        limits: RateLimits | None = None,
        error: BaseException | None = None,
    ) -> None:
        replica, now = self._replica_of(permit), loop_time()
        self.in_flight -= 1
        if ending.tokens is Tokens.USED and usage is not None and usage.completion_tokens:
            demand = permit.demand
            self.output.observe(demand.purpose, demand.model, usage.completion_tokens, demand.site)
        # Before any other call is admitted: the dead one has the fewest in flight.
        unreached = isinstance(error, UnreachableError)
        begins, tried = unreached and replica.leave_out(permit.number, now), replica.is_tried_by(permit)
        hopeless: ProviderDownError | None = None
        try:
            replica.admitter.leave(permit, ending, usage=usage, limits=limits, error=error)
        except ProviderDownError as given_up:
            hopeless = given_up
            begins = replica.leave_out(permit.number, now) or begins
        if unreached and hopeless is None and tried and now - replica.out_since >= GIVES_UP:
            hopeless = ProviderDownError(f"{error}, for {(now - replica.out_since) / 60:.0f} minutes")
        if begins:
            left = any(not other.trouble for other in self.replicas)
            go = "go to its other replicas" if left else "wait, because none of its replicas is well"
            _logger.warning("%s; the calls of %s %s", error, self.url, go)
            emit(ReplicaLeftOut(self.url, replica.account.url, str(error)))
        if unreached or hopeless is not None:
            replica.given_up = hopeless or replica.given_up
            # Who tries a replica for all of them pays with no attempt.
            others = (other for other in self.replicas if other is not replica)
            permit.spared = permit.spared or tried or any(other.out_until <= now for other in others)
        elif ending.sign is not Sign.NOTHING:
            seconds = replica.take_back(permit.number, now)
            if seconds is not None:
                _logger.warning("%s answers again, after %.0f s", replica.account.url, seconds)
                emit(ReplicaTakenBack(self.url, replica.account.url, seconds))
        replica.count(permit, ending, error)
        if isinstance(error, RateLimitedError):
            error.retry_after = None  # it was said for one replica, which pauses
            permit.spared = any(not other.trouble for other in self.replicas)
        self._admit()
        if hopeless is not None and all(other.given_up is not None for other in self.replicas):
            permit.spared = False
            self._fail_all(hopeless)
            raise hopeless from None

    def _release(self, permit: Permit) -> None:
        self.in_flight -= 1
        replica = self._replica_of(permit)
        replica.admitter._release(permit)
        replica.count(permit, None, None)

    def _held(self, now: float) -> float:
        return min(replica.held(now) for replica in self.replicas)

    def _wait(self, cost: int, now: float) -> float:
        return 0.0  # what each of them allows depends on the replica, too

    def _wait_of_model(self, demand: Demand, cost: int, now: float) -> float:
        return min(replica.wait(demand, cost, now) for replica in self.replicas)

    def _take(self, permit: Permit, now: float) -> None:
        demand, cost = permit.demand, self._cost(permit.demand)
        ready = [replica for replica in self.replicas if replica.wait(demand, cost, now) <= 0]
        # Another attempt had better go elsewhere. The prefix would bring it back to the replica that failed.
        ready = [replica for replica in ready if replica.account != permit.account] or ready
        fewest = min(replica.admitter.in_flight for replica in ready)
        near = [replica for replica in ready if replica.admitter.in_flight <= fewest + max(1, 0.1 * fewest)]
        chosen = max(near, key=lambda replica: replica.preference(demand.prefix))
        self.in_flight += 1
        permit.account = chosen.account
        chosen.admitter._take(permit, now)
        chosen.sent(permit)

    def _replica_of(self, permit: Permit) -> Replica:
        return next(replica for replica in self.replicas if replica.account == permit.account)


@final
class Replica:
    """One of several accounts that serve the same models.

    Attributes:
        out_until: the time until which it is left out, because it couldn't be reached.
        out_since: when it was left out last.
        given_up: the error with which it was given up, until it answers again; or None.
        answered, failed: attempts that it answered, and that failed or were refused.
        outages: how often it was left out.
    """

    def __init__(self, account: Account, admitter: Admitter) -> None:
        self.account = account
        self.admitter = admitter
        self.out_until = -math.inf
        self.given_up: ProviderDownError | None = None
        self.answered = self.failed = self.outages = 0
        self._pause = 0.0
        self.out_since = 0.0
        self._known = 0  # requests before this number say nothing new about an outage
        self._trial: Permit | None = None
        self._digest = crc32(account.url.encode())

    @property
    def trouble(self) -> str:
        """Why it gets no calls, or fewer: "out", "failing" or "refusing"; "" if it is well."""
        if self._pause:
            return "out"
        if self.admitter.health.circuit.opened_at is not None:
            return "failing"
        return "refusing" if self.admitter._paused_until is not None else ""

    def held(self, now: float) -> float:
        """Return the seconds until it may take any call; infinite if only a reply can tell."""
        if self._trial is not None:
            return math.inf
        return max(self.out_until - now, self.admitter._held(now))

    def wait(self, demand: Demand, cost: int, now: float) -> float:
        """Return the seconds until it may take a call."""
        admitter = self.admitter
        return max(self.held(now), admitter._wait(cost, now), admitter._wait_of_model(demand, cost, now))

    def sent(self, permit: Permit) -> None:
        """A call goes to it. If it is left out, this is the one that tries it."""
        if self._pause:
            self._trial = permit

    def is_tried_by(self, permit: Permit) -> bool:
        return self._trial is permit

    def leave_out(self, number: int, now: float) -> bool:
        """Leave it out because request `number` didn't reach it. Return True if this is a new outage.

        A thousand calls may be on their way to a replica that dies. They are one failure, not a thousand.
        """
        if number < self._known:
            return False
        begins = not self._pause
        if begins:
            self.out_since = now
            self.outages += 1
        self._pause = LEFT_OUT_FIRST if begins else min(LEFT_OUT_MAX, 2 * self._pause)
        self.out_until = now + self._pause
        self._known = self.admitter._sent
        return begins

    def take_back(self, number: int, now: float) -> float | None:
        """Use it again because request `number` reached it. Return how long it was left out, or None if it wasn't."""
        if not self._pause or number < self._known:
            return None
        self._pause, self.out_until, self.given_up = 0.0, -math.inf, None
        return now - self.out_since

    def count(self, permit: Permit, ending: Ending | None, error: BaseException | None) -> None:
        """Count an attempt that has ended; one without an `ending` was never sent."""
        if self._trial is permit:
            self._trial = None
        if ending is None or ending.sign is Sign.NOTHING:
            return
        if isinstance(error, TransientModelError):
            self.failed += 1
        else:
            self.answered += 1

    def preference(self, prefix: int) -> int:
        """Return a number that ranks the replicas for a prefix (rendezvous hashing, Thaler and Ravishankar 1998)."""
        return crc32(prefix.to_bytes(8, "big"), self._digest)


LEFT_OUT_FIRST: Final = 0.5
LEFT_OUT_MAX: Final = 30.0
"""Seconds for which a replica that can't be reached is left out: at first, and at most."""

current_replica: Final[ContextVar[Account | None]] = ContextVar("afnio_replica", default=None)
"""The replica that the attempt of this context goes to, or None if its account is no group."""


def _per_minute(limit: ServerLimit | None) -> float | None:
    return None if limit is None else limit.rate * MINUTE


def admitter(runtime: Runtime, account: Account) -> Admitter:
    """Return the account's admitter under the limits that hold now; on the runtime's thread."""
    members = replicas_of(account)
    make = partial(ReplicaAdmitter, runtime, account, members) if members else partial(Admitter, account)
    found: Admitter = runtime.resource((Admitter, account, members), make)
    limits = given_limits(account)
    if limits is not None:
        found.apply(limits)
    total = total_limits()
    # Each account waits for the total by its own timer. The accounts take turns: the one that comes too late sets its
    # timer after those of the others.
    found.total = (
        None if total is None else runtime.resource((Allowance, total), partial(_Total, total)).allowance
    )
    return found


class _Total:
    """What all accounts of a runtime may still send."""

    def __init__(self, limits: Limits) -> None:
        self.allowance = Allowance.given(limits, loop_time())

    async def aclose(self) -> None:
        return


def on_wire(runtime: Runtime) -> int:
    """Return how many requests of the process are on the wire, over all accounts; from any thread."""
    return sum(found.in_flight for found in runtime.resources() if type(found) is Admitter)


def calls_on_wire() -> int:
    """Return how many requests this process has on the wire, over all accounts; from any thread."""
    runtime = existing_runtime()
    return 0 if runtime is None else on_wire(runtime)


# The queue.


PATIENCE: Final = 16
"""Calls that may overtake the one that has waited longest."""


@final
class CallQueue:
    """Waiting calls in the order of their priority, with a line for each model.

    A model whose window is full doesn't hold up the other models. Within a line the class of the priority comes first,
    then retries before first attempts, then deeper calls (so that samples in progress finish before new ones
    begin), then the order of arrival.

    Ageing prevents starvation. When 16 calls have overtaken the one that has waited longest, that one is next. A
    serving call waits for one such turn at most.
    """

    def __init__(self) -> None:
        self._lines: dict[str, tuple[list[QueueEntry], deque[QueueEntry]]] = {}
        self._orders = itertools.count()
        self._waiting = 0
        self._overtaken = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, entry: QueueEntry) -> None:
        entry.order = next(self._orders)
        line = self._lines.get(entry.permit.demand.model)
        if line is None:
            line = self._lines[entry.permit.demand.model] = ([], deque())
        heapq.heappush(line[0], entry)
        line[1].append(entry)
        self._waiting += 1

    def heads(self) -> list[QueueEntry]:
        """Return the next call of each line, the most urgent one first."""
        lines = list(self._lines.values())
        by_age = self._overtaken >= PATIENCE
        heads = [head for line in lines if (head := _oldest(line) if by_age else _foremost(line)) is not None]
        if len(heads) > 1:
            heads.sort(key=(lambda entry: entry.order) if by_age else None)
        return heads

    def admit(self, entry: QueueEntry) -> None:
        """Take out one of the heads."""
        oldest = min(head.order for line in self._lines.values() if (head := _oldest(line)) is not None)
        overtakes = entry.order != oldest and self._overtaken < PATIENCE
        self._overtaken = self._overtaken + 1 if overtakes else 0
        self.remove(entry)

    def remove(self, entry: QueueEntry) -> None:
        """Take out an entry that was admitted or is cancelled."""
        if entry.waiting:
            entry.waiting = False
            self._waiting -= 1
            if not self._waiting:
                self._lines.clear()

    def reorder(self, entry: QueueEntry) -> None:
        """Move an entry whose call became more urgent. This is rare, so the whole line is sorted."""
        entry.reorder()
        heapq.heapify(self._lines[entry.permit.demand.model][0])

    def drain(self) -> list[QueueEntry]:
        """Take out all, and return them."""
        entries = [entry for line in self._lines.values() for entry in line[1] if entry.waiting]
        for entry in entries:
            self.remove(entry)
        return entries


def _foremost(line: tuple[list[QueueEntry], deque[QueueEntry]]) -> QueueEntry | None:
    heap = line[0]
    while heap and not heap[0].waiting:
        heapq.heappop(heap)
    return heap[0] if heap else None


def _oldest(line: tuple[list[QueueEntry], deque[QueueEntry]]) -> QueueEntry | None:
    arrivals = line[1]
    while arrivals and not arrivals[0].waiting:
        arrivals.popleft()
    return arrivals[0] if arrivals else None


@final
class QueueEntry:
    """A call in the queue. A cancelled one stays until its turn comes: searching for it would cost more."""

    __slots__ = ("_key", "_turn", "error", "order", "permit", "waiting")

    def __init__(self, permit: Permit) -> None:
        self.permit = permit
        self.order = 0
        self.waiting = True
        self.error: Exception | None = None
        self._turn: Signal | None = None
        self.reorder()

    async def admission(self) -> None:
        """Wait until the entry was admitted, or failed with its `error`."""
        if self.waiting:
            self._turn = Signal()
            await self._turn.wait()

    def wake(self) -> None:
        """Let the call run: it isn't in the queue any more."""
        if self._turn is not None:
            self._turn.set()

    def reorder(self) -> None:
        """Read the call's priority again. The heap of its line must be sorted afterwards."""
        demand = self.permit.demand
        self._key = (demand.priority.level, self.permit.first, -demand.depth)

    def __lt__(self, other: QueueEntry) -> bool:
        return (self._key, self.order) < (other._key, other.order)


# What calls and their attempts are for admission.


@final
class Permit:
    """A place on the wire for one attempt of a call; `Admitter.enter` fills it in, `leave` takes it back.

    Attributes:
        first: True for the call's first attempt.
        number: counts the account's requests in the order of sending.
        probe: True if the attempt tries an account whose circuit is open.
        spared: True if it was a probe and failed. It doesn't use up an attempt of its call.
        grants: what it took from the model's allowance, and from the given limits.
        account: the replica that it goes to, until then that of the attempt before; None if the account is no group.
    """

    __slots__ = ("account", "demand", "first", "grants", "number", "probe", "spared")

    def __init__(self, demand: Demand, *, first: bool) -> None:
        self.demand = demand
        self.first = first
        self.number = 0
        self.probe = self.spared = False
        self.grants: list[Grant] = []
        self.account: Account | None = None


class Demand(Protocol):
    """A call as admission sees it."""

    @property
    def priority(self) -> CallPriority: ...
    @property
    def depth(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def site(self) -> Hashable: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_output(self) -> int | None: ...
    @property
    def prefix(self) -> int: ...


class Ending(Protocol):
    """How an attempt ended, for its account: a row of `AttemptOutcome` in `_attempts.py`."""

    @property
    def request_counts(self) -> bool: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def sign(self) -> Sign: ...


class Tokens(Enum):
    """What an attempt leaves behind in its account's windows of tokens."""

    USED = auto()
    """The tokens that its reply counted, or the reserve if it counted none."""
    KEPT = auto()
    """The reserve, because the provider may have counted it."""
    FREE = auto()
    """Nothing: the provider turned it away, or it wasn't sent."""


class Sign(Enum):
    """What an attempt shows about the health of its account."""

    ANSWERS = auto()
    REFUSES = auto()
    """It is alive, and over its limit. All of its calls pause."""
    BY_ERROR = auto()
    """It fails if another attempt may help, and answers if not."""
    NOTHING = auto()


# Congestion: speculative work stops if the calls of its context have to wait.


CONGESTED: Final = 0.25
"""Share of a context's calls that waited, or were replayed, at which it counts as congested."""


@final
class Congestion:
    """Counts the calls that are launched in a context, and those of them that had to wait for admission.

    Replayed calls count as waiting. They take no time, so making other calls ahead of need saves nothing, and those
    others may be missing from the journal.

    >>> congestion = Congestion()
    >>> congestion.calls, congestion.waited = 10, 5
    >>> congestion.high
    True
    """

    __slots__ = ("calls", "waited")

    def __init__(self) -> None:
        self.calls = 0
        self.waited = 0

    def count(self, *, waits: bool) -> None:
        self.calls += 1
        self.waited += waits

    @property
    def high(self) -> bool:
        return self.calls > 0 and self.waited >= CONGESTED * self.calls


congestion: Final[ContextVar[Congestion | None]] = ContextVar("afnio_congestion", default=None)
"""The counter of the calls launched here, or None."""


def count_call(*, waits: bool) -> None:
    """Count a call of the context; on the runtime's thread."""
    counting = congestion.get()
    if counting is not None:
        counting.count(waits=waits)
