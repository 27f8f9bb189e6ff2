"""A gateway among strangers: tenants that must not see each other, idle connections, odd requests."""

from __future__ import annotations

import asyncio
import gzip
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web
from gateway.running import GatewayProcess, Upstream, answer, completion, get

BODY = {"model": "m", "messages": [{"role": "user", "content": "my salary?"}]}
CHAT = "/v1/chat/completions"
AZURE = "/v1/openai/deployments/d/chat/completions?api-version=1"
TENANTS = {
    "azure": (AZURE, {"authorization": "Bearer ALICE"}, {"authorization": "Bearer BOB"}),
    "one api-key": (
        CHAT,
        {"api-key": "shared", "authorization": "Bearer ALICE"},
        {"api-key": "shared", "authorization": "Bearer BOB"},
    ),
    "subscription": (CHAT, {"ocp-apim-subscription-key": "ALICE"}, {"ocp-apim-subscription-key": "BOB"}),
    "cloudflare": (CHAT, {"cf-aig-authorization": "ALICE"}, {"cf-aig-authorization": "BOB"}),
    "cookie": (CHAT, {"cookie": "s=ALICE"}, {"cookie": "s=BOB"}),
    "portkey": (CHAT, {"x-portkey-api-key": "ALICE"}, {"x-portkey-api-key": "BOB"}),
    "tenant": (
        CHAT,
        {"authorization": "Bearer K", "x-tenant": "ALICE"},
        {"authorization": "Bearer K", "x-tenant": "BOB"},
    ),
}


async def whose(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Answer with what tells the tenant."""
    await asyncio.sleep(0.05)
    return web.json_response(completion("BOB" if "BOB" in str(dict(request.headers)) else "ALICE"))


@pytest.mark.parametrize("way", ["a repetition", "--once", "a restart", "at once"])
async def test_tenants_get_their_own_replies(way: str, tmp_path: Path) -> None:
    """B asks what A has asked, and gets B's reply, whatever header tells them apart."""
    arguments = ["--once"] if way == "--once" else []
    if way == "a restart":
        arguments += ["--journal", str(tmp_path / "calls.journal")]
    body = {**BODY, "temperature": 0}
    repeated = {"x-stainless-retry-count": "1"} if way == "a repetition" else {}
    async with Upstream(whose) as upstream:
        got = {}
        async with GatewayProcess("--upstream", upstream.url, *arguments) as gateway:
            for name, (path, alice, bob) in TENANTS.items():
                asked = [gateway.post(path, body, alice)]
                if way == "at once":
                    asked.append(gateway.post(path, body, bob))
                *_, (_, got[name]) = await asyncio.gather(*asked)
                if way in ("a repetition", "--once"):
                    _, got[name] = await gateway.post(path, body, {**bob, **repeated})
        if way == "a restart":
            async with GatewayProcess("--upstream", upstream.url, *arguments) as gateway:
                for name, (path, _, bob) in TENANTS.items():
                    _, got[name] = await gateway.post(path, body, bob)
    assert {name: "BOB" in text for name, text in got.items()} == dict.fromkeys(TENANTS, True)


async def test_nothing_is_retried_while_it_stops() -> None:
    """A 429 after the signal ends its call; the client may send it again."""
    go = asyncio.Event()

    async def limited(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.wait_for(go.wait(), 60)
        return web.json_response(
            {"error": {"message": "slow down"}}, status=429, headers={"retry-after": "30"}
        )

    async with Upstream(limited) as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        asked = asyncio.create_task(gateway.post(CHAT, BODY))
        while not upstream.requests:
            await asyncio.sleep(0.01)
        gateway.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        go.set()
        status, text = await asyncio.wait_for(asked, 60)
        assert (status, "send the request again" in text) == (503, True)
        assert await asyncio.wait_for(gateway.ended(), 60) == 0
        assert len(upstream.requests) == 1


class Idle:
    """Connections that send half a head, or nothing."""

    def __init__(self, address: tuple[str, int], count: int) -> None:
        self._address, self._count = address, count

    async def __aenter__(self) -> Self:
        self.streams = []
        for number in range(self._count):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(*self._address)
                writer.write(b"POST /v1/chat/comp" if number % 2 else b"")
                self.streams.append((reader, writer))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for _, writer in self.streams:
            writer.close()
        for _, writer in self.streams:
            with suppress(OSError):
                await writer.wait_closed()


async def test_more_connections_than_the_soft_limit() -> None:
    """It raises the soft limit of file descriptors, and serves others meanwhile."""
    async with Upstream() as upstream:
        async with GatewayProcess("--upstream", upstream.url, descriptors=(128, 2048)) as gateway:
            async with Idle(gateway.address, 300):
                status, _ = await asyncio.wait_for(gateway.post(CHAT, BODY), 60)
                assert status == 200
            assert await gateway.end() == 0
            assert gateway.errors == b""


async def test_more_connections_than_there_may_be() -> None:
    """It asks others to come again, without a word in its log, and serves them when there is room."""
    async with Upstream() as upstream:
        async with GatewayProcess("--upstream", upstream.url, descriptors=(256, 256)) as gateway:
            async with Idle(gateway.address, 200):
                status, text = await asyncio.wait_for(gateway.post(CHAT, BODY), 60)
                assert (status, "as many connections as it may" in text) == (503, True)
            async with asyncio.timeout(60):
                while (await gateway.post(CHAT, BODY))[0] != 200:
                    await asyncio.sleep(0.1)
            assert await gateway.end() == 0
            assert gateway.errors == b""


@pytest.mark.nightly
async def test_connections_without_a_request_are_closed() -> None:
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        async with Idle(gateway.address, 20) as idle:
            ends = await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in idle.streams)), 90)
            assert ends == [b""] * 20


