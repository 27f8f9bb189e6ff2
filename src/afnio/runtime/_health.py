"""Health: how an account recovers from refusals and failures.

A call whose attempt failed is tried again, with a growing, random delay (`_call.py`). That is right for one failure and
wrong for many: a thousand calls that all retry against a broken server keep it broken, and one that is over its limit
refuses all of them. So the account has its own state, and its calls wait in the queue instead:

* `Refusals`: after a 429 the whole account pauses, is tried by one call, and finds the pace that the provider takes.
* `Circuit`: an account that fails again and again is tried by one call at a time (circuit breaker).
* `RetryBudget`: retries must not become more than the calls themselves.
* `Concurrency`: how many requests may be in flight, found by trying.

`AccountHealth` holds the circuit and the retry budget of an account, and logs what happens to them. `Admitter` in
`_admission.py` asks all of them before it sends anything.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from afnio.errors import (
    ProviderDownError,
    TransientModelError,
    UnreachableError,
)
from afnio.runtime._limits import Pacer
from afnio.runtime.events import CircuitClosed, CircuitOpened, emit

if TYPE_CHECKING:
    pass

# At 20 % faults five attempts lose some call in 11 % of runs of 350 calls, eight in 0.1 %.
ATTEMPTS: Final = 8


def is_first_contact(error: BaseException | None) -> bool:
    """Return True if the host has never been reached. `AccountHealth` gives up on it after some seconds."""
    return isinstance(error, UnreachableError) and error.first_contact


# The health of one account.


# Seconds after which the next attempt is the last one to a host that was never reached.
FIRST_CONTACT: Final = 2.5
# Seconds without an attempt after which a host that was never reached gets the same time again.
ANEW: Final = 60.0
# Log lines about the retries of one account in a minute: an outage of thousands of calls must not fill the
# log.
LINES: Final = 10
_logger = logging.getLogger("afnio")


@final
class AccountHealth:
    """The circuit and the retry budget of one account, and its log lines.

    Attributes:
        is_replica: True if other accounts serve the same models. It is left out while it can't be reached, so its
            circuit is for other failures, and it has one from the start. A lone account has none until it has
            answered, so that a wrong URL is reported soon. But a replica that is still loading its model fails fast,
            and would draw the most calls.
        reached: True once the host has answered.

    >>> health = AccountHealth("http://localhost:8000/v1")
    >>> health.answered(0, now=0.0)
    >>> health.circuit.answered
    True
    """

    def __init__(self, url: str) -> None:
        # Imported now and not at the first failure, which may be that no more files can be opened.
        from aiolimiter import AsyncLimiter

        self.circuit = Circuit()
        self.retries = RetryBudget()
        self.is_replica = False
        self._url = url
        self._lines = AsyncLimiter(LINES, 60.0)
        self._warned = False
        self.reached = False
        self._unreached: tuple[float, float] | None = None  # since when, and at last when

    def answered(self, number: int, now: float) -> None:
        """Count an answer to a request. A refusal is one, too: the account is alive."""
        self.reached = True
        seconds = self.circuit.succeeded(number, now)
        if seconds is not None:
            _logger.warning("%s answers again, after %.0f s", self._url, seconds)
            emit(CircuitClosed(self._url, seconds))

    def failed(
        self, number: int, error: TransientModelError, now: float, *, probe: bool
    ) -> ProviderDownError | None:
        """Count a failure. Return the error for all waiting calls if the account is given up."""
        if not isinstance(error, UnreachableError):
            self.reached = True
        elif not self.reached:
            error.first_contact = True
            if self._never_reached(now):
                return ProviderDownError(str(error))
        circuit = self.circuit
        if self.is_replica:
            circuit.answered = True
            if isinstance(error, UnreachableError):
                circuit.released(probe=probe)
                return None
        if circuit.failed(number, now, probe=probe):
            failed, sent = circuit.opened_by
            _logger.warning(
                "%d of %d requests sent one after another to %s have failed (%s); its calls wait, and one at a "
                "time tries it",
                failed,
                sent,
                self._url,
                error,
            )
            emit(CircuitOpened(self._url, failed, str(error)))
        if not (probe and circuit.given_up(now)):
            return None
        assert circuit.opened_at is not None
        return ProviderDownError(
            f"{self._url} has answered nothing for {(now - circuit.opened_at) / 60:.0f} minutes: "
            f"{circuit.failures} requests failed, at last with {error}; start again when it works",
            status=error.status,
        )

    def _never_reached(self, now: float) -> bool:
        """Return True if a host that was never reached is given up: a wrong URL, or a server that isn't running."""
        since, last = self._unreached or (now, now)
        if now - last > ANEW:
            since = now
        self._unreached = since, now
        return now - since >= FIRST_CONTACT

    async def log_retry(self, error: BaseException | None, seconds: float) -> None:
        """Log a retry, or skip the line if there were `LINES` in the last minute: a call never waits for its line."""
        if self._lines.has_capacity():
            await self._lines.acquire()
            _logger.info("%s; trying again in %.1f s", error, seconds)

    def grant_retry(self, error: BaseException, now: float) -> bool:
        """Take one retry from the budget. If there is none, add a note to the error."""
        if not self._warned and not self.circuit.answered:
            # On the first failure: with a wrong URL the user shouldn't wait a minute for all attempts.
            how = "for some seconds" if is_first_contact(error) else f"(1 of {ATTEMPTS})"
            _logger.warning("%s; trying again %s", error, how)
        self._warned = True
        if is_first_contact(error):
            return True
        if self.retries.spend(now):
            return True
        error.add_note(
            f"not tried again: {self._url} used its retry budget: {self.retries.retries} retries in ten minutes for "
            f"{self.retries.calls} calls (limit: {self.retries.calls} + {SPARE})"
        )
        return False


