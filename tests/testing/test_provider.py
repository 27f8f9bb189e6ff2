"""The provider speaks the chat completions API over real sockets, to many clients at once."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import aiohttp
import openai
import pytest

from afnio.testing import Fault, Provider
from afnio.testing.provider import request_digest

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


async def post(session: aiohttp.ClientSession, provider: Provider, body: object = CHAT, **kwargs):
    url = f"{provider.base_url}/chat/completions"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(url, data=data, **kwargs) as reply:
        return reply.status, await reply.json(), reply.headers


def sdk(provider: Provider, key: str = "x") -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=provider.base_url, api_key=key, max_retries=0)


async def talk(provider: Provider, sent: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the server closes."""
    port = int(provider.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    return received


def raw(body: bytes, *headers: str) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: x", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sized(body: bytes, *headers: str) -> bytes:
    return raw(body, f"content-length: {len(body)}", *headers)


# The API ---------------------------------------------------------------------------------------


async def test_a_chat_is_answered_with_usage_and_counted():
    async with Provider(lm=lambda request: {"n": 1}) as provider:
        async with aiohttp.ClientSession() as session:
            status, reply, _ = await post(session, provider)
        assert status == 200
        assert reply["choices"][0]["message"]["content"] == '{"n": 1}'
        assert reply["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
        stats = provider.stats()
        assert stats.pop("batches")["paid"] == 0
        assert stats == {
            "requests": 1,
            "peak_in_flight": 1,
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "by_kind": {"student": 1},
            "by_fault": {},
            "by_refusal": {},
            "sent_429": 0,
            "worst_window": {"seconds": 60.0, "requests": 1, "tokens": 2},
            "windows": [{"window": 0, "requests": 1, "tokens": 2, "refused": 0}],
            "attempts": {request_digest(json.dumps(CHAT).encode()): 1},
        }


async def test_the_openai_sdk_gets_an_answer_that_obeys_its_schema():
    schema = {
        "type": "object",
        "properties": {"sentiment": {"type": "string", "enum": ["positive", "negative"]}},
        "required": ["sentiment"],
        "additionalProperties": False,
    }
    async with Provider() as provider, sdk(provider) as client:
        reply = await client.chat.completions.create(
            model="m",
            messages=[
                {"role": "system", "content": [{"type": "text", "text": 'Say "negative": late'}]},
                {"role": "user", "content": "You were late."},
            ],
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "s", "strict": True, "schema": schema},
            },
        )
        assert json.loads(reply.choices[0].message.content) == {"sentiment": "negative"}
        assert [model.id async for model in client.models.list()] == ["simulated"]


async def test_the_openai_sdk_raises_the_classes_of_the_real_errors():
    faults = [Fault(), Fault(status=429, headers={"retry-after": "1"}), Fault(close=True)]
    async with Provider(
        api_key="right", models=["m"], fault=lambda request, index: faults[index - 2]
    ) as provider:
        async with sdk(provider, "wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.chat.completions.create(**CHAT)
        async with sdk(provider, "right") as client:
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.chat.completions.create(**{**CHAT, "model": "other"})
            assert unknown.value.code == "model_not_found"
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(**CHAT)
            with pytest.raises(openai.RateLimitError) as limited:
                await client.chat.completions.create(**CHAT)
            assert limited.value.response.headers["retry-after"] == "1"
            with pytest.raises(openai.APIConnectionError):
                await client.chat.completions.create(**CHAT)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "JSON"),
        ([], "list"),
        ({"model": "m"}, "messages"),
        ({**CHAT, "messages": []}, "messages"),
        ({**CHAT, "messages": ["hello"]}, "role"),
        ({**CHAT, "stream": True}, "stream"),
        ({"messages": CHAT["messages"]}, "model"),
    ],
)
async def test_a_bad_body_is_refused_with_a_reason(body, named):
    async with Provider() as provider, aiohttp.ClientSession() as session:
        status, reply, _ = await post(session, provider, body)
        assert status == 400
        assert named in reply["error"]["message"]
        assert reply["error"]["type"] == "invalid_request_error"
        assert (await post(session, provider))[0] == 200


async def test_paths_and_methods():
    async with Provider() as provider, aiohttp.ClientSession() as session:
        root = provider.base_url.removesuffix("/v1")
        found = {}
        for path in ("/health", "/stats", "/models", "/v1/models", "/nowhere", "/chat/completions"):
            async with session.get(root + path) as reply:
                found[path] = reply.status
                await reply.json()
        assert found.popitem() == ("/chat/completions", 405)
        assert found.popitem() == ("/nowhere", 404)
        assert set(found.values()) == {200}


