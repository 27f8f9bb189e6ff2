"""Admission: one queue for each account decides which call goes on the wire next.

A provider counts requests and tokens for each account, and refuses what is too much. So every attempt of every call
asks the account's `Admitter` first. It needs four things: a place in flight, a request and some tokens of what the
limits allow, and an account that isn't paused or broken. `enter` waits until there is all of it and `leave` gives back
what wasn't used.

The admitter takes the four together, for the head of the queue. If a call held a place while it waited for tokens, the
places could fill up with calls that can't go, and urgent ones would wait behind them.

Nothing here suspends between the choice of a call and the booking. `enter` admits a call on the spot if the queue is
empty; else an event wakes it. Whatever may let a call go (a reply, a timer, a new limit) runs `admit`.

`ReplicaAdmitter` is the same queue for several accounts that serve the same models. It chooses one of them when a call
goes, and not before.

How fast an account may go is in `_limits.py`, how it recovers from failures in `_health.py`. The table `AttemptOutcome`
in `_call.py` says what each ending of an attempt means for the account.
"""

from __future__ import annotations

import logging
import math
from contextvars import ContextVar
from enum import Enum, auto
from functools import partial
from typing import Final, Protocol

from afnio.errors import ProviderDownError, RateLimitedError, TransientModelError
from afnio.runtime._call_queue import CallQueue, Demand, Permit, QueueEntry
from afnio.runtime._health import AccountHealth, Concurrency, Refusals
from afnio.runtime._limits import (
    MINUTE,
    NO_LIMIT,
    Account,
    Allowance,
    Limits,
    OutputEstimate,
    RateLimits,
    ServerLimit,
    warn_once,
)
from afnio.runtime._loop import call_later, loop_time
from afnio.runtime.events import LimitsLearnt, Usage, emit

_logger = logging.getLogger("afnio")
# The replica that the attempt of this context goes to, or None if its account is no group.
current_replica: Final[ContextVar[Account | None]] = ContextVar("afnio_replica", default=None)