async def test_keys_share_connections() -> None:
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        for number in range(60):
            status, _ = await gateway.post(CHAT, BODY, {"authorization": f"Bearer key-{number}"})
            assert status == 200
        assert len(os.listdir(f"/proc/{gateway.pid}/fd")) < 50


@pytest.mark.nightly
async def test_keys_that_change_by_the_hour() -> None:
    """Those that were used long ago are forgotten; a new one is always served."""
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        seen = set()
        for start in range(0, 10_100, 100):
            asked = [
                gateway.post(CHAT, BODY, {"authorization": f"Bearer key-{start + number}"})
                for number in range(100)
            ]
            seen |= {status for status, _ in await asyncio.gather(*asked)}
        assert seen == {200}


LONG = b"1" * 5000
UNREADABLE = [
    ("POST", CHAT, b'{"model": "m", "seed": ' + LONG + b"}", 400),
    ("POST", CHAT, b'{"model": "m", "metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    ("POST", CHAT, b'{"model": "m", "messages": [{"role": "user", "content": "\xff"}]}', 400),
    ("POST", CHAT, b"[]", 400),
    ("POST", CHAT, b'{"messages": []}', 400),
    ("POST", "/v1/Chat/Completions", b'{"model": "m"}', 404),
    ("POST", "/v1//chat//completions/", b"no", 400),
    ("PUT", CHAT, b'{"model": "m"}', 405),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), UNREADABLE)
async def test_what_it_cannot_count_for_a_model(method: str, path: str, body: bytes, status: int) -> None:
    """It isn't sent past the limits."""
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url, "--rpm", "100") as gateway:
        assert (await gateway.post(path, body, method=method))[0] == status
        assert upstream.paths == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (f"{CHAT}/", BODY),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
        ("/v1/responses", {"model": "m", "input": "x", "background": True}),
        ("/v1/images/generations", {"model": "m", "prompt": "x"}),
    ],
)
async def test_a_budget_that_is_spent(
    path: str, body: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text('version = 1\n[[price]]\nmodel = "m"\ninput = 1000000\noutput = 1000000\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    async with Upstream() as upstream:
        async with GatewayProcess("--upstream", upstream.url, "--budget", "0.5") as gateway:
            assert (await gateway.post(path, body))[0] == 402
            assert upstream.paths == []
            assert (await gateway.post("/v1/moderations", BODY))[0] == 200  # costs nothing
            assert upstream.paths == ["/v1/moderations"]


async def test_completions_of_before_chats_are_counted() -> None:
    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        choice = {"index": 0, "text": "Hi", "finish_reason": "stop"}
        return web.json_response({"object": "text_completion", "choices": [choice], "usage": usage})

    async with Upstream(reply) as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        sdk = gateway.sdk()
        assert (await sdk.completions.create(model="m", prompt="x")).choices[0].text == "Hi"
        assert (await sdk.completions.create(model="m", prompt=["y"])).choices[0].text == "Hi"
        _, figures = await get(gateway.metrics_url)
        assert 'afnio_gateway_tokens_total{kind="output",model="m"} 4.0' in figures


async def test_bodies_that_are_compressed() -> None:
    """They are undone, and sent on as what they are then; those that can't be undone are refused."""
    seen = []

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        seen.append(request.headers.get("content-encoding"))
        return await answer(request, body)

    async with Upstream(reply) as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        packed = {"content-encoding": "gzip"}
        data = gzip.compress(b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}')
        assert (await gateway.post(CHAT, data, packed))[0] == 200
        assert (await gateway.post(CHAT, b"no gzip", packed))[0] == 400
        assert seen == [None]
        assert await gateway.end() == 0
        assert gateway.errors == b""


async def test_an_event_without_an_end() -> None:
    """It is cut off, before it fills the memory, and others are served meanwhile."""
    sent = [0]

    async def endless(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        if not body.get("stream"):
            return await answer(request, body)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: ")
        for _ in range(1000):
            await response.write(b"x" * 65_536)
            sent[0] += 65_536
        return response

    async with Upstream(endless) as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        stream = asyncio.create_task(gateway.post(CHAT, {**BODY, "stream": True}))
        assert (await asyncio.wait_for(gateway.post(CHAT, BODY), 60))[0] == 200
        status, text = await stream
        assert (status, "an event of more than" in text) == (502, True)
        assert sent[0] < 40 << 20


async def test_a_key_that_is_no_header_is_not_logged() -> None:
    """A key with a stray control character, copied and pasted, is refused and not written anywhere."""
    async with GatewayProcess("--upstream", "http://127.0.0.1:9/v1") as gateway:
        reader, writer = await asyncio.open_connection(*gateway.address)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-STRAY\x01\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
        writer.close()
        await writer.wait_closed()
        await gateway.end()
        assert gateway.errors == b""
