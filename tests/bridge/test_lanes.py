"""Lanes: addresses by what is asked, replays of racing tools, budgets, cancelled lanes, accounts."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anthropic
import anyio
import anyio.lowlevel
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Endpoint, message_of
from kit.together import until

import afnio
from afnio import bridge
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import close
from afnio.runtime.events import CallEnded, CallReplayed


def client_of(endpoint: Endpoint, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.client(**options)
    )


def sync_client_of(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.sync_client()
    )


async def test_a_call_has_the_address_of_its_lane(endpoint: Endpoint) -> None:
    client = client_of(endpoint)

    async def ask(text: str) -> str:
        return (await client.responses.create(model="m", input=text)).output_text

    with kit.events(CallEnded) as ended:
        async with afnio.scope(name="s"):
            assert (await afnio.Variable(["a", "b"]).map(ask)).data == ["A", "B"]
    assert {event.lane for event in ended} == {0, 1}
    for event in ended:
        assert event.address.startswith(f"{event.node}/{event.lane}/http:")
    assert len({event.node for event in ended}) == 1


async def test_racing_tools_replay_without_an_alarm(
    endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    client = client_of(endpoint)

    def lane(seed: int) -> Any:
        dice = random.Random(seed)

        async def agent(text: str) -> str:
            async def tool(n: int) -> str:
                for _ in range(dice.randrange(5)):
                    await anyio.lowlevel.checkpoint()
                return (await client.responses.create(model="m", input=f"{text} {n}")).output_text

            first = await asyncio.gather(*(tool(n) for n in range(3)))
            last = await client.responses.create(model="m", input=" ".join(first))
            return last.output_text

        return agent

    seen = []
    for seed in (1, 2):
        async with afnio.journal(tmp_path / "calls.journal"):
            seen.append((await afnio.Variable([f"row {n}" for n in range(10)]).map(lane(seed))).data)
    assert seen[0] == seen[1]
    assert len(endpoint.asked) == 40
    assert caplog.text == ""


async def test_racing_threads_replay_without_an_alarm(
    endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    with sync_client_of(endpoint) as client:

        def agent(text: str) -> str:
            found: dict[int, str] = {}

            def tool(n: int) -> None:
                found[n] = client.responses.create(model="m", input=f"{text} {n}").output_text

            threads = [threading.Thread(target=copy_context().run, args=(tool, n)) for n in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return " ".join(found[n] for n in range(3))

        seen = []
        for _ in range(2):
            async with afnio.journal(tmp_path / "calls.journal"):
                seen.append((await afnio.Variable([f"row {n}" for n in range(10)]).map(agent)).data)
    assert seen[0] == seen[1]
    assert len(endpoint.asked) == 30
    assert caplog.text == ""


async def test_equal_requests_of_a_lane_are_calls_of_their_own(endpoint: Endpoint, tmp_path: Path) -> None:
    client = client_of(endpoint)
    with kit.events() as events:
        for _ in range(2):
            async with afnio.journal(tmp_path / "calls.journal"):
                for _ in range(3):
                    await client.responses.create(model="m", input="again")
    assert len(endpoint.asked) == 3
    assert len({event.address for event in events if isinstance(event, CallEnded)}) == 3
    assert len({event.address for event in events if isinstance(event, CallReplayed)}) == 3


async def test_a_changed_request_is_asked_anew_and_said_nothing_about(
    endpoint: Endpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    client = client_of(endpoint)
    for text in ("one", "two"):
        async with afnio.journal(tmp_path / "calls.journal"):
            assert text.upper() == (await client.responses.create(model="m", input=text)).output_text
    assert len(endpoint.asked) == 2
    assert caplog.text == ""


async def test_a_reused_reply(endpoint: Endpoint, tmp_path: Path) -> None:
    client = client_of(endpoint)
    for name in ("a", "b"):
        async with afnio.journal(tmp_path / "calls.journal", mode="reuse"), afnio.scope(name=name):
            stream = await client.responses.create(model="m", input="one two", stream=True)
            words = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert "".join(words) == "ONE TWO"
    assert len(endpoint.asked) == 1


async def test_native_and_bridged_calls_share_an_account(endpoint: Endpoint) -> None:
    endpoint.latency = 0.01
    native = AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", limits=afnio.Limits(max_in_flight=2)
    )
    client = client_of(endpoint)
    with kit.events(CallEnded) as seen:
        async with anyio.create_task_group() as group:
            for n in range(10):
                ask = {"messages": [{"role": "user", "content": f"{n}"}], "model": "m"}
                group.start_soon(lambda ask=ask: native.achat(**ask))
                group.start_soon(lambda n=n: client.responses.create(model="m", input=f"x {n}"))
    assert len({event.account for event in seen}) == 1
    assert endpoint.peak == 2


async def test_a_cancelled_lane_cancels_the_call_of_its_thread(endpoint: Endpoint) -> None:
    """The thread can't be stopped, but what it waits for can."""
    endpoint.latency = 60
    ended = threading.Event()
    errors: list[Exception] = []
    with sync_client_of(endpoint) as client:

        def ask(text: str) -> str:
            try:
                return client.responses.create(model="m", input=text).output_text
            except Exception as error:
                errors.append(error)
                raise
            finally:
                ended.set()

        async def lane() -> None:
            await afnio.Variable(["a"]).map(ask)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lane)
            await until(lambda: endpoint.asked)
            tasks.cancel_scope.cancel()
        await until(lambda: ended.is_set() and endpoint.gone)
    (error,) = errors
    assert isinstance(error, openai.APIStatusError)
    assert error.status_code == 499