# The retry budget.


# Seconds that calls and retries are counted over.
PERIOD: Final = 600.0
# Retries for each call.
RETRY_SHARE: Final = 1.0
# Retries on top, for accounts with few calls.
SPARE: Final = 50
_SLICES: Final = 60


@final
class RetryBudget:
    """Grants a retry while the last ten minutes have fewer than 100 % of their calls and 50 more.

    Counts are kept in slices of ten seconds: exact enough, and a million calls cost sixty numbers.

    >>> budget = RetryBudget()
    >>> sum(budget.spend(now=0.0) for _ in range(100))
    50
    >>> budget.count_call(now=1.0)
    >>> budget.spend(now=1.0), budget.spend(now=1.0)
    (True, False)
    """

    def __init__(self) -> None:
        self.calls = 0
        self.retries = 0
        self._slices: dict[int, list[int]] = {}

    def count_call(self, now: float) -> None:
        """Count the first attempt of a call."""
        self._slice(now)[0] += 1
        self.calls += 1

    def spend(self, now: float) -> bool:
        """Take one retry. Return False if there is none left."""
        current = self._slice(now)
        if self.retries >= RETRY_SHARE * self.calls + SPARE:
            return False
        current[1] += 1
        self.retries += 1
        return True

    def _slice(self, now: float) -> list[int]:
        index = int(now // (PERIOD / _SLICES))
        counts = self._slices.get(index)
        if counts is None:
            counts = self._slices[index] = [0, 0]
            for old in [old for old in self._slices if old <= index - _SLICES]:
                calls, retries = self._slices.pop(old)
                self.calls -= calls
                self.retries -= retries
        return counts


# Refusals, and the pace that is learnt from them.


# Seconds before a refusal whose requests are evidence of what the account takes.
LOOKBACK: Final = 60.0
STRAY: Final = 5
# Refusals that are treated as chance: this number, and this share of what was sent. Slowing down for random
# refusals would not reduce them, so the account would get slower and slower.
STRAY_SHARE: Final = 0.3
# The same share while a learnt pace holds: then there is a limit.
PACED_SHARE: Final = 0.1
# Refused probes, one after another, that prove a limit.
CONFIRMED: Final = 3
# Seconds to wait after a refusal without `retry-after`; each refused probe doubles them.
FIRST_PAUSE: Final = 0.25
LAST_PAUSE: Final = 5.0
# A learnt pace grows by this in each span of time that it was learnt from.
PACE_GROWTH: Final = 1.5
# Spans after which it is forgotten.
FORGOTTEN: Final = 5
# Requests that a span is taken to hold at least: fewer are too few to measure a pace.
_LEAST: Final = 5


@final
class _Second:
    """Requests sent within one second, and how many of them were refused."""

    __slots__ = ("first", "refused", "sent")

    def __init__(self, first: float) -> None:
        self.first = first
        self.sent = self.refused = 0


@final
class Refusals:
    """Probes an account that refuses requests, and learns its pace if no header reports it.

    After a refusal nothing is sent for a while, then one request, a probe. The account is open again if the probe is
    answered, or isn't refused within twice the time that the last refusal took: a reply may take minutes, a refusal
    doesn't.

    A few refusals are chance. If there are more, the pace is the number of requests that were let in between the first
    one and the successful probe, divided by that time. This needs no knowledge of the window: 300 requests in the
    first second and none in the next 59 are 300 a minute. The pace may be too slow later, when the limit has changed
    or other clients have gone. So it grows until the account refuses again, and is forgotten if it doesn't.

    Requests are counted at the time at which they were sent. Refusals overtake replies, so counted on arrival there
    would seem to be more of them.

    Args:
        learnt: called with the pace: requests, and in how many seconds.
    """

    def __init__(self, learnt: Callable[[int, float], None]) -> None:
        self.pacer: Pacer | None = None
        self._learnt = learnt
        self._seconds: dict[int, _Second] = {}
        self._last = -1
        self._paused_after = -1  # the last request that was sent before the refusal; later ones are probes
        self._refused_probes = 0
        self._refusing = False
        self._probed_at: float | None = None
        self._patience = 0.0
        self._rate = 0.0
        self._since = 0.0
        self._span = LOOKBACK
        self._grown = 0

    @property
    def shut(self) -> bool:
        """True if the account refuses one probe after another."""
        return self._refused_probes >= CONFIRMED

    def wait(self, now: float) -> float:
        """Return the seconds until a request may go, 0 if it may now."""
        if self._probed_at is not None:
            wait = self._probed_at + self._patience - now
            if wait > 0:
                return wait
            self._open(now)
        if self.pacer is None:
            return 0.0
        spans = int((now - self._since) / self._span)
        if spans >= FORGOTTEN:
            self.pacer = None
            return 0.0
        if spans > self._grown:
            self._grown = spans
            self.pacer.retune(self._rate * PACE_GROWTH**spans, 60.0)
        return self.pacer.wait(now)

    def sent(self, number: int, now: float) -> None:
        """Count a request that goes out; numbers grow."""
        self._last = number
        if self._refusing and self._probed_at is None:
            self._probed_at = now
        if self.pacer is not None:
            self.pacer.take(now)
        second = self._seconds.get(int(now))
        if second is None:
            if not self._refusing:  # until it is open again, what came before the refusal is needed
                for old in [old for old in self._seconds if old < now - LOOKBACK]:
                    del self._seconds[old]
            second = self._seconds[int(now)] = _Second(now)
        second.sent += 1

    def answered(self, number: int, now: float) -> None:
        """Note that a request was not refused."""
        if self._refusing and number > self._paused_after:
            self._open(now)

    def refused(self, number: int, sent_at: float, retry_after: float | None, now: float) -> float:
        """Count a refusal. Return the seconds for which nothing should be sent."""
        second = self._seconds.get(int(sent_at))
        if second is not None:
            second.refused += 1
        if number <= self._paused_after:
            return retry_after or 0.0  # the refusal that is known, once more
        self._paused_after = self._last
        self._refused_probes += self._refusing
        self._refusing = True
        self._probed_at = None
        self._patience = min(LAST_PAUSE, 0.1 + 2 * (now - sent_at))
        if retry_after is not None and not self._refused_probes:
            return retry_after
        return max(retry_after or 0.0, min(LAST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._refused_probes, 10)))

    def _open(self, now: float) -> None:
        sent = sum(second.sent for second in self._seconds.values())
        refused = sum(second.refused for second in self._seconds.values())
        share = STRAY_SHARE if self.pacer is None else PACED_SHARE
        confirmed = self.shut or refused > STRAY + share * sent
        self._refusing, self._refused_probes, self._probed_at = False, 0, None
        if not confirmed:
            return
        # A pause may have been of no length.
        span = max(0.1, now - min(second.first for second in self._seconds.values()))
        self._rate = max(_LEAST, sent - refused) * 60.0 / span
        self.pacer = Pacer(self._rate)
        self._since, self._span, self._grown = now, min(max(1.0, span), LOOKBACK), 0
        self._seconds.clear()
        self._learnt(sent - refused, span)


