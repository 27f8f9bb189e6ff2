"""Replicas: one queue for several accounts that serve the same models.

`admitter` returns the queue of an account or of a group of replicas. How a queue admits calls is in `_admission.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from typing import Final, final
from zlib import crc32

from afnio.errors import ProviderDownError, RateLimitedError, TransientModelError, UnreachableError
from afnio.runtime._admission import Admitter, Ending, Sign, Tokens
from afnio.runtime._call_queue import Demand, Permit
from afnio.runtime._health import GIVES_UP
from afnio.runtime._kernel import Runtime, existing_runtime
from afnio.runtime._limits import (
    Account,
    Allowance,
    Limits,
    RateLimits,
    given_limits,
    replicas_of,
    total_limits,
)
from afnio.runtime._loop import loop_time
from afnio.runtime.events import ReplicaLeftOut, ReplicaTakenBack, Usage, emit

_logger = logging.getLogger("afnio")


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
            # A call that tries a replica for all of them uses up no attempt.
            others = (other for other in self.replicas if other is not replica)
            permit.spared = permit.spared or tried or any(other.out_until <= now for other in others)
        elif ending.sign is not Sign.NOTHING:
            seconds = replica.take_back(permit.number, now)
            if seconds is not None:
                _logger.warning("%s answers again, after %.0f s", replica.account.url, seconds)
                emit(ReplicaTakenBack(self.url, replica.account.url, seconds))
        replica.count(permit, ending, error)
        if isinstance(error, RateLimitedError):
            error.retry_after = None  # it holds for one replica, which pauses
            permit.spared = any(not other.trouble for other in self.replicas)
        self.admit()
        if hopeless is not None and all(other.given_up is not None for other in self.replicas):
            permit.spared = False
            self.fail_all(hopeless)
            raise hopeless from None

    def release(self, permit: Permit) -> None:
        self.in_flight -= 1
        replica = self._replica_of(permit)
        replica.admitter.release(permit)
        replica.count(permit, None, None)

    def held(self, now: float) -> float:
        return min(replica.held(now) for replica in self.replicas)

    def pause(self, now: float) -> float:
        return min(replica.admitter.pause(now) for replica in self.replicas)

    def wait(self, cost: int, now: float) -> float:
        return 0.0  # what each of them allows depends on the replica, too

    def wait_of_model(self, demand: Demand, cost: int, now: float) -> float:
        return min(replica.wait(demand, cost, now) for replica in self.replicas)

    def take(self, permit: Permit, now: float) -> None:
        demand, cost = permit.demand, self._cost(permit.demand)
        ready = [replica for replica in self.replicas if replica.wait(demand, cost, now) <= 0]
        # Another attempt had better go elsewhere. The prefix would bring it back to the replica that failed.
        ready = [replica for replica in ready if replica.account != permit.account] or ready
        fewest = min(replica.admitter.in_flight for replica in ready)
        near = [replica for replica in ready if replica.admitter.in_flight <= fewest + max(1, 0.1 * fewest)]
        chosen = max(near, key=lambda replica: replica.preference(demand.prefix))
        self.in_flight += 1
        permit.account = chosen.account
        chosen.admitter.take(permit, now)
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
        return "refusing" if self.admitter.paused_until is not None else ""

    def held(self, now: float) -> float:
        """Return the seconds until it may take any call; infinite if only a reply can tell."""
        if self._trial is not None:
            return math.inf
        return max(self.out_until - now, self.admitter.held(now))

    def wait(self, demand: Demand, cost: int, now: float) -> float:
        """Return the seconds until it may take a call."""
        admitter = self.admitter
        return max(self.held(now), admitter.wait(cost, now), admitter.wait_of_model(demand, cost, now))

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
        self._known = self.admitter.sent
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
# Seconds for which a replica that can't be reached is left out: at first, and at most.
LEFT_OUT_MAX: Final = 30.0


def admitter(runtime: Runtime, account: Account) -> Admitter:
    """Return the account's admitter under the limits that hold now; on the runtime's thread."""
    members = replicas_of(account)
    make = partial(ReplicaAdmitter, runtime, account, members) if members else partial(Admitter, account)
    shared: Admitter = runtime.resource((Admitter, account, members), make)
    limits = given_limits(account)
    if limits is not None:
        shared.apply(limits)
    total = total_limits()
    # Each account waits for the total by its own timer. The accounts take turns: the one that comes too late sets its
    # timer after those of the others.
    shared.total = (
        None if total is None else runtime.resource((Allowance, total), partial(_Total, total)).allowance
    )
    return shared


class _Total:
    """The requests and tokens that all accounts of a runtime may still send."""

    def __init__(self, limits: Limits) -> None:
        self.allowance = Allowance.given(limits, loop_time())

    async def aclose(self) -> None:
        return


def on_wire(runtime: Runtime) -> int:
    """Return how many requests of the process are on the wire, over all accounts; from any thread."""
    return sum(one.in_flight for one in runtime.resources() if type(one) is Admitter)


def calls_on_wire() -> int:
    """Return how many requests this process has on the wire, over all accounts; from any thread."""
    runtime = existing_runtime()
    return 0 if runtime is None else on_wire(runtime)