async def test_a_scope_waits_for_calls_and_an_error_cancels_them(endpoint: Endpoint) -> None:
    endpoint.latency = 60
    client = client_of(endpoint)
    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            async with afnio.scope(name="s"):
                asked = group.create_task(client.responses.create(model="m", input="one"))
                while not endpoint.asked:
                    await anyio.sleep(0.01)
                raise ValueError
    assert asked.done()


async def test_a_priority_holds_for_bridged_calls(endpoint: Endpoint) -> None:
    endpoint.latency = 0.02
    client = client_of(endpoint, limits=afnio.Limits(max_in_flight=1))
    async with anyio.create_task_group() as group:
        for n in range(5):
            group.start_soon(lambda n=n: client.responses.create(model="m", input=f"training {n}"))
        while not endpoint.asked:
            await anyio.sleep(0.001)
        with afnio.priority("serving"):
            await client.responses.create(model="m", input="serving")
    assert "serving" in [asked.body["input"] for asked in endpoint.asked][:3]


async def test_anthropics_rate_limits_are_learnt(endpoint: Endpoint) -> None:
    from afnio.runtime.events import LimitsLearnt

    left = {"limit": "60", "remaining": "50"}
    headers = {f"anthropic-ratelimit-requests-{name}": value for name, value in left.items()}
    found = message_of([{"type": "text", "text": "hi"}], "end_turn")
    endpoint.fail = lambda number, asked: web.json_response(found, headers=headers)
    client = anthropic.AsyncAnthropic(api_key="k-0123456", base_url=endpoint.url, http_client=bridge.client())
    with kit.events(LimitsLearnt) as learnt:
        await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
    assert [event.requests for event in learnt] == [60]


async def test_an_image_counts_as_a_flat_sum(endpoint: Endpoint) -> None:
    """By its bytes it would be more tokens than any limit admits."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + 1_000_000 * "A"}}
    client = client_of(endpoint, limits=afnio.Limits(tokens_per_minute=5_000))
    with anyio.fail_after(60):
        await client.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": [{"type": "text", "text": "what?"}, image]}],
            max_tokens=9,
        )
    assert len(endpoint.asked) == 1


async def test_closing_the_runtime_answers_what_waits(endpoint: Endpoint) -> None:
    endpoint.latency = 60

    def ask() -> int:
        with sync_client_of(endpoint) as client, pytest.raises(openai.APIStatusError) as caught:
            client.responses.create(model="m", input="x")
        return caught.value.status_code

    asked = asyncio.create_task(asyncio.to_thread(ask))
    with anyio.fail_after(60):
        while not endpoint.asked:
            await anyio.sleep(0.01)
        await asyncio.to_thread(close)
        assert await asked in (499, 503)
