"""What an account that fails costs its calls: the circuit, the retry budget, the first warning."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from runtime.demand import Attempt, Demand

from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError, UnreachableError
from afnio.runtime import Account, Limits
from afnio.runtime._admission import Admitter
from afnio.runtime._call import retries
from afnio.runtime._health import BLOCK, GIVES_UP, OPENS_AFTER, PERIOD, AccountHealth
from afnio.runtime._limits import give_limits, given_limits
from afnio.runtime._loop import loop_time
from afnio.runtime.events import CircuitClosed, CircuitOpened, subscribed

URL = "https://host/v1"


async def attempt(admit: Admitter, error: ModelError | None, seconds: float = 0.0) -> None:
    async with Attempt(admit, Demand()):
        await anyio.sleep(seconds)
        if error is not None:
            raise error


async def break_down(admit: Admitter) -> None:
    """Answer once, then fail until the circuit opens."""
    await attempt(admit, None)
    for _ in range(OPENS_AFTER):
        with pytest.raises(TransientModelError):
            await attempt(admit, TransientModelError("bad gateway", status=502))
    assert admit.health.circuit.opened_at is not None


@pytest.mark.looptime
async def test_calls_wait_while_the_circuit_is_open(caplog: pytest.LogCaptureFixture) -> None:
    """One probe at a time goes out; when one succeeds all go, and both turns are told."""
    admit, events, sent = Admitter(Account(URL, "s")), [], []

    async def call() -> None:
        while True:
            attempt = Attempt(admit, Demand())
            try:
                async with attempt:
                    sent.append(loop_time())
                    if loop_time() < broken_until:
                        raise TransientModelError("bad gateway", status=502)
                return
            except TransientModelError:
                assert attempt.permit.spared, "a probe uses up no attempt"

    with subscribed(events.append), caplog.at_level(logging.WARNING, logger="afnio"):
        await break_down(admit)
        broken_until = loop_time() + 40
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(call)
    probes = [time for time in sent if time < broken_until]
    assert 4 <= len(probes) <= 6
    assert len(sent) - len(probes) == 100
    opened, closed = events
    assert CircuitOpened(URL, OPENS_AFTER, "bad gateway") == opened
    assert isinstance(closed, CircuitClosed)
    assert closed.seconds >= 40
    assert f"20 of 21 requests sent one after another to {URL} have failed (bad gateway)" in caplog.text
    assert "answers again, after" in caplog.text


@pytest.mark.looptime
async def test_given_up_after_ten_minutes() -> None:
    """When probes have failed for ten minutes all who wait fail, with a sentence that has the figures."""
    admit, errors = Admitter(Account(URL, "s")), []
    await break_down(admit)
    started = loop_time()

    async def call() -> None:
        while True:
            attempt = Attempt(admit, Demand())
            try:
                async with attempt:
                    raise TransientModelError("bad gateway", status=502)
            except TransientModelError:
                assert attempt.permit.spared
            except FinalModelError as error:
                errors.append(str(error))
                return

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(call)
    assert len(errors) == 20
    assert GIVES_UP <= loop_time() - started <= GIVES_UP + 40
    assert all("has answered nothing for 10 minutes" in error for error in errors)
    assert all("requests failed, at last with bad gateway" in error for error in errors)
    assert (admit.in_flight, len(admit._queue)) == (0, 0)


@pytest.mark.looptime
async def test_rate_limits_open_no_circuit() -> None:
    """A refusal is an answer."""
    admit = Admitter()
    for _ in range(3 * OPENS_AFTER):
        with pytest.raises(RateLimitedError):
            await attempt(admit, RateLimitedError("slow", status=429))
    assert admit.health.circuit.opened_at is None
    assert admit.health.circuit.answered


@pytest.mark.looptime
async def test_a_cancelled_probe_is_followed_by_another() -> None:
    """A probe that is cancelled says nothing, and holds up nobody."""
    admit = Admitter()
    await break_down(admit)
    with anyio.move_on_after(5):
        await attempt(admit, None, seconds=1_000)
    await attempt(admit, None)
    assert admit.health.circuit.opened_at is None


@pytest.mark.looptime
@pytest.mark.parametrize("failing", [0.002, 0.2, 5.0])
@pytest.mark.parametrize("share", [0.05, 0.5])
async def test_random_failures_open_no_circuit(share: float, failing: float) -> None:
    """However much quicker or slower they are than replies."""
    draw, admit, events = random.Random(1), Admitter(), []
    admit.apply(Limits(max_in_flight=256))

    async def call() -> None:
        fails = draw.random() < share
        with contextlib.suppress(TransientModelError):
            seconds = (failing if fails else 0.2) * draw.uniform(0.9, 1.1)
            await attempt(admit, TransientModelError("reset") if fails else None, seconds)

    with subscribed(events.append):
        async with anyio.create_task_group() as tasks:
            for _ in range(2_000):
                tasks.start_soon(call)
    assert events == []


@pytest.mark.looptime
@pytest.mark.parametrize("failing", [0.002, 5.0])
@pytest.mark.parametrize("in_flight", [1, 64, 256])
async def test_an_outage_opens_the_circuit(failing: float, in_flight: int) -> None:
    """After some 20 failures, quick or slow ones."""
    admit = Admitter()
    admit.apply(Limits(max_in_flight=in_flight))
    await attempt(admit, None)
    circuit = admit.health.circuit

    async def keep_failing() -> None:
        while circuit.opened_at is None:
            with contextlib.suppress(TransientModelError):
                await attempt(admit, TransientModelError("reset"), failing)

    async with anyio.create_task_group() as tasks:
        for _ in range(in_flight):
            tasks.start_soon(keep_failing)
    assert OPENS_AFTER <= circuit.opened_by[0] <= 10 * BLOCK


@pytest.mark.looptime
async def test_late_failures_of_an_outage_that_is_over() -> None:
    """They open nothing: what was sent after them was answered."""
    admit = Admitter()
    admit.apply(Limits(max_in_flight=256))
    await attempt(admit, None)

    async def fail() -> None:
        with pytest.raises(TransientModelError):
            await attempt(admit, TransientModelError("reset"), 2.0)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(fail)
        await anyio.wait_all_tasks_blocked()
        await attempt(admit, None, 1.0)
    assert admit.health.circuit.opened_at is None


def test_retry_budget() -> None:
    """As many as calls and fifty more in ten minutes; an error that gets no retry says how many there were."""
    health = AccountHealth(URL)
    health.retries.count_call(0.0)
    error = TransientModelError("reset")
    granted = [
        sum(health.grant_retry(error, now) for _ in range(60)) for now in (0.0, PERIOD - 11, PERIOD + 10)
    ]
    assert granted == [51, 0, 50]
    assert error.__notes__[0].startswith(
        "not tried again: https://host/v1 used its retry budget: 51 retries in ten minutes for 1 calls"
    )


def test_first_failure_is_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong URL shows at its first failure, once; an account that has answered is not suspected."""
    wrong, right = AccountHealth(URL), AccountHealth(URL)
    right.answered(0, 0.0)
    for health in (right, wrong, wrong):
        health.grant_retry(TransientModelError(f"can't reach {URL} (refused)"), 0.0)
    assert [record.getMessage() for record in caplog.records] == [
        f"can't reach {URL} (refused); trying again (1 of 8)"
    ]


