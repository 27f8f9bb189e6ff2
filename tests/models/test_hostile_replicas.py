"""A replica that is ill beside one that is well: no call is lost, and the ill one keeps little of the work."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import kit
import pytest

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import places
from afnio.runtime.events import CallEnded, CallRetried, ReplicaLeftOut, ReplicaTakenBack
from afnio.testing import FaultPlan, Provider, Quota

NOBODY = "http://127.0.0.1:9/v1"


def group(*urls: str, name: str, **options: Any) -> AsyncOpenAI:
    options.setdefault("limits", afnio.Limits(max_in_flight=8))
    return AsyncOpenAI(base_url=list(urls), name=name, api_key="any", **options)


async def answers(lm: AsyncOpenAI, count: int) -> list[str]:
    """What the model says to `count` texts, which it repeats."""
    template = afnio.Variable("{text}", role="input")
    texts = [f"text {number}" for number in range(count)]
    reply = cog.functional.chat_completion(
        lm, [{"role": "user", "content": [template]}], {"text": texts}, model="m"
    )
    await reply
    return list(reply.data)


def repeats(request: Any) -> str:
    return str(request["messages"][-1]["content"])


def expected(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


def state(lm: AsyncOpenAI, url: str) -> Any:
    return next(one for one in places().replicas if one.url == url and lm.account.url.endswith(one.group))


@pytest.mark.parametrize(
    "kind",
    [
        "503",
        "429-seconds",
        *(
            pytest.param(kind, marks=pytest.mark.nightly)
            for kind in (
                "500",
                "502",
                "html",
                "html-200",
                "truncated",
                "reset",
                "bad-json",
                "empty",
                "error-200",
            )
        ),
    ],
)
async def test_one_that_never_gives_an_answer(kind: str) -> None:
    """It fails at once, so it always has the fewest calls in flight. Its circuit opens, or it pauses."""
    faults = FaultPlan({kind: 1.0}, retry_after=60.0)
    async with Provider(lm=repeats, latency=0.005) as well, Provider(lm=repeats, faults=faults) as ill:
        lm = group(ill.base_url, well.base_url, name=f"never {kind}")
        with kit.events(CallEnded) as ended:
            assert await answers(lm, 200) == expected(200)
        assert well.stats()["requests"] == 200
        # 22 requests are judged together, and 8 may be in flight. The 429s stop after the first of them.
        assert ill.stats()["requests"] <= 22 + 8 + 4
        assert max(event.attempts for event in ended) <= 8
        assert state(lm, ill.base_url).trouble == ("refusing" if "429" in kind else "failing")
        assert state(lm, ill.base_url).failed == ill.stats()["requests"]
        assert (state(lm, well.base_url).answered, state(lm, well.base_url).trouble) == (200, "")


async def test_a_refused_call_goes_to_another_replica_at_once() -> None:
    """`retry-after` is said for one replica: no call waits for it while another has a place."""
    faults = FaultPlan({"429-seconds": 1.0}, retry_after=3600.0)
    async with Provider(lm=repeats) as well, Provider(lm=repeats, faults=faults) as ill:
        lm = group(ill.base_url, well.base_url, name="refused")
        with kit.events(CallRetried) as retried, anyio.fail_after(30):
            for number in range(20):
                reply = await lm.achat(messages=[{"role": "user", "content": f"text {number}"}], model="m")
                assert reply.content == f"text {number}"
        assert retried == []
        assert ill.stats()["requests"] == 1


@pytest.mark.nightly
async def test_one_that_is_slow_gets_fewer_calls() -> None:
    """Calls go where the fewest are in flight, so a replica gets as many as it answers."""
    async with Provider(lm=repeats, latency=0.005) as well, Provider(lm=repeats, latency=0.2) as slow:
        lm = group(slow.base_url, well.base_url, name="slow")
        assert await answers(lm, 200) == expected(200)
        assert slow.stats()["requests"] <= 50
        assert slow.stats()["requests"] + well.stats()["requests"] == 200


@pytest.mark.nightly
async def test_one_that_takes_requests_and_says_nothing() -> None:
    """Its calls are sent again after the client's timeout, and the others don't wait for them."""
    async with Provider(lm=repeats) as well, Provider(lm=repeats, faults={"hang": 1.0}) as ill:
        lm = group(ill.base_url, well.base_url, name="silent", timeout=0.3)
        assert await answers(lm, 100) == expected(100)
        assert ill.stats()["requests"] <= 22 + 8


async def test_many_calls_that_find_one_dead_are_one_outage(caplog: pytest.LogCaptureFixture) -> None:
    """They don't double its pause one after the other. It is said once, and once more when it is back."""
    caplog.set_level(logging.WARNING, "afnio")
    async with Provider(lm=repeats, latency=0.005) as well:
        async with Provider(lm=repeats) as first:
            url, port = first.base_url, int(first.base_url.rpartition(":")[2].partition("/")[0])
        lm = group(url, well.base_url, name="one outage", limits=afnio.Limits(max_in_flight=16))
        with kit.events() as events:
            assert await answers(lm, 100) == expected(100)
            assert state(lm, url).outages == 1
            assert state(lm, url).trouble == "out"
            async with Provider(lm=repeats, port=port) as again:
                with anyio.fail_after(60):
                    while not again.stats()["requests"]:
                        assert await answers(lm, 20) == expected(20)
                        await anyio.sleep(0.02)
            assert (state(lm, url).outages, state(lm, url).trouble) == (1, "")
    left = [event for event in events if isinstance(event, ReplicaLeftOut)]
    back = [event for event in events if isinstance(event, ReplicaTakenBack)]
    assert [(event.group, event.account) for event in left] == [("replicas://one outage", url)]
    assert [event.account for event in back] == [url]
    assert back[0].seconds >= 0.4
    said = [record.message for record in caplog.records if url in record.message]
    assert "go to its other replicas" in said[0]
    assert "answers again" in said[-1]


