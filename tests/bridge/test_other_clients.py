"""Clients on requests, urllib3, aiohttp and others: governed in a block of `installed`, and never unseen in silence."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio.to_thread
import httpx
import pytest
import requests
import urllib3
from aiohttp import web
from kit.endpoint import Endpoint

import afnio
from afnio import bridge
from afnio.models import tracing

BODY = {"model": "m", "messages": [{"role": "user", "content": "one two three"}]}
PATH = "/v1/chat/completions"
HEADERS = {"authorization": "Bearer any-key-0123"}


def by_requests(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    with requests.Session() as session:
        reply = session.post(url, json=body, headers=HEADERS, timeout=60)
        return reply.status_code, reply.text


def by_urllib3(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    with urllib3.PoolManager() as pool:
        reply = pool.request("POST", url, json=body, headers=HEADERS)
        return reply.status, reply.data.decode()


async def by_aiohttp(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.post(url, json=body, headers=HEADERS) as reply:
        return reply.status, await reply.text()


def by_http_client(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("POST", f"/{path}", json.dumps(body), {"content-type": "application/json", **HEADERS})
    reply = connection.getresponse()
    try:
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def by_urllib(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.status, reply.read().decode()


def by_httpx(url: str, body: dict[str, Any] = BODY) -> tuple[int, str]:
    reply = httpx.post(url, json=body, timeout=60)
    return reply.status_code, reply.text


@pytest.fixture(autouse=True)
def warned_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afnio.models._installed._warned", set())


Client = Callable[..., Any]
GOVERNED = [by_requests, by_urllib3, by_aiohttp]


def text_of(body: str) -> str:
    return str(json.loads(body)["choices"][0]["message"]["content"])


async def run(client: Client, url: str, *args: Any) -> tuple[int, str]:
    if asyncio.iscoroutinefunction(client):
        result: tuple[int, str] = await client(url, *args)
        return result
    return await anyio.to_thread.run_sync(client, url, *args)


@pytest.mark.parametrize("client", GOVERNED)
async def test_budget_limits_and_journal_hold(endpoint: Endpoint, client: Client, tmp_path: Path) -> None:
    endpoint.latency = 0.02

    async def row(question: str) -> str:
        body = {**BODY, "messages": [{"role": "user", "content": question}]}
        status, text = await run(client, endpoint.url + PATH, body)
        return text_of(text) if status == 200 else str(status)

    questions = afnio.Variable([f"q {number}" for number in range(8)])
    async with afnio.journal(tmp_path / "calls.journal"):
        with bridge.installed(limits=afnio.Limits(max_in_flight=2)), afnio.budget(max_calls=5) as spent:
            outputs = (await questions.map(row)).data
    assert outputs.count("402") == 3
    assert spent.ledger.total.calls == len(endpoint.asked) == 5
    async with afnio.journal(tmp_path / "calls.journal"):
        with bridge.installed():
            outputs = (await questions.map(row)).data
    assert outputs == [f"Q {number}" for number in range(8)]
    assert len(endpoint.asked) == 8  # the first five came from the journal
    assert endpoint.peak == 2
    assert endpoint.asked[0].headers["authorization"] == HEADERS["authorization"]


@pytest.mark.parametrize("client", GOVERNED)
async def test_failures_are_retried_and_refusals_are_the_providers_own(
    endpoint: Endpoint, client: Client
) -> None:
    endpoint.fail = lambda number, asked: web.json_response({}, status=503) if number == 0 else None
    with bridge.installed():
        status, text = await run(client, endpoint.url + PATH)
        assert (status, text_of(text)) == (200, "ONE TWO THREE")
        assert len(endpoint.asked) == 2
        endpoint.fail = lambda number, asked: web.json_response({"error": {"message": "no"}}, status=400)
        status, text = await run(client, endpoint.url + PATH)
    assert (status, json.loads(text)) == (400, {"error": {"message": "no"}})


async def test_streams_come_event_by_event(endpoint: Endpoint) -> None:
    first = asyncio.Event()

    async def pace(number: int) -> None:
        if number == 3:  # the reader has had an event by then
            await asyncio.wait_for(first.wait(), 60)

    endpoint.pace = pace
    loop = asyncio.get_running_loop()
    body = {**BODY, "stream": True}

    def by_lines() -> list[str]:
        with requests.post(endpoint.url + PATH, json=body, stream=True, timeout=60) as reply:
            lines = []
            for line in reply.iter_lines():
                if line:
                    loop.call_soon_threadsafe(first.set)
                    lines.append(line.decode())
            return lines

    with bridge.installed():
        lines = await anyio.to_thread.run_sync(by_lines)
        first.clear()
        more = []
        async with aiohttp.ClientSession() as session, session.post(endpoint.url + PATH, json=body) as reply:
            async for line in reply.content:
                if line.strip():
                    first.set()
                    more.append(line.decode().strip())
    assert lines == more
    assert lines[-1] == "data: [DONE]"
    assert len(endpoint.asked) == 2


async def test_other_requests_are_sent_on(endpoint: Endpoint) -> None:
    with bridge.installed(), afnio.budget(max_calls=0):
        for client in GOVERNED:
            status, text = await run(client, f"{endpoint.url}/v1/files", {"input": "x"})
            assert status == 200
            assert json.loads(text)["echo"] == "X"
        async with aiohttp.ClientSession() as session, session.get(f"{endpoint.url}/v1/models") as reply:
            assert reply.status == 200


async def test_a_session_raises_for_a_status_by_itself(endpoint: Endpoint) -> None:
    with bridge.installed(), afnio.budget(max_calls=0):
        async with aiohttp.ClientSession(raise_for_status=True) as session:
            with pytest.raises(aiohttp.ClientResponseError) as caught:
                await session.post(endpoint.url + PATH, json=BODY)
    assert caught.value.status == 402


@pytest.mark.parametrize(
    ("client", "path", "advice"),
    [
        (by_http_client, PATH, "bridge.url"),
        (by_urllib, PATH, "bridge.url"),
        (by_requests, "/model/anthropic.claude/converse", "bridge.register"),
        (by_urllib3, "/own/service", "bridge.register"),
        (by_aiohttp, "/own/service", "bridge.register"),
        (by_httpx, "/own/service", "bridge.register"),
    ],
)
async def test_a_call_that_the_engine_cant_see_is_named_once(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, client: Client, path: str, advice: str
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    with bridge.installed(), tracing() as trace:
        for _ in range(2):
            status, _ = await run(client, endpoint.url + path)
            assert status == 200
    (warning,) = [record for record in caplog.records if record.name == "afnio"]
    assert f"{__file__}:" in warning.message
    assert f"in {client.__name__} (POST 127.0.0.1:" in warning.message
    assert path in warning.message
    assert advice in warning.message
    assert trace.launched == 0


@pytest.mark.parametrize("client", [by_aiohttp, by_urllib3, by_http_client, by_httpx])
async def test_a_budget_without_a_bridge_names_it_as_well(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, client: Client
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    url = endpoint.url + PATH
    await run(client, url)
    assert caplog.text == ""
    with afnio.budget(max_calls=3):
        await run(client, url, {**BODY, "temperature": 0})
    assert "doesn't go through the engine" in caplog.text
    assert __file__ in caplog.text


@pytest.mark.parametrize(
    "path",
    ["/v1/messages/count_tokens", "/v1/responses/input_tokens", "/model/m/count-tokens", "/m:countTokens"],
)
async def test_counting_tokens_is_no_call(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """Its body is that of a call, but providers take nothing for it. CrewAI counts before each call of Anthropic's."""
    with bridge.installed():
        for client in (*GOVERNED, by_httpx, by_http_client):
            assert (await run(client, endpoint.url + path))[0] == 200
    assert caplog.text == ""


async def test_a_thread_without_a_line_of_the_users_names_that_of_the_library(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    with bridge.installed():
        await asyncio.to_thread(requests.post, f"{endpoint.url}/own/service", json=BODY, timeout=60)
    assert f"a request to a model at {Path(requests.__file__).parent}" in caplog.text


async def test_an_address_of_the_bridge_is_one_call(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "afnio")
    with bridge.installed(), afnio.budget() as spent:
        async with bridge.url(f"{endpoint.url}/v1") as base_url:
            for client in (*GOVERNED, by_http_client, by_httpx):
                assert (await run(client, f"{base_url}/chat/completions"))[0] == 200
    assert spent.ledger.total.calls == 5
    assert caplog.text == ""
