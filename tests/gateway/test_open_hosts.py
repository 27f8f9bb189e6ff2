"""A gateway that others can reach: only with a token, on names and IPv6 as well, and without showing a secret."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import openai
import pytest
from aiohttp import web
from gateway.running import GatewayProcess, Upstream, chat, get

from afnio.cli import main
from afnio.errors import FinalModelError
from afnio.models.openai import AsyncOpenAI

OPEN = [
    "0.0.0.0",
    "::",
    "[::]",
    "::ffff:0.0.0.0",
    socket.gethostname(),
    "gateway.example",
    "10.0.0.1",
    "0",
    "",
]


@pytest.mark.parametrize("host", OPEN)
def test_an_open_gateway_without_a_token(
    host: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFNIO_GATEWAY_TOKEN", "")  # as an empty line of a compose file sets it
    assert main(["gateway", "--host", host, "--port", "0"]) == 1
    errors = capsys.readouterr().err
    assert f"a gateway that others can reach must have a token (got host {host or 'any'} and none)" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "203.0.113.7", "2001:db8::7", "a b", "x" * 300])
def test_an_address_of_another_machine(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--host", host, "--port", "0", "--token", "secret-7"]) == 1
    errors = capsys.readouterr().err
    assert "the gateway can't listen on" in errors
    assert "pass a name or an address of this machine as --host" in errors
    assert errors.count("\n") == 1


async def test_every_address_of_both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--host ::` is reached by IPv4, too; the token of the environment isn't printed, and is needed."""
    monkeypatch.setenv("AFNIO_GATEWAY_TOKEN", "secret-7")
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url, "--host", "::") as gateway:
        assert "secret-7" not in "\n".join(gateway.lines)
        assert f"http://{socket.gethostname()}:" in gateway.url
        assert "/$AFNIO_GATEWAY_TOKEN/v1" in gateway.url
        port = gateway.url.split(":")[2].partition("/")[0]
        for origin in (f"http://127.0.0.1:{port}", f"http://[::1]:{port}"):
            sdk = gateway.sdk(base_url=f"{origin}/secret-7/v1")
            assert await chat(sdk, "Hi") == "Hi"
            bare = gateway.sdk(base_url=f"{origin}/v1", max_retries=0)
            with pytest.raises(openai.AuthenticationError, match="the gateway's token is missing or wrong"):
                await chat(bare, "Hi")
            status, _ = await get(f"{origin}/afnio/health")
            assert status == 200
        assert len(upstream.requests) == 2
        assert await asyncio.wait_for(gateway.end(), 60) == 0


async def test_what_a_gateway_has_retried_is_final_for_the_engine() -> None:
    """Otherwise each of its eight attempts would be eight at the provider."""

    async def down(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        error = {"message": "can't reach the provider", "type": "provider_down"}
        return web.json_response({"error": error}, status=503, headers={"x-should-retry": "false"})

    async with Upstream(down) as upstream:
        client = AsyncOpenAI(base_url=upstream.url, api_key="any")
        with pytest.raises(FinalModelError, match="answered 503: can't reach the provider"):
            await client.achat(model="m", messages=[{"role": "user", "content": "Hi"}])
        assert len(upstream.requests) == 1


async def test_bytes_that_are_no_text() -> None:
    """They are refused at the door, with a token or without, and leave no traceback."""
    heads = [
        b"GET /afnio/metrics HTTP/1.1\r\nAuthorization: Bearer \xff",
        b"POST /v1/chat/completions HTTP/1.1\r\nX-Afnio-Token: \xff",
        b"POST /v1/chat/completions HTTP/1.1\r\nAuthorization: Bearer \xff\r\nX-Afnio-Token: secret-7",
    ]
    async with GatewayProcess("--upstream", "http://127.0.0.1:9/v1", "--token", "secret-7") as gateway:
        for head in heads:
            _, _, port = gateway.url.split("/")[2].rpartition(":")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            writer.write(head + b"\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            reply = (await reader.read()).decode()
            writer.close()
            await writer.wait_closed()
            assert reply.startswith("HTTP/1.1 400 "), reply
            assert "must be UTF-8; encode it" in reply
        assert await gateway.end() == 0
        assert gateway.errors == b""
