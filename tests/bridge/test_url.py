"""`url()`: subprocesses and other languages, whose calls belong to the lane that the address was given out in."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Endpoint
from kit.together import until

import afnio
from afnio import bridge
from afnio.errors import BlockingReadError
from afnio.runtime.events import CallEnded

SCRIPT = """
import json, os, sys, urllib.request
body = json.dumps({"model": "m", "messages": [{"role": "user", "content": sys.argv[1]}]}).encode()
headers = {"content-type": "application/json", "authorization": "Bearer any-key-0123"}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
print(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
"""


async def test_a_subprocess_belongs_to_its_lane(endpoint: Endpoint, tmp_path: Path) -> None:
    def agent(text: str) -> str:
        with bridge.url(f"{endpoint.url}/v1") as base_url:
            done = subprocess.run(
                [sys.executable, "-c", SCRIPT, text],
                env={"OPENAI_BASE_URL": base_url},
                capture_output=True,
                text=True,
                check=True,
            )
        return done.stdout.strip()

    with kit.events(CallEnded) as seen:
        for _ in range(2):
            async with afnio.journal(tmp_path / "calls.journal"):
                assert (await afnio.Variable(["a", "b"]).map(agent)).data == ["A", "B"]
    assert {event.lane for event in seen} == {0, 1}
    assert len(seen) == len(endpoint.asked) == 2
    assert endpoint.asked[0].headers["authorization"] == "Bearer any-key-0123"


async def test_streams_errors_and_other_requests(endpoint: Endpoint) -> None:
    async with bridge.url(f"{endpoint.url}/v1") as base_url:
        async with openai.AsyncOpenAI(api_key="k", base_url=base_url) as client:
            stream = await client.responses.create(model="m", input="one two", stream=True)
            words = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            assert "".join(words) == "ONE TWO"
            assert [model.id async for model in client.models.list()] == ["m"]
            endpoint.fail = lambda number, asked: web.json_response({"error": {"message": "no"}}, status=400)
            with pytest.raises(openai.BadRequestError, match="no"):
                await client.responses.create(model="m", input="x")


async def test_a_budget_reaches_the_subprocess(endpoint: Endpoint) -> None:
    with afnio.budget(max_calls=0):
        async with (
            bridge.url(f"{endpoint.url}/v1") as base_url,
            openai.AsyncOpenAI(api_key="k", base_url=base_url) as client,
        ):
            with pytest.raises(openai.APIStatusError, match="max_calls=0"):
                await client.responses.create(model="m", input="x")
    assert endpoint.asked == []


async def test_a_stream_that_breaks_off_is_not_taken_for_whole(endpoint: Endpoint) -> None:
    endpoint.break_after = 3
    body = {"model": "m", "messages": [{"role": "user", "content": "one two three"}], "stream": True}
    async with bridge.url(f"{endpoint.url}/v1") as base_url, httpx2.AsyncClient() as client:
        with pytest.raises(httpx2.HTTPError):
            async with client.stream("POST", f"{base_url}/chat/completions", json=body) as reply:
                async for _ in reply.aiter_lines():
                    pass


async def test_the_address_ends_with_its_block(endpoint: Endpoint) -> None:
    async with bridge.url(f"{endpoint.url}/v1") as base_url:
        pass

    async with httpx2.AsyncClient() as client:
        reply = await client.post(f"{base_url}/chat/completions", json={"model": "m"})
    assert reply.status_code == 404
    assert "its block has ended" in reply.json()["error"]["message"]


async def test_another_token_is_refused(endpoint: Endpoint) -> None:
    async with bridge.url(f"{endpoint.url}/v1") as base_url, httpx2.AsyncClient() as client:
        root = base_url.rpartition("/")[0]
        assert (await client.post(f"{root}/guess/chat/completions", json={"model": "m"})).status_code == 404


async def test_a_client_that_goes_cancels_its_call(endpoint: Endpoint) -> None:
    endpoint.latency = 60
    async with (
        bridge.url(f"{endpoint.url}/v1") as base_url,
        openai.AsyncOpenAI(api_key="k", base_url=base_url) as client,
    ):
        asked = asyncio.create_task(client.responses.create(model="m", input="x"))
        await until(lambda: endpoint.asked)
        asked.cancel()
        await until(lambda: endpoint.gone)


def test_a_script_without_a_loop() -> None:
    with bridge.url("https://api.openai.com/v1") as base_url:
        assert base_url.startswith("http://127.0.0.1:")


def test_a_with_on_the_runtimes_loop() -> None:
    async def agent(text: str) -> str:
        with bridge.url("https://api.openai.com/v1"):
            return text

    with pytest.raises(afnio.errors.BatchError, match="write `async with` in an async def"):
        afnio.Variable(["a"]).map(agent).data
    assert BlockingReadError


def test_an_upstream_must_be_a_url() -> None:
    with pytest.raises(ValueError, match="must start with http"):
        bridge.url("api.openai.com")


async def test_a_response_in_the_background_is_not_sent_under_a_budget(endpoint: Endpoint) -> None:
    """It is paid for after the reply, which counts nothing."""
    async with (
        bridge.url(f"{endpoint.url}/v1") as base_url,
        openai.AsyncOpenAI(api_key="k", base_url=base_url) as client,
    ):
        await client.responses.create(model="m", input="x", background=True)
    with afnio.budget(max_calls=5):
        async with (
            bridge.url(f"{endpoint.url}/v1") as base_url,
            openai.AsyncOpenAI(api_key="k", base_url=base_url) as client,
        ):
            with pytest.raises(openai.APIStatusError, match="leave background out"):
                await client.responses.create(model="m", input="y", background=True)
    assert len(endpoint.asked) == 1
