"""The call path: attempts, retries, deadlines and events, on a virtual clock."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import kit
import pytest

from afnio.errors import FinalModelError, RateLimitedError, TransientModelError
from afnio.runtime import Account, budget
from afnio.runtime._call import BACKOFF_MAX, REFUSED_FOR, Call, Codec, attempt_deadline, perform
from afnio.runtime._health import ATTEMPTS
from afnio.runtime._limits import give_replicas
from afnio.runtime.events import CallEnded, CallRetried, Usage, subscribed


class Reply:
    service_tier = ""
    usage = Usage(3, 2)
    limits = None


class FakeRuntime:
    """Keeps resources on the test's own loop, whose clock is virtual."""

    def __init__(self) -> None:
        self.calls_open = 0
        self._resources: dict[Any, Any] = {}

    def count_open(self, change: int) -> None:
        self.calls_open += change

    def resource(self, key: Any, make: Callable[[], Any]) -> Any:
        return self._resources.setdefault(key, make())


def call(script: list[BaseException | None], deadline: float = 600.0) -> Call[Reply]:
    attempts = iter(script)

    async def attempt() -> Reply:
        error = next(attempts)
        if error is not None:
            raise error
        return Reply()

    return made(attempt, deadline)


def made(attempt: Any, deadline: float) -> Call[Reply]:
    codec = Codec(
        encode=lambda reply: b"",
        decode=lambda payload: Reply(),
        reusable=lambda reply: True,
        recount=lambda reply, usage: reply,
    )
    return Call(
        address="scope/1/forward",
        scope="scope",
        key="c0ffee",
        codec=codec,
        account=Account("https://host", "s"),
        model="m",
        purpose="forward",
        attempt=attempt,
        deadline=deadline,
    )


async def run(asked: Call[Reply]) -> tuple[list[Any], Reply | BaseException]:
    with kit.events() as events:
        try:
            return events, await perform(FakeRuntime(), asked)  # type: ignore[arg-type]
        except Exception as error:
            return events, error


async def test_success() -> None:
    """One attempt, one event with what it took."""
    (ended,), reply = await run(call([None]))
    assert isinstance(reply, Reply)
    assert isinstance(ended, CallEnded)
    assert ("scope/1/forward", "https://host", "m", 1, Usage(3, 2), None) == (
        ended.address, ended.account, ended.model, ended.attempts, ended.usage, ended.error,
    )  # fmt: skip


@pytest.mark.looptime
async def test_transient_errors_are_retried() -> None:
    """Transient errors are tried again after a wait that is bounded and grows."""
    events, reply = await run(call([TransientModelError("reset")] * 3 + [None]))
    assert isinstance(reply, Reply)
    retried = [event for event in events if isinstance(event, CallRetried)]
    assert [event.attempt for event in retried] == [1, 2, 3]
    assert all(event.wait <= 0.5 * 2 ** (event.attempt - 1) for event in retried)
    assert events[-1].attempts == 4


@pytest.mark.looptime
async def test_attempts_end() -> None:
    """After eight attempts the last error is raised, and says how many there were."""
    started = anyio.current_time()
    events, error = await run(call([TransientModelError("reset")] * 20))
    assert isinstance(error, TransientModelError)
    assert f"after {ATTEMPTS} attempts" in error.__notes__[0]
    assert events[-1].attempts == ATTEMPTS
    assert anyio.current_time() - started <= ATTEMPTS * BACKOFF_MAX


async def test_final_errors_are_not_retried() -> None:
    """A final error is raised at once."""
    events, error = await run(call([FinalModelError("no")]))
    assert isinstance(error, FinalModelError)
    assert events[-1].attempts == 1
    assert events[-1].error == "FinalModelError: no"


@pytest.mark.looptime
async def test_retry_after_is_obeyed_with_jitter_on_top() -> None:
    """The wait is never shorter than what the provider asked for."""
    events, _ = await run(call([RateLimitedError("slow", retry_after=20.0), None]))
    assert 20.0 <= events[0].wait <= 20.5


@pytest.mark.looptime
async def test_a_refused_call_pauses_once() -> None:
    """Its account waits for as long as the provider said, and the call goes as soon as that is over."""
    started = anyio.current_time()
    refused = RateLimitedError("slow down", status=429, retry_after=2.0)
    events, reply = await run(call([refused, None]))
    assert isinstance(reply, Reply)
    assert [event.wait for event in events if isinstance(event, CallRetried)] == [2.0]
    assert anyio.current_time() - started == pytest.approx(2.0, abs=0.01)