def test_limits_given_last_hold(caplog: pytest.LogCaptureFixture) -> None:
    """Differing limits of one account warn once; the same again don't."""
    account: Any = Account("https://limits.example", "s")
    for number in (10, 10, 20, 30):
        give_limits(account, Limits(requests_per_minute=number))
    assert Limits(requests_per_minute=30) == given_limits(account)
    (record,) = caplog.records
    assert "two clients of https://limits.example give different limits" in record.getMessage()


@pytest.mark.parametrize("name", ["max_in_flight", "requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_impossible_limits(name: str, value: Any) -> None:
    """A limit below one is refused with its name and value."""
    with pytest.raises(ValueError, match=f"{name} must be at least 1 .got {value}"):
        Limits(**{name: value})


# The first contact -----------------------------------------------------------------------------

REFUSED = "can't reach http://127.0.0.1:9/v1 (127.0.0.1:9: connection refused)"


class Repeated:
    """A call that the engine's retries repeat, to a host that refuses connections until it is `reached`."""

    def __init__(self, admit: Admitter, reached: Callable[[], bool]) -> None:
        self.failures = 0
        self.refused_since = None
        self.spared = False
        self.account = self._admit = admit
        self._reached = reached
        self._first = True

    def retried(self, error: Any, wait: float) -> None:
        self._first = False

    async def attempt(self) -> None:
        async with Attempt(self._admit, Demand(), first=self._first):
            if not self._reached():
                raise UnreachableError(REFUSED)


async def call(admit: Admitter, reached: Callable[[], bool]) -> None:
    await retries()(Repeated.attempt, Repeated(admit, reached))


@pytest.mark.looptime
@pytest.mark.parametrize("calls", [1, 500])
async def test_a_host_that_was_never_reached_is_given_up_within_five_seconds(
    calls: int, caplog: pytest.LogCaptureFixture
) -> None:
    """After some quick attempts, by all who try or wait, with one warning before."""
    admit, errors, started = Admitter(Account(URL, "s")), [], loop_time()

    async def fail() -> None:
        with pytest.raises(FinalModelError) as caught:
            await call(admit, lambda: False)
        errors.append(caught.value)

    with caplog.at_level(logging.WARNING, logger="afnio"):
        async with anyio.create_task_group() as tasks:
            for _ in range(calls):
                tasks.start_soon(fail)
    assert 2.5 <= loop_time() - started <= 5
    assert {str(error) for error in errors} == {REFUSED}
    assert len(caplog.records) == 1


@pytest.mark.looptime
async def test_a_server_that_starts_meanwhile_is_found() -> None:
    """Within the seconds of the first contact, and after a pause anew."""
    for pause in (0.0, 70.0):
        admit = Admitter(Account(URL, "s"))
        if pause:
            with pytest.raises(FinalModelError):
                await call(admit, lambda: False)
        await anyio.sleep(pause)
        up = loop_time() + 1.0
        await call(admit, lambda up=up: loop_time() >= up)
        assert admit.health.circuit.answered


@pytest.mark.looptime
@pytest.mark.parametrize("before", [None, TransientModelError("reset"), FinalModelError("404", status=404)])
async def test_a_host_that_was_reached_is_given_the_usual_patience(before: ModelError | None) -> None:
    """As servers restart; whatever it said before."""
    admit = Admitter(Account(URL, "s"))
    with contextlib.suppress(ModelError):
        await attempt(admit, before)
    up = loop_time() + 11
    for _ in range(20):
        with contextlib.suppress(UnreachableError):  # its attempts may be used up, but it is not given up
            await call(admit, lambda: loop_time() >= up)
    assert admit.health.circuit.answered


@pytest.mark.looptime
async def test_the_log_holds_ten_retries_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """However many calls fail; and none of them waits for its line."""
    health = AccountHealth(URL)
    with caplog.at_level(logging.INFO, logger="afnio"):
        for _ in range(100):
            await health.log_retry(TransientModelError("bad gateway", status=502), 1.5)
        assert loop_time() == 0
        assert [line.getMessage() for line in caplog.records] == ["bad gateway; trying again in 1.5 s"] * 10
        await anyio.sleep(60)
        await health.log_retry(TransientModelError("bad gateway", status=502), 1.5)
    assert len(caplog.records) == 11
