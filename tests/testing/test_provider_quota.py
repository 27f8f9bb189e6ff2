"""Quotas over sockets: headers on every reply, refusals, accounts, and changes while serving."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

import afnio
from afnio.autodiff import Function
from afnio.errors import RateLimitedError
from afnio.models import ChatRequest
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider, Quota

LONG = 1000.0
"""A window in which nothing comes back while a test runs."""


async def ask(base_url: str, key: str = "a", **request: Any) -> tuple[int, Any, dict[str, Any]]:
    sent = {"model": "m", "messages": [{"role": "user", "content": "12345678"}], **request}
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session,
        session.post(f"{base_url}/chat/completions", json=sent) as reply,
    ):
        return reply.status, reply.headers, await reply.json()


async def test_every_reply_tells_what_is_left():
    """Refusals too, with the time to come back."""
    quota = Quota(requests=2, tokens=1000, window=LONG)
    async with Provider(quota=quota, faults="500:1", lm=lambda request: "ok") as provider:
        status, headers, _ = await ask(provider.base_url, max_completion_tokens=98)
        assert (status, headers["x-ratelimit-remaining-requests"]) == (500, "1")
        assert headers["x-ratelimit-remaining-tokens"] == "900"
        assert headers["x-ratelimit-reset-requests"] == "8m20s"
        assert headers["x-ratelimit-reset-tokens"] == "1m40s"
        await ask(provider.base_url, max_tokens=1)
        status, headers, reply = await ask(provider.base_url)
        assert (status, headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert 490 < int(headers["retry-after"]) <= 500
        assert 490_000 < int(headers["retry-after-ms"]) <= 500_000
        assert reply["error"]["code"] == "rate_limit_exceeded"
        assert provider.stats()["by_refusal"] == {"requests": 1}
        assert provider.stats()["worst_window"] == {"seconds": LONG, "requests": 3, "tokens": 105}


async def attempted(client, **args):
    """Make one attempt past admission, which would wait for room, and return the reply or the error."""
    request, found = ChatRequest.build([{"role": "user", "content": "12345678"}], model="m", **args), []

    class Once(Function):
        @staticmethod
        async def forward(ctx, text):
            try:
                found.append(await client.send(request))
            except RateLimitedError as error:
                found.append(error)
            return text

    await Once.apply(afnio.Variable("once"))
    return found[0]


async def test_our_client_reads_a_refusal():
    """As a rate limit; one that can never pass as that too, without a time."""
    async with Provider(quota=Quota(tokens=10, window=500.0), lm=lambda request: "ok") as provider:
        client = AsyncOpenAI(api_key="any", base_url=provider.base_url)
        first, second, third = [await attempted(client, max_completion_tokens=most) for most in (8, 8, 9)]
    assert first.content == "ok"
    assert 490 < second.retry_after <= 500
    assert third.retry_after is None


async def test_each_key_has_its_own_and_each_model_where_asked():
    """One request each."""
    asked = [("a", "m"), ("a", "m"), ("b", "m"), ("a", "n")]
    for per_model, expected in ((False, [200, 429, 200, 429]), (True, [200, 429, 200, 200])):
        async with Provider(quota=Quota(requests=1, window=LONG, per_model=per_model)) as provider:
            found = [(await ask(provider.base_url, key, model=model))[0] for key, model in asked]
        assert found == expected


async def test_a_quota_scales_while_serving():
    """In the loop by a method; accounts that came before and after."""
    async with Provider(quota=Quota(requests=4, window=LONG, shape="sliding")) as provider:
        assert (await ask(provider.base_url))[0] == 200
        provider.scale_quota(0.5)
        assert [(await ask(provider.base_url))[0] for _ in range(2)] == [200, 429]
        assert [(await ask(provider.base_url, "new"))[0] for _ in range(3)] == [200, 200, 429]
        provider.scale_quota(0.001)  # to no less than one
        assert [(await ask(provider.base_url, "newer"))[0] for _ in range(2)] == [200, 429]
    async with Provider() as provider:
        with pytest.raises(ValueError, match="must have a quota"):
            provider.scale_quota(0.5)


async def test_a_process_has_quota_faults_latency_and_a_ledger():
    """All by arguments; its quota scales by POST /admin/quota."""
    quota = Quota(requests=4, tokens=10_000, window=LONG, shape="sliding", halve_after=100, per_model=True)
    options = {"quota": quota, "faults": {"no-usage": 1.0}, "latency": "lognormal:0.001,1.0", "seed": 7}
    with Provider.process(reply="ok", **options) as provider:
        status, headers, reply = await ask(provider.base_url)
        assert (status, headers["x-ratelimit-limit-requests"], "usage" in reply) == (200, "4", False)
        provider.scale_quota(0.5)
        assert [(await ask(provider.base_url))[0] for _ in range(2)] == [200, 429]
        stats = provider.stats()
        assert (stats["by_fault"], stats["sent_429"]) == ({"no-usage": 2}, 1)
        assert (stats["worst_window"]["requests"], stats["worst_window"]["seconds"]) == (3, LONG)
        assert list(stats["attempts"].values()) == [3]
        with pytest.raises(ValueError, match="got -1.0"):
            provider.scale_quota(-1)
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{provider.base_url}/admin/quota", data=json.dumps([1])) as refused,
        ):
            assert refused.status == 400


async def test_a_process_can_read_little():
    """The simulated LM's context; what it would have learnt lies behind the cut."""
    messages = [
        {"role": "system", "content": 'Say "negative" if the text has "late", else "positive".'},
        {"role": "user", "content": "You were late."},
    ]
    said = []
    for context in (None, 5):
        with Provider.process(context=context) as provider:
            _, _, reply = await ask(provider.base_url, messages=messages)
            said.append(reply["choices"][0]["message"]["content"])
    assert said[0] != said[1]


async def test_windows_are_counted_without_a_quota():
    """Of the length that was asked for."""
    async with Provider(window=LONG) as provider:
        await ask(provider.base_url, max_tokens=8)
        assert provider.stats()["worst_window"] == {"seconds": LONG, "requests": 1, "tokens": 10}
    with pytest.raises(ValueError, match="got 0"):
        Provider(window=0)
