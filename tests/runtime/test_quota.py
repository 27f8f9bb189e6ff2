"""Admission under quotas, on a virtual clock: what is sent in any window, and how much of it is used."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from kit.windows import worst_window
from runtime.demand import Attempt, Demand

import afnio
from afnio.errors import FinalModelError, RateLimitedError, TransientModelError
from afnio.runtime import LimitReading, Limits, RateLimits, current_runtime
from afnio.runtime._admission import Admitter
from afnio.runtime._limits import DEFAULT_OUTPUT, KEPT, Allowance
from afnio.runtime._loop import loop_time
from afnio.runtime._replicas import admitter
from afnio.runtime._settings import Priority
from afnio.runtime.events import Usage
from afnio.testing import ScriptedClient
from afnio.testing.provider._quota import Bucket, Meter, SlidingWindow

MINUTE = 60.0
Sent = list[tuple[float, float]]


class Account:
    """A provider's account: it admits by its meters, refuses, says what is left, answers after a while."""

    def __init__(self, make: Callable[[], Meter], *, per_model: bool = False, latency: float = 0.4) -> None:
        self.meters: dict[str, Meter] = {}
        self.sent: Sent = []
        self.refused: list[float] = []
        self._make = make
        self._per_model = per_model
        self._latency = latency

    async def answer(self, model: str) -> RateLimits:
        now, key = loop_time(), model if self._per_model else ""
        meter = self.meters.setdefault(key, self._make())
        wait = meter.wait(1, now)
        if wait == 0:
            meter.take(1, now)
            self.sent.append((now, 1))
        limits = RateLimits(LimitReading(meter.limit, meter.remaining(now), meter.reset(now), 5e-7))
        if wait > 0:
            self.refused.append(now)
            raise RateLimitedError("slow down", status=429, retry_after=wait, limits=limits)
        await anyio.sleep(self._latency)
        return limits


async def call(admit: Admitter, demand: Demand, account: Account) -> None:
    """Make one call, again where it is refused."""
    first = True
    while True:
        try:
            async with Attempt(admit, demand, first=first) as attempt:
                attempt.reply(Usage(), await account.answer(demand.model))
        except RateLimitedError:
            first = False
            continue
        return


async def run(admit: Admitter, demands: list[Demand], account: Account) -> None:
    async with anyio.create_task_group() as tasks:
        for demand in demands:
            tasks.start_soon(call, admit, demand, account)


def used(sent: Sent) -> float:
    """Return what was sent in a minute, on average."""
    times = [time for time, _ in sent]
    return sum(amount for _, amount in sorted(sent)[:-1]) / (max(times) - min(times)) * MINUTE