async def test_a_reply_ends_at_the_token_limit():
    async with Provider(lm=lambda request: "é" * 9) as provider, aiohttp.ClientSession() as session:
        _, reply, _ = await post(session, provider, {**CHAT, "max_completion_tokens": 2})
        choice = reply["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("é" * 4, "length")


async def test_a_broken_lm_is_a_server_error():
    async with Provider(lm=lambda request: {}["x"]) as provider, aiohttp.ClientSession() as session:
        status, reply, _ = await post(session, provider)
        assert status == 500
        assert "KeyError" in reply["error"]["message"]


# Connections -----------------------------------------------------------------------------------


async def test_many_clients_are_served_at_once_and_leave_nothing_behind():
    async with Provider(latency=1.0) as provider:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            replies = await asyncio.gather(*(post(session, provider) for _ in range(500)))
        assert {status for status, _, _ in replies} == {200}
        assert provider.stats()["requests"] == 500
        assert provider.stats()["peak_in_flight"] > 100
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_leaves_is_no_longer_in_flight():
    arrived = asyncio.Event()

    def hang(request, index):
        arrived.set()
        return Fault(hang=True) if index == 0 else None

    async with Provider(fault=hang) as provider, aiohttp.ClientSession() as session:
        first = asyncio.ensure_future(post(session, provider))
        await arrived.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await post(session, provider))[0] == 200
        assert (await post(session, provider))[0] == 200
        assert provider.stats()["requests"] == 3
        assert provider.stats()["peak_in_flight"] <= 2


async def test_closing_the_provider_ends_requests_that_hang():
    async with aiohttp.ClientSession() as session:
        arrived = asyncio.Event()

        def hang(request, index):
            arrived.set()
            return Fault(hang=True)

        async with Provider(fault=hang) as provider:
            waiting = asyncio.ensure_future(post(session, provider))
            await arrived.wait()
        with pytest.raises(aiohttp.ClientError):
            await waiting


async def test_pipelined_requests_are_answered_in_order():
    bodies = [{"model": "m", "messages": [{"role": "user", "content": text}]} for text in ("a", "b", "c")]
    sent = b"".join(sized(json.dumps(body).encode()) for body in bodies[:2])
    sent += sized(json.dumps(bodies[2]).encode(), "connection: close")
    async with Provider(latency=0.001) as provider:
        received = await talk(provider, sent)
    said = [part.split(b'"content": "')[1][:1] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert said == [b"a", b"b", b"c"]


async def test_a_body_in_chunks_after_a_continue():
    body = json.dumps(CHAT).encode()
    chunks = b"".join(b"%x;note=1\r\n%c\r\n" % (1, byte) for byte in body) + b"0\r\nx: y\r\n\r\n"
    async with Provider() as provider, aiohttp.ClientSession() as session:
        sent = raw(chunks, "transfer-encoding: chunked", "connection: close")
        assert (await talk(provider, sent)).startswith(b"HTTP/1.1 200 OK")
        assert (await post(session, provider, expect100=True))[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nbad line\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 65_536 + b"\r\n\r\n", 400),
        (raw(b"", f"content-length: {2**26 + 1}"), 413),
        (raw(b"", "content-length: -1"), 400),
        (raw(b"", "content-length: 1", "transfer-encoding: chunked"), 400),
        (raw(b"zz\r\n", "transfer-encoding: chunked"), 400),
    ],
)
async def test_what_can_not_be_read_is_refused(sent, status):
    async with Provider() as provider, aiohttp.ClientSession() as session:
        port = int(provider.base_url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        # Don't wait for the server to close: it lingers for the rest of a body that it refused.
        assert b" %d " % status in await reader.readline()
        writer.close()
        assert (await post(session, provider))[0] == 200


# The process -----------------------------------------------------------------------------------


async def test_a_process_serves_until_its_block_ends():
    with Provider.process(reply="ok", api_key="k") as provider:
        url = provider.base_url
        async with sdk(provider, "k") as client:
            reply = await client.chat.completions.create(**CHAT)
        assert reply.choices[0].message.content == "ok"
        assert provider.stats()["by_kind"] == {"student": 1}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url)


def test_a_process_ends_with_its_parent():
    parent = (
        "import os\nfrom afnio.testing import Provider\n"
        "p = Provider.process().__enter__()\nprint(p.base_url, flush=True)\nos._exit(0)"
    )
    # The provider inherits stderr, so this returns only once it has ended too.
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, timeout=60)
    assert done.stdout.startswith(b"http://127.0.0.1:")


def test_a_process_that_can_not_start_says_so(capfd):
    with Provider.process() as first:
        port = int(first.base_url.split(":")[2].split("/")[0])
        with pytest.raises(RuntimeError, match="before it served"):
            Provider.process(port=port).__enter__()
    assert "address already in use" in capfd.readouterr().err.lower()