@pytest.mark.nightly
async def test_limits_are_each_replicas() -> None:
    """A replica over its quota pauses alone, and the other takes what it can."""
    quota = Quota(requests=30, window=2.0)
    async with Provider(lm=repeats, latency=0.005) as well, Provider(lm=repeats, quota=quota) as small:
        lm = group(small.base_url, well.base_url, name="quota")
        assert await answers(lm, 300) == expected(300)
        assert small.stats()["sent_429"] <= 8
        assert well.stats()["requests"] >= 200


@pytest.mark.nightly
async def test_the_retry_budget_is_the_groups() -> None:
    """Retries after one replica's failures are granted for the calls of all: 50, and one for each call."""
    async with Provider(lm=repeats, latency=0.002) as well, Provider(lm=repeats, faults={"500": 0.5}) as ill:
        lm = group(ill.base_url, well.base_url, name="budget")
        with kit.events(CallRetried) as retried:
            assert await answers(lm, 400) == expected(400)
        assert 50 < len(retried) < 400


async def test_all_of_them_are_away_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait, and whoever tries a replica for all of them pays with no attempt: none is lost."""
    monkeypatch.setattr("afnio.runtime._replicas.LEFT_OUT_FIRST", 0.001)
    monkeypatch.setattr("afnio.runtime._replicas.LEFT_OUT_MAX", 0.002)
    async with Provider(lm=repeats) as one, Provider(lm=repeats) as two:
        urls = [one.base_url, two.base_url]
        lm = group(*urls, name="away")
        assert await answers(lm, 20) == expected(20)
    ports = [int(url.rpartition(":")[2].partition("/")[0]) for url in urls]
    found: list[list[str]] = []

    async def ask() -> None:
        found.append(await answers(lm, 20))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        with anyio.fail_after(30):
            while sum(state(lm, url).failed for url in urls) < 300:  # 20 calls have 160 attempts
                await anyio.sleep(0.005)
        async with Provider(lm=repeats, port=ports[0]), Provider(lm=repeats, port=ports[1]):
            with anyio.fail_after(30):
                while not found:
                    await anyio.sleep(0.005)
    assert found == [expected(20)]