@pytest.mark.looptime
@pytest.mark.parametrize("replicas", [[], ["https://one", "https://two"]])
async def test_a_refused_call_holds_no_money(replicas: list[str]) -> None:
    """While its account pauses, calls to other accounts have the whole budget."""
    runtime: Any = FakeRuntime()
    refused = [RateLimitedError("slow", status=429, retry_after=60.0) for _ in replicas or [""]]
    paused = replace(call([*refused, None]), prompt_tokens=100, max_output=900)
    if replicas:
        paused = replace(paused, account=Account("https://group", "s"))
        give_replicas(paused.account, tuple(Account(url, "s") for url in replicas), runtime)
    other = replace(call([None]), account=Account("https://other", "s"), prompt_tokens=100, max_output=900)
    started, ended = anyio.current_time(), {}

    async def lane(asked: Call[Reply], delay: float) -> None:
        await anyio.sleep(delay)
        await perform(runtime, asked)
        ended[asked.account.url] = round(anyio.current_time() - started)

    with budget(max_tokens=1500):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane, paused, 0)
            tasks.start_soon(lane, other, 1)
    assert ended == {"https://other": 1, paused.account.url: 60}


@pytest.mark.looptime
async def test_refusals_use_up_no_attempts() -> None:
    """A call that is refused often, and fails as often as it may, gets its reply."""
    refused, failed = RateLimitedError("slow", retry_after=1.0), TransientModelError("reset")
    script = [refused] * 30 + [failed] * (ATTEMPTS - 1) + [refused] * 30
    events, reply = await run(call([*script, None]))
    assert isinstance(reply, Reply)
    assert len(script) + 1 == events[-1].attempts


@pytest.mark.looptime
async def test_refusals_use_up_no_retry_budget() -> None:
    """Calls that were refused more often than there are retries leave them to those that fail."""
    runtime: Any = FakeRuntime()
    for script in ([RateLimitedError("slow", retry_after=0.1)] * 100, [TransientModelError("reset")]):
        asked = await perform(runtime, call([*script, None]))
        assert isinstance(asked, Reply)


@pytest.mark.looptime
async def test_refusals_end_after_an_hour() -> None:
    """A call that is refused for ever fails, and says for how long it was refused."""
    started = anyio.current_time()
    _, error = await run(call([RateLimitedError("slow", retry_after=1.0)] * 10_000))
    assert isinstance(error, RateLimitedError)
    assert "not tried again: it was refused for 60 minutes" in error.__notes__[0]
    assert REFUSED_FOR <= anyio.current_time() - started <= REFUSED_FOR + 2 * BACKOFF_MAX


@pytest.mark.looptime
async def test_deadline() -> None:
    """An attempt that takes too long is one that failed, and is tried again."""
    turns = 0

    async def slow() -> Reply:
        nonlocal turns
        turns += 1
        if turns < 3:
            await anyio.sleep(1000)
        return Reply()

    asked = made(slow, 60.0)
    events, reply = await run(asked)
    assert isinstance(reply, Reply)
    assert "no reply within 60 s" in events[0].error


async def test_subscriber_that_fails_is_reported_once_per_event(caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber that raises stops neither the call nor the other subscribers."""

    def broken(event: Any) -> None:
        raise RuntimeError("subscriber")

    with subscribed(broken), kit.events() as seen:
        await perform(FakeRuntime(), call([None]))  # type: ignore[arg-type]
    assert len(seen) == 1
    assert "a subscriber failed on CallEnded" in caplog.text


@pytest.mark.parametrize(
    ("seconds", "tier", "want"),
    [
        (600.0, "flex", 900.0),
        (600.0, "default", 600.0),
        (30.0, "flex", 30.0),
        (1200.0, "flex", 1200.0),
        (math.inf, "flex", math.inf),
        (600.0, ["flex"], 600.0),
    ],
)
def test_deadlines_by_tier(seconds: float, tier: Any, want: float) -> None:
    """15 minutes, unless the user set another one."""
    assert attempt_deadline(seconds, tier) == want