# The circuit breaker.


# Requests that were sent one after another and are judged together.
BLOCK: Final = 22
# Failures among them.
OPENS_AFTER: Final = 20
# Seconds until the first probe; each failed probe doubles it.
FIRST_PROBE: Final = 1.0
# Seconds between probes at most.
LAST_PROBE: Final = 30.0
# Seconds of failed probes after which the waiting calls fail.
GIVES_UP: Final = 600.0


@final
class Circuit:
    """A circuit breaker (Nygard, Release It!, 2007): closed, open, half open while a probe is in flight.

    It opens when 20 of 22 requests that were sent one after another have failed. The order of sending counts, not that
    of arrival: failures are often quicker than replies, so a fifth of 256 requests may fail before the first of the
    others is answered.

    Failures are transient errors except rate limits, which mean that the account is alive. An account that has never
    answered has no circuit: calls shouldn't wait for a wrong URL.

    Requests are known by a number that grows with each one sent.

    >>> circuit = Circuit()
    >>> circuit.succeeded(0, now=0.0)
    >>> any([circuit.failed(number, now=5.0, probe=False) for number in range(1, 21)])
    True
    >>> circuit.wait(now=5.0)
    1.0
    """

    def __init__(self) -> None:
        self.answered = False
        self.failures = 0
        """Since the last answer."""
        self.opened_at: float | None = None
        self.opened_by = (0, 0)
        """The failures that opened it last, and the requests that they were among."""
        self._sent = 0
        self._blocks: dict[int, int] = {}
        self._newest_answered = 0
        self._probing = False
        self._next_probe = 0.0
        self._pause = FIRST_PROBE

    def wait(self, now: float) -> float:
        """Return the seconds until a call may go; infinite while a probe is in flight."""
        if self.opened_at is None:
            return 0.0
        return math.inf if self._probing else max(0.0, self._next_probe - now)

    def send(self, number: int) -> bool:
        """Count a call that is sent. Return True if it is a probe."""
        self._sent = number
        self._probing = self.opened_at is not None
        return self._probing

    def succeeded(self, number: int, now: float) -> float | None:
        """Close the circuit. Return the seconds for which it was open, or None if it was closed."""
        opened_at, self.opened_at = self.opened_at, None
        self.answered = True
        self.failures = 0
        self._probing = False
        self._pause = FIRST_PROBE
        block = number // BLOCK
        if block > self._newest_answered:
            # Forget what was sent before it: a request that fails late proves nothing about now.
            self._newest_answered = block
            self._blocks = {late: failed for late, failed in self._blocks.items() if late >= block}
        return None if opened_at is None else now - opened_at

    def failed(self, number: int, now: float, *, probe: bool) -> bool:
        """Count a failure. Return True if it opened the circuit."""
        self.failures += 1
        if probe:
            self._probing = False
            self._pause = min(LAST_PROBE, 2 * self._pause)
            self._next_probe = now + self._pause
        block = number // BLOCK
        if self.opened_at is not None or not self.answered or block < self._newest_answered:
            return False
        failed = self._blocks[block] = self._blocks.get(block, 0) + 1
        if failed < OPENS_AFTER:
            return False
        self._blocks.clear()
        self.opened_at = now
        self.opened_by = failed, max(failed, min(BLOCK, self._sent - block * BLOCK + 1))
        self._next_probe = now + self._pause
        return True

    def released(self, *, probe: bool) -> None:
        """End a call that proves nothing, because it was cancelled. The next one may probe."""
        if probe:
            self._probing = False

    def given_up(self, now: float) -> bool:
        """Return True if probes have failed for too long to keep calls waiting."""
        return self.opened_at is not None and now - self.opened_at >= GIVES_UP