async def spend(admit: Admitter, demands: list[Demand]) -> Sent:
    """Send all, each as soon as it is admitted, and return when and with how many tokens."""
    sent: Sent = []

    async def one(demand: Demand) -> None:
        async with Attempt(admit, demand) as attempt:
            assert demand.max_output is not None
            sent.append((loop_time(), demand.prompt_tokens + demand.max_output))
            await anyio.sleep(0.5)
            attempt.reply(Usage(demand.prompt_tokens, demand.max_output // 3))

    async with anyio.create_task_group() as tasks:
        for demand in demands:
            tasks.start_soon(one, demand)
    return sent


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("limits", "want"),
    [
        (Limits(requests_per_minute=60), ("30 of 60 requests a minute used (your limit)", 1.0, 1.0)),
        (Limits(tokens_per_minute=6_000), ("3,000 of 6,000 tokens a minute used (your limit)", 1.0, 1.0)),
        (Limits(max_in_flight=2), ("2 of 2 requests in flight (your limit)", None, None)),
        (Limits(), None),
    ],
)
async def test_what_holds_the_next_call(limits: Limits, want: Any) -> None:
    """A limit that was given is named, with what is used of it, and when the next call goes."""
    admit, hold = Admitter(), None
    admit.apply(limits)

    async def one() -> None:
        async with Attempt(admit, Demand(prompt_tokens=100)) as attempt:
            attempt.reply(Usage(100))
            await anyio.sleep(0 if limits.max_in_flight is None else 60)

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(one)
        while admit.sent < (2 if limits.max_in_flight else 30):
            await anyio.sleep(0.01)
        hold = admit.hold(loop_time())
        tasks.cancel_scope.cancel()
    assert hold == (want and (want[0], want[1] and pytest.approx(want[1], abs=0.1), want[2]))


@pytest.mark.looptime
@pytest.mark.parametrize("limit", [30, 600, pytest.param(4_000, marks=pytest.mark.nightly)])
async def test_requests(limit: int) -> None:
    """Never above the limit in any minute, and 97 % of it used; two models share what was given."""
    admit = Admitter()
    admit.apply(Limits(requests_per_minute=limit))
    sent = await spend(admit, [Demand(model="ab"[n % 2]) for n in range(3 * limit)])
    requests = [(time, 1.0) for time, _ in sent]
    assert worst_window(requests, MINUTE) <= limit
    assert worst_window(requests, 1.0) <= math.ceil(limit / 60)  # where a provider counts by the second
    assert used(requests) >= 0.97 * limit


@pytest.mark.looptime
async def test_no_burst_after_idling() -> None:
    """An account that was idle gets no minute's worth at once."""
    admit = Admitter()
    admit.apply(Limits(requests_per_minute=600))
    await spend(admit, [Demand()] * 50)
    await anyio.sleep(600)
    sent = await spend(admit, [Demand()] * 601)
    assert worst_window([(time, 1.0) for time, _ in sent], MINUTE) <= 600


@pytest.mark.looptime
@pytest.mark.parametrize("largest", [pytest.param(0.002, marks=pytest.mark.nightly), 0.02, 0.2])
async def test_tokens(largest: float) -> None:
    """The same for tokens as a provider admits them: the prompt and the most that it may reply with."""
    draw, limit = random.Random(1), 200_000
    demands = []
    while sum(d.prompt_tokens + (d.max_output or 0) for d in demands) < 4 * limit:
        size = int(draw.uniform(0.1, 1) * largest * limit)
        demands.append(Demand(prompt_tokens=size // 4, max_output=size - size // 4))
    admit = Admitter()
    admit.apply(Limits(tokens_per_minute=limit))
    sent = await spend(admit, demands)
    assert worst_window(sent, MINUTE) <= limit
    # Where single requests are a fifth of the limit, what is left of a window is often less than the next.
    assert used(sent) >= (0.97 if largest < 0.1 else 0.85) * limit


@pytest.mark.looptime
async def test_larger_than_the_limit() -> None:
    """A request that no window could hold goes alone, and the rest after it."""
    admit = Admitter()
    admit.apply(Limits(tokens_per_minute=1_000))
    sent = await spend(admit, [Demand(prompt_tokens=size, max_output=0) for size in (100, 5_000, 100)])
    (small, large, last) = (time for time, _ in sent)
    assert large - small >= MINUTE
    assert last - large >= 5_000 / 1_000 * MINUTE


@pytest.mark.looptime
async def test_total_of_all_accounts() -> None:
    """Accounts under one total never exceed it together, use it up, and take turns."""
    total = Allowance.given(Limits(requests_per_minute=600), loop_time())
    accounts = [Admitter() for _ in range(3)]
    shares: list[Sent] = [[], [], []]

    async def keep(number: int) -> None:
        accounts[number].total = total
        shares[number] += await spend(accounts[number], [Demand() for _ in range(500)])

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(keep, number)
    requests = [(time, 1.0) for share in shares for time, _ in share]
    assert worst_window(requests, MINUTE) <= 600
    assert used(requests) >= 0.97 * 600
    first_minute = [sum(time < MINUTE for time, _ in share) for share in shares]
    assert max(first_minute) <= 1.1 * min(first_minute)


@pytest.mark.looptime
async def test_both_limits() -> None:
    """The tighter of two limits governs, and both hold."""
    admit = Admitter()
    admit.apply(Limits(requests_per_minute=600, tokens_per_minute=30_000))
    sent = await spend(admit, [Demand(prompt_tokens=100, max_output=0) for _ in range(1_000)])
    assert worst_window(sent, MINUTE) <= 30_000
    assert used(sent) >= 0.97 * 30_000


@pytest.mark.looptime
@pytest.mark.parametrize(("status", "seconds"), [(429, 0), (400, 0), (503, 30), (None, 30)])
async def test_failures(status: int | None, seconds: float) -> None:
    """A request that was turned away costs no tokens; one that broke, or got no answer, may have been counted."""
    admit = Admitter()
    admit.apply(Limits(tokens_per_minute=6_000))
    error = RateLimitedError if status == 429 else FinalModelError if status == 400 else TransientModelError
    with pytest.raises(error):
        async with Attempt(admit, Demand(prompt_tokens=3_000)):
            raise error("no", status=status)
    started = loop_time()
    async with Attempt(admit, Demand(prompt_tokens=1)):
        assert seconds <= loop_time() - started <= seconds + 1


@pytest.mark.looptime
async def test_learnt_output() -> None:
    """Without a maximum the usual length is reserved and the real one counted: all of the limit is used."""
    admit, replied = Admitter(), []
    admit.apply(Limits(tokens_per_minute=60_000))
    draw = random.Random(5)

    async def one() -> None:
        async with Attempt(admit, Demand(prompt_tokens=50, max_output=None)) as attempt:
            await anyio.sleep(0.5)
            output = int(draw.uniform(50, 250))
            replied.append((loop_time(), 50.0 + output))
            attempt.reply(Usage(50, output))

    async with anyio.create_task_group() as tasks:
        for _ in range(1_500):
            tasks.start_soon(one)
    steady = [(time, amount) for time, amount in replied if time > replied[0][0] + 30]
    assert 0.95 * 60_000 <= used(steady) <= 60_000
    assert 180 <= admit.output.tokens("forward", "m") <= 250


@pytest.mark.looptime
async def test_output_is_learnt_apart() -> None:
    """For each purpose, model and node; a new node is like the others, and replies of before are forgotten."""
    admit = Admitter()

    async def reply(output: int, **demand: Any) -> None:
        async with Attempt(admit, Demand(max_output=None, **demand)) as attempt:
            attempt.reply(Usage(50, output))

    for length in (*[1_000] * KEPT, *range(1, KEPT + 1)):
        await reply(length, purpose="backward")
    for _ in range(10):
        await reply(900, site="draft")
        await reply(3, site="judge")
    tokens = admit.output.tokens
    assert [tokens("backward", "m"), tokens("forward", "n")] == [math.ceil(0.9 * KEPT), DEFAULT_OUTPUT]
    assert [tokens("forward", "m", site=site) for site in ("draft", "judge", "new")] == [900, 3, 900]


def test_calls_say_which_node_they_are_of() -> None:
    """By the line that launches them, which is the same in the next step."""
    client = ScriptedClient(lambda request: "word " * (200 if "long" in str(request.messages) else 1))

    def ask(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [afnio.Variable(text)]}]

    for _ in range(2):
        afnio.cognitive.functional.chat_completion(client, ask("long"), model="m").data
        afnio.cognitive.functional.chat_completion(client, ask("short"), model="m").data
    seen = admitter(current_runtime(), client.account).output._seen
    lengths = [list(newest) for (_, _, site), (newest, _) in seen.items() if site is not None]
    assert lengths == [[250] * 2, [2] * 2]


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("shape", "window"), [(Bucket, 60.0), (Bucket, 600.0), (SlidingWindow, 1.0), (SlidingWindow, 60.0)]
)
async def test_learnt_from_headers(shape: Callable[[int, float], Meter], window: float) -> None:
    """Without a word from the user: no refusal once the limit is known, no window above it, all of it used."""
    account, admit = Account(lambda: shape(300, window)), Admitter()
    await run(admit, [Demand()] * 1_800, account)
    assert account.refused == []
    assert worst_window(account.sent, window) <= 300 + 64
    steady = [(time, amount) for time, amount in account.sent if time > account.sent[0][0] + window]
    assert worst_window(steady, window) <= 300
    assert used(steady) * window / MINUTE >= 0.95 * 300


@pytest.mark.looptime
async def test_refused_before_anything_is_known() -> None:
    """A limit smaller than the first burst costs refusals once; none of them are lost, none come after."""
    account, admit = Account(lambda: SlidingWindow(20, 60.0)), Admitter()
    await run(admit, [Demand()] * 100, account)
    assert len(account.sent) == 100
    assert max(account.refused) - account.sent[0][0] < 1


@pytest.mark.looptime
@pytest.mark.parametrize("given", [None, Limits(requests_per_minute=600)])
async def test_halved(given: Limits | None) -> None:
    """When the provider halves its quota the pace follows within two windows, given limits or not."""
    account, admit = Account(lambda: Bucket(600, 60.0)), Admitter()
    if given is not None:
        admit.apply(given)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, admit, [Demand()] * 2_400, account)
        await anyio.sleep(90)
        halved = loop_time()
        account.meters[""].resize(300, halved)
    assert all(time < halved + 120 for time in account.refused)
    settled = [(time, amount) for time, amount in account.sent if time > halved + 120]
    assert worst_window(settled, MINUTE) <= 1.02 * 300
    assert used(settled) >= 0.95 * 300


