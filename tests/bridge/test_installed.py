"""`installed()`: clients that the code makes itself, in this context and no other."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anthropic
import anyio.to_thread
import httpx
import httpx2
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Endpoint

import afnio
from afnio import bridge
from afnio.runtime.events import CallEnded

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def ask(url: str) -> str:
    with openai.OpenAI(api_key="k", base_url=f"{url}/v1") as client:
        return client.responses.create(model="m", input="hello").output_text


async def test_clients_made_in_the_block(endpoint: Endpoint) -> None:
    with kit.events(CallEnded) as seen, bridge.installed():
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{endpoint.url}/v1") as client:
            assert (await client.responses.create(model="m", input="hello")).output_text == "HELLO"
            assert [model.id async for model in client.models.list()] == ["m"]
        async with anthropic.AsyncAnthropic(api_key="k", base_url=endpoint.url) as claude:
            reply = await claude.messages.create(model="m", max_tokens=9, messages=BODY["messages"])
            assert reply.content[0].text == "HELLO"
        assert await asyncio.to_thread(ask, endpoint.url) == "HELLO"
    assert len(seen) == 3


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_both_libraries(endpoint: Endpoint, library: Any) -> None:

    def blocking() -> int:
        with library.Client() as client:
            return int(client.post(f"{endpoint.url}/v1/chat/completions", json=BODY).status_code)

    with kit.events(CallEnded) as seen, bridge.installed():
        async with library.AsyncClient() as client:
            assert (await client.post(f"{endpoint.url}/v1/chat/completions", json=BODY)).status_code == 200
        assert await anyio.to_thread.run_sync(blocking) == 200
    assert len(seen) == 2


async def test_a_client_made_before_the_block(endpoint: Endpoint) -> None:
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{endpoint.url}/v1") as client:
        with kit.events(CallEnded) as seen:
            await client.responses.create(model="m", input="before")
            with bridge.installed():
                await client.responses.create(model="m", input="in")
            await client.responses.create(model="m", input="after")
    assert [event.request.messages[0]["content"] for event in seen] == ["in"]
    assert len(endpoint.asked) == 3


async def test_a_bridged_client_in_the_block_makes_one_call(endpoint: Endpoint) -> None:
    with kit.events(CallEnded) as seen, bridge.installed():
        async with openai.AsyncOpenAI(
            api_key="k", base_url=f"{endpoint.url}/v1", http_client=bridge.client()
        ) as client:
            await client.responses.create(model="m", input="hello")
    assert len(endpoint.asked) == len(seen) == 1


async def test_a_native_client_with_an_http_client_makes_one_call(endpoint: Endpoint) -> None:
    from afnio.models.openai import AsyncOpenAI

    async with httpx2.AsyncClient() as http_client:
        native = AsyncOpenAI(
            api_key="k",
            base_url=f"{endpoint.url}/v1",
            http_client=http_client,
            limits=afnio.Limits(max_in_flight=1),
        )
        with kit.events(CallEnded) as seen, bridge.installed():
            await native.achat(**BODY)
        assert len(endpoint.asked) == len(seen) == 1
        await asyncio.sleep(0)


async def test_an_asyncio_run_in_a_thread(endpoint: Endpoint) -> None:
    async def main() -> str:
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{endpoint.url}/v1") as client:
            return (await client.responses.create(model="m", input="hello")).output_text

    with kit.events(CallEnded) as seen, bridge.installed():
        assert await asyncio.to_thread(asyncio.run, main()) == "HELLO"
    assert len(seen) == 1


def in_thread(function: Any, *args: Any) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


async def test_a_thread_without_context_escapes_and_is_named_once(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    with kit.events(CallEnded) as seen, bridge.installed():
        for _ in range(2):
            await asyncio.get_running_loop().run_in_executor(None, in_thread, ask, endpoint.url)
    (warning,) = caplog.records
    assert "doesn't go through the engine, because its thread has no context" in warning.message
    assert f"{__file__}:" in warning.message
    assert " in ask " in warning.message
    assert seen == []
    assert len(endpoint.asked) == 2


async def test_threads_without_context_can_be_taken_in(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    errors: list[Exception] = []

    def ask_twice() -> None:
        for _ in range(2):
            try:
                ask(endpoint.url)
            except openai.APIStatusError as error:
                errors.append(error)

    with kit.events(CallEnded) as seen, afnio.budget(max_calls=1), bridge.installed(threads=True):
        await asyncio.get_running_loop().run_in_executor(None, in_thread, ask_twice)
    (error,) = errors
    assert "max_calls=1" in str(error)
    assert len(endpoint.asked) == 1
    assert len([event for event in seen if event.error is None]) == 1
    assert caplog.text == ""


async def test_a_copied_context_belongs_to_the_block(endpoint: Endpoint) -> None:
    with kit.events(CallEnded) as seen, bridge.installed():
        run = copy_context().run
        await asyncio.get_running_loop().run_in_executor(None, in_thread, run, ask, endpoint.url)
    assert len(seen) == 1


async def test_other_contexts_are_left_alone(endpoint: Endpoint) -> None:
    """A task that began before the block isn't in it."""
    go = asyncio.Event()

    async def elsewhere() -> None:
        await go.wait()
        async with openai.AsyncOpenAI(api_key="k", base_url=f"{endpoint.url}/v1") as client:
            await client.responses.create(model="m", input="hello")

    task = asyncio.create_task(elsewhere())
    with kit.events(CallEnded) as seen, bridge.installed():
        go.set()
        await task
    assert seen == []
    assert len(endpoint.asked) == 1