# Concurrency: additive increase, multiplicative decrease (Chiu and Jain, 1989) with the slow start of TCP. The limit
# doubles per clean round until the first rate limit, and grows by a twentieth after it. Each episode of rate limits
# cuts it to 0.8. It grows only while the limit is really used, because unused headroom proves nothing. (The saturation
# gate is inspect_ai's. Latency isn't used: a busy client alone can double it.)


START: Final = 64
CEILING: Final = 1024
CUT: Final = 0.8
GROWTH: Final = 1.05
SATURATION: Final = 0.8
# Seconds after a cut in which further rate limits belong to the same episode.
COOLDOWN: Final = 15.0


@final
class Concurrency:
    """The number of requests that an account may have in flight, found by trying.

    >>> fixed = Concurrency(8)
    >>> fixed.limit
    8
    """

    def __init__(self, ceiling: int | None = None) -> None:
        self.ceiling = CEILING if ceiling is None else ceiling
        self.limit = START if ceiling is None else ceiling
        self._slow_start = True
        self._clean = 0
        self._peak = 0
        self._quiet_until = 0.0

    def set_ceiling(self, ceiling: int) -> None:
        """Use `ceiling` from now on, without approaching it step by step."""
        self.ceiling = self.limit = ceiling

    def sent(self, in_flight: int) -> None:
        self._peak = max(self._peak, in_flight)

    def succeeded(self, now: float) -> None:
        """Count a reply to a first attempt; a clean round of a limit's worth of them makes it grow."""
        if now < self._quiet_until:
            return
        self._clean += 1
        if self._clean < max(self.limit, 4):
            return
        if self._peak >= SATURATION * self.limit:
            grown = self.limit * 2 if self._slow_start else max(self.limit + 1, int(self.limit * GROWTH))
            self.limit = min(grown, self.ceiling)
        self._clean = self._peak = 0

    def limited(self, now: float, retry_after: float | None) -> None:
        """Cut, once for each episode of rate limits."""
        self._clean = self._peak = 0
        if now < self._quiet_until:
            return
        self._slow_start = False
        self.limit = max(1, int(self.limit * CUT))
        self._quiet_until = now + max(COOLDOWN, retry_after or 0.0)