# Seconds of the shortest timer: a wait rounded down to 0 would spin.
_TICK: Final = 1e-4


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
        self.group: Admitter | None = None
        self._queue = CallQueue()
        self.sent = 0
        self.paused_until: float | None = None
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
                warn_once(self.url, name, "%s was given %s=%s, which is treated as unlimited", name, value)
        if limits.max_in_flight is not None:
            self.concurrency.set_ceiling(limits.max_in_flight)
        self.admit()

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
        if not self._queue and self.held(now) <= 0:
            cost = self._cost(demand)
            if (
                self.wait(cost, now) <= 0
                and self.wait_of_model(demand, cost, now) <= 0
                and (permit.gate is None or permit.gate.wait(cost, now) <= 0)
            ):
                self.take(permit, now)
                return permit
        entry = QueueEntry(permit)
        if permit.gate is not None:
            permit.gate.waits_in(self)
        self._queue.push(entry)
        self.admit()
        try:
            await entry.admission()
        except BaseException:
            if entry.waiting:
                self._queue.remove(entry)
            elif entry.error is None:
                self.release(permit)
            self.admit()
            raise
        if entry.error is not None:
            raise entry.error
        return permit

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
        self._left(permit)
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
        self.admit()

    def release(self, permit: Permit) -> None:
        """Take back a permit if its call was cancelled after it was admitted and before it ran again."""
        self._left(permit)
        self.health.circuit.released(probe=permit.probe)
        self._refund(permit, loop_time(), counted=False)

    def _left(self, permit: Permit) -> None:
        self.in_flight -= 1
        if permit.gate is not None:
            permit.gate.left()

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

    def admit(self) -> None:
        """Admit calls until the next one has to wait; then set a timer for it."""
        while self._queue:
            now = loop_time()
            wait = self.held(now)
            if wait <= 0:
                entry, wait = self._next(now)
                if entry is not None:
                    self._queue.admit(entry)
                    self.take(entry.permit, now)
                    entry.wake()
                    continue
            self._wake_in(wait, now)
            break
        if self.group is not None:
            self.group.admit()

    def held(self, now: float) -> float:
        """Return the seconds until any call may go; infinite if only a reply or the end of a pause can tell."""
        if self.in_flight >= self.concurrency.limit or self.paused_until is not None:
            return math.inf
        return max(self.health.circuit.wait(now), self.refusals.wait(now))

    @property
    def waiting(self) -> int:
        """How many calls wait for their turn."""
        return len(self._queue)

    def hold(self, now: float) -> tuple[str, float | None, float | None] | None:
        """Return what holds the waiting calls, the seconds until the next may go, and calls a second; from any thread.

        Without seconds, another call must end first. None if nothing holds them. Unlike `wait`, it changes nothing.
        """
        limits = self._limits or Limits()
        if pause := self.pause(now):
            return "it refuses requests", pause, None
        if self.in_flight >= self.concurrency.limit:
            whose = "your limit" if limits.max_in_flight == self.concurrency.limit else "by trying"
            return (
                f"{self.in_flight:,} of {self.concurrency.limit:,} requests in flight ({whose})",
                None,
                None,
            )
        refused, total = self.refusals.pacer, self.total
        holds = [(one, "your limit") for one in self._given.holds(now)]
        holds += [(one, "its limit") for model in list(self._models.values()) for one in model.holds(now)]
        holds += [] if refused is None else [(refused.hold(now), "learnt from refusals")]
        holds += [] if total is None else [(one, "the limit of all accounts") for one in total.holds(now)]
        slowest, whose = max(holds, key=lambda one: one[0].wait, default=(None, ""))
        if slowest is None or slowest.wait <= 0:
            return None
        return f"{slowest} ({whose})", slowest.wait, slowest.pace

    def pause(self, now: float) -> float:
        """Return the seconds for which nothing is sent because of a refusal."""
        return 0.0 if self.paused_until is None else max(0.0, self.paused_until - now)

    def _next(self, now: float) -> tuple[QueueEntry | None, float]:
        """Return the next call, or the seconds until there may be one.

        Runs that are paused or limited, and models whose window is full, are skipped. If the head lacks tokens of the
        whole account, everything waits for it: if smaller requests went ahead, a large one would never get through.
        """
        soonest = math.inf
        for entry in self._queue.heads():
            demand = entry.permit.demand
            cost, gate = self._cost(demand), entry.permit.gate
            wait = 0.0 if gate is None else gate.wait(cost, now)
            if wait > 0:
                soonest = min(soonest, wait)
                continue
            wait = self.wait(cost, now)
            if wait > 0:
                return None, min(soonest, wait)
            wait = self.wait_of_model(demand, cost, now)
            if wait <= 0:
                return entry, 0.0
            soonest = min(soonest, wait)
        return None, soonest

    def take(self, permit: Permit, now: float) -> None:
        demand = permit.demand
        cost = self._cost(demand)
        self.in_flight += 1
        self.concurrency.sent(self.in_flight)
        permit.number, self.sent = self.sent, self.sent + 1
        permit.probe = self.health.circuit.send(permit.number)
        self.refusals.sent(permit.number, now)
        permit.grants = [self._allowance(demand.model).take(cost, now)]
        if self._given.paced:
            permit.grants.append(self._given.take(cost, now))
        if self.total is not None:
            permit.grants.append(self.total.take(cost, now))
        if permit.gate is not None:
            permit.grants += permit.gate.take(cost, now)

    def _wake_in(self, seconds: float, now: float) -> None:
        due = now + max(seconds, _TICK)
        if due < math.inf and (self._timer is None or due < self._timer):
            self._timer = due
            call_later(due - now, partial(self._wake, due))

    def _wake(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self.admit()

    # Limits and failures

    def _allowance(self, model: str) -> Allowance:
        allowance = self._models.get(model)
        if allowance is None:
            allowance = self._models[model] = Allowance()
        return allowance

    def wait(self, cost: int, now: float) -> float:
        """Return the seconds until the limits that don't depend on the model allow a request, 0 if they do now."""
        wait = self._given.wait(cost, now)
        return wait if self.total is None else max(wait, self.total.wait(cost, now))

    def wait_of_model(self, demand: Demand, cost: int, now: float) -> float:
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
            self.fail_all(hopeless)
            raise hopeless from None  # it quotes the error

    def _learnt(self, requests: int, seconds: float) -> None:
        per_minute = requests / seconds * MINUTE
        warn_once(
            self.url,
            "refusals",
            "%s refuses requests; it let in %d within %.0f s, so calls are paced at %.0f per minute; the pace rises "
            "until it refuses again",
            requests,
            seconds,
            per_minute,
        )
        emit(LimitsLearnt(self.url, "", per_minute, None))

    def fail_all(self, error: ProviderDownError) -> None:
        for entry in self._queue.drain():
            entry.error = ProviderDownError(str(error), status=error.status)
            entry.wake()

    def _pause(self, seconds: float, now: float) -> None:
        """Send nothing for this account for a while: its other calls would be refused as well."""
        if seconds > 0 and now + seconds > (self.paused_until or 0.0):
            self.paused_until = now + seconds
            call_later(seconds, partial(self._resume, self.paused_until))

    def _resume(self, until: float) -> None:
        # Compare timers, not times: the clock may be a tick early. A longer pause has its own timer.
        if self.paused_until == until:
            self.paused_until = None
            self.admit()

    async def aclose(self) -> None:
        return


def _per_minute(limit: ServerLimit | None) -> float | None:
    return None if limit is None else limit.rate * MINUTE


# How attempts end, for their account.


class Ending(Protocol):
    """How an attempt ended, for its account: a row of `AttemptOutcome` in `_call.py`."""

    @property
    def request_counts(self) -> bool: ...
    @property
    def tokens(self) -> Tokens: ...
    @property
    def sign(self) -> Sign: ...


class Tokens(Enum):
    """The tokens that an attempt leaves behind in its account's windows."""

    # The tokens that its reply counted, or the reserve if it counted none.
    USED = auto()
    # The reserve, because the provider may have counted it.
    KEPT = auto()
    # Nothing: the provider turned it away, or it wasn't sent.
    FREE = auto()


class Sign(Enum):
    """The evidence of an attempt about the health of its account."""

    ANSWERS = auto()
    # It is alive, and over its limit. All of its calls pause.
    REFUSES = auto()
    # It fails if another attempt may help, and answers if not.
    BY_ERROR = auto()
    NOTHING = auto()