@pytest.mark.looptime
async def test_a_full_model_is_passed_over() -> None:
    """What the provider counts per model holds up that model alone."""
    account, admit = Account(lambda: Bucket(60, 60.0), per_model=True, latency=0.1), Admitter()
    await run(admit, [Demand(model="full")] * 55, account)
    started, ended = loop_time(), {}

    async def group(model: str) -> None:
        await run(admit, [Demand(model=model)] * 30, account)
        ended[model] = loop_time() - started

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(group, "full")
        await anyio.wait_all_tasks_blocked()
        tasks.start_soon(group, "free")
    assert ended["free"] < 31 < ended["full"] + 30
    assert account.refused == []


@pytest.mark.looptime
async def test_models_that_share_a_limit() -> None:
    """Two models that are found to draw on one limit are counted together."""
    account, admit = Account(lambda: Bucket(300, 60.0)), Admitter()
    await run(admit, [Demand(model="ab"[n % 2]) for n in range(1_500)], account)
    assert account.refused == []
    assert admit._models["a"] is admit._models["b"]
    assert worst_window([pair for pair in account.sent if pair[0] > account.sent[0][0] + 60], MINUTE) <= 306


@pytest.mark.looptime
async def test_given_limits_win() -> None:
    """A slower pace than the provider would take holds, whatever its headers say."""
    account, admit = Account(lambda: Bucket(6_000, 60.0)), Admitter()
    admit.apply(Limits(requests_per_minute=60))
    await run(admit, [Demand()] * 120, account)
    assert worst_window(account.sent, MINUTE) <= 60


