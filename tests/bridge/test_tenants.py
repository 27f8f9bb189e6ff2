"""Tenants: which requests may share a reply, and which count against one account."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from kit.endpoint import Asked, Endpoint

import afnio
from afnio import bridge

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def who(number: int, asked: Asked) -> web.Response:
    """Answer with the tenant of the request."""
    message = {"role": "assistant", "content": asked.headers["x-tenant"]}
    return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})


async def ask(endpoint: Endpoint, headers: dict[str, str], **fields: Any) -> str:
    async with bridge.client(module="httpx2") as client:
        reply = await client.post(
            f"{endpoint.url}/v1/chat/completions", json={**BODY, **fields}, headers=headers
        )
    return str(reply.json()["choices"][0]["message"]["content"])


async def test_each_tenant_of_a_key_gets_its_own_reply(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.fail = who
    said = []
    for name in ("a", "b", "a"):
        async with afnio.journal(tmp_path / "journal", mode="reuse"):
            said.append(await ask(endpoint, {"authorization": "Bearer k", "x-tenant": name}))
    assert said == ["a", "b", "a"]
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("authorization", "Bearer {}"),
        ("api-key", "{}"),
        ("cookie", "session={}"),
        ("ocp-apim-subscription-key", "{}"),
        ("cf-aig-authorization", "Bearer {}"),
    ],
)
async def test_a_renewed_token_pays_for_nothing_again(
    endpoint: Endpoint, tmp_path: Path, name: str, value: str
) -> None:
    for token in ("yesterday-0123", "today-0123"):
        async with afnio.journal(tmp_path / "journal"):
            await ask(endpoint, {name: value.format(token)})
    assert len(endpoint.asked) == 1


async def test_headers_of_tracing_pay_for_nothing_again(endpoint: Endpoint, tmp_path: Path) -> None:
    for number in ("1", "2"):
        headers = {"traceparent": f"00-{number}", "x-request-id": number, "user-agent": number}
        async with afnio.journal(tmp_path / "journal"):
            await ask(endpoint, headers | {"idempotency-key": number})
    assert len(endpoint.asked) == 1


async def test_a_key_is_one_account_whichever_header_it_comes_in(endpoint: Endpoint) -> None:
    """The limits of a native client hold for a plain one that sends the same key under another name."""
    endpoint.latency = 0.02
    limits = afnio.Limits(max_in_flight=1)
    async with openai.AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.client(limits)
    ) as sdk:
        await sdk.chat.completions.create(**BODY)

    async def row(number: str) -> str:
        name = ("x-api-key", "ocp-apim-subscription-key")[int(number) % 2]
        return await ask(endpoint, {name: "any-key-0123"})

    await afnio.Variable([str(number) for number in range(6)]).map(row)
    assert endpoint.peak == 1


async def test_a_signature_changes_no_account(endpoint: Endpoint) -> None:
    """AWS signs each request anew, with the same key."""
    endpoint.latency = 0.02
    credential = "AWS4-HMAC-SHA256 Credential=AKIAEXAMPLE0123/20261201/eu-west-1/bedrock/aws4_request"

    async def row(number: str) -> str:
        async with httpx2.AsyncClient() as client:
            signed = {"authorization": f"{credential}, SignedHeaders=host, Signature={number}"}
            reply = await client.post(f"{endpoint.url}/v1/chat/completions", json=BODY, headers=signed)
        return str(reply.status_code)

    with bridge.installed(limits=afnio.Limits(max_in_flight=1)):
        await afnio.Variable([str(number) for number in range(4)]).map(row)
    assert endpoint.peak == 1