@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_a_mock_stays_a_mock(library: Any) -> None:
    """A client's own transport sends the attempts: nothing goes to the network that wouldn't have gone there."""
    found = {"choices": [{"message": {"role": "assistant", "content": "mocked"}, "finish_reason": "stop"}]}
    mock = library.MockTransport(lambda request: library.Response(200, json=found))
    with kit.events(CallEnded) as seen, bridge.installed():
        async with library.AsyncClient(transport=mock) as client:
            reply = await client.post("http://nowhere.invalid/v1/chat/completions", json=BODY)
    assert found == reply.json()
    assert len(seen) == 1


def test_a_block_is_entered_once() -> None:
    block = bridge.installed()
    with block, pytest.raises(RuntimeError, match="can be entered only once"):
        block.__enter__()


async def test_a_block_may_be_left_in_another_context() -> None:
    """As fixtures of pytest-asyncio and lifespans of web servers do."""

    async def lifespan() -> AsyncIterator[None]:
        with bridge.installed():
            yield

    block = lifespan()
    await asyncio.create_task(anext(block))  # type: ignore[arg-type]
    assert await asyncio.create_task(anext(block, "left")) == "left"  # type: ignore[arg-type]


async def test_threads_belong_to_the_innermost_budget(endpoint: Endpoint, tmp_path: Path) -> None:
    async def run(*questions: str) -> list[str]:
        errors = []

        def each() -> None:
            for question in questions:
                try:
                    with openai.OpenAI(api_key="k", base_url=f"{endpoint.url}/v1") as client:
                        client.responses.create(model="m", input=question)
                except openai.APIStatusError as error:
                    errors.append(str(error))

        await asyncio.get_running_loop().run_in_executor(None, in_thread, each)
        return errors

    with bridge.installed(threads=True):
        for _ in range(2):
            async with afnio.journal(tmp_path / "calls.journal"):
                with afnio.budget(max_calls=2):
                    (error,) = await run("a", "b", "c")
                    assert "max_calls=2" in error
        assert len(endpoint.asked) == 2  # the journal had them
        assert await run("outside") == []


async def test_threads_are_refused_while_blocks_are_open_side_by_side(endpoint: Endpoint) -> None:
    inside, leave = asyncio.Event(), asyncio.Event()

    async def elsewhere() -> None:
        with afnio.budget(max_calls=5):
            inside.set()
            await leave.wait()

    def refused() -> None:
        with pytest.raises(openai.BadRequestError, match="belongs to none of them"):
            ask(endpoint.url)
        done.append(True)

    done: list[bool] = []
    with bridge.installed(threads=True):
        task = asyncio.create_task(elsewhere())
        await inside.wait()
        with afnio.budget(max_calls=5):
            await asyncio.get_running_loop().run_in_executor(None, in_thread, refused)
        leave.set()
        await task
    assert done == [True]
    assert endpoint.asked == []


async def test_limits_of_outer_blocks_hold(endpoint: Endpoint) -> None:
    endpoint.latency = 0.02
    questions = afnio.Variable([str(number) for number in range(8)])

    def row(question: str) -> str:
        return ask(endpoint.url)

    def by_address(question: str) -> str:
        with bridge.url(f"{endpoint.url}/v1", limits=afnio.Limits(max_in_flight=6)) as base_url:
            return str(httpx.post(f"{base_url}/chat/completions", json=BODY, timeout=60).status_code)

    with bridge.installed(limits=afnio.Limits(max_in_flight=2)), bridge.installed():
        await questions.map(row)
        await questions.map(by_address)
    assert endpoint.peak == 2


@pytest.mark.parametrize("path", ["/api/embeddings", "/forms/1/responses", "/car/chat/completions"])
async def test_what_another_api_has_answered_is_passed_on_once(endpoint: Endpoint, path: str) -> None:
    answered = {"embedding": [1.0]}
    endpoint.fail = lambda number, asked: web.json_response(answered)
    with bridge.installed():
        async with httpx.AsyncClient() as client:
            reply = await client.post(endpoint.url + path, json={"model": "m", "prompt": "hello"})
    assert (reply.status_code, reply.json()) == (200, answered)
    assert len(endpoint.asked) == 1