@pytest.mark.looptime
async def test_ten_thousand_queued() -> None:
    """A serving call behind ten thousand training calls waits for one admission."""
    admit, order = Admitter(), []
    admit.apply(Limits(max_in_flight=1, requests_per_minute=60_000))

    async def one(rank: Priority) -> None:
        async with Attempt(admit, Demand(rank)):
            order.append(rank)
            await anyio.sleep(0.001)

    async with anyio.create_task_group() as tasks:
        for _ in range(10_000):
            tasks.start_soon(one, Priority.TRAINING)
        await anyio.sleep(1)
        before = len(order)
        tasks.start_soon(one, Priority.SERVING)
    assert order.index(Priority.SERVING) - before <= 1
    assert len(order) == 10_001


@pytest.mark.looptime
async def test_cancelled_while_paced() -> None:
    """Calls that are cancelled in the queue give up their place, and what they would have used."""
    admit, sent = Admitter(), []
    admit.apply(Limits(requests_per_minute=60, tokens_per_minute=60_000))

    async def one() -> None:
        async with Attempt(admit, Demand(prompt_tokens=900, max_output=0)):
            sent.append(loop_time())

    async with anyio.create_task_group() as tasks:
        for _ in range(1_000):
            tasks.start_soon(one)
        await anyio.sleep(10)
        tasks.cancel_scope.cancel()
    assert (admit.in_flight, len(admit._queue), len(sent)) == (0, 0, 10)
    started = loop_time()
    await one()
    assert loop_time() - started <= 1.1
