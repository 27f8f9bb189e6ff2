"""The service tier "flex": its price, its deadline, and what happens while it has no room."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import anyio
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Endpoint, data
from kit.together import until
from kit.wire import read

import afnio
from afnio import bridge
from afnio.errors import FinalModelError, TierUnavailableError
from afnio.models import price_of
from afnio.models.openai import AsyncOpenAI
from afnio.runtime.events import CallEnded, CallRetried
from afnio.testing import Fault, Provider

HELLO = [{"role": "user", "content": "hello"}]
STANDARD = Decimal("0.000004")  # of two tokens in and one out
FULL = Fault(429, json.dumps({"error": {"message": "Resource unavailable.", "code": "resource_unavailable"}}))
PRICES = """
[[price]]
model = "m"
url = "http://127.0.0.1"
tier = "flex"
input = 0.5
output = 1

[[price]]
model = "m"
input = 1
output = 2
"""


@pytest.fixture(autouse=True)
def prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At local providers the tier costs half, as at OpenAI."""
    file = tmp_path / "prices.toml"
    file.write_text(PRICES)
    monkeypatch.setenv("AFNIO_PRICES", str(file))


def no_room(request, index):
    return FULL if request.get("service_tier") == "flex" else None


def client(provider, **options):
    return AsyncOpenAI(api_key="k", base_url=provider.base_url, **options)


async def ask(lm, **args):
    return await lm.achat(messages=HELLO, model="m", max_completion_tokens=10, **args)


def rows(ledger):
    """Return the service tier, calls, attempts and dollars of each row."""
    return sorted(
        (item.client.partition("#")[2], spent.calls, spent.attempts, spent.cost)
        for item, spent in ledger.items.items()
    )


@pytest.mark.parametrize("options", [({"service_tier": "flex"}, {}), ({}, {"service_tier": "flex"})])
async def test_flex_costs_half(options):
    """By the client's default or in one call."""
    of_client, of_call = options
    async with Provider(lm=lambda request: "yes", seed=1) as provider:
        with afnio.budget(max_cost=1) as budget, kit.events(CallEnded) as ended:
            reply = await ask(client(provider, **of_client), **of_call)
    costs = [event.cost for event in ended]
    assert (reply.service_tier, rows(budget.ledger), costs) == (
        "flex",
        [("flex", 1, 1, STANDARD / 2)],
        [STANDARD / 2],
    )


async def test_the_actual_tier_is_charged():
    """A provider that answers at the standard tier charges its price, whatever was asked for."""

    def standard(request, index):
        reply = {
            "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1},
            "service_tier": "default",
        }
        return Fault(200, json.dumps(reply))

    async with Provider(fault=standard) as provider:
        with afnio.budget(max_cost=1) as budget:
            await ask(client(provider, service_tier="flex"))
    assert rows(budget.ledger) == [("", 1, 1, STANDARD)]


async def test_the_standard_price_is_reserved():
    """A budget that can't pay for the standard tier sends nothing."""
    async with Provider(lm=lambda request: "yes") as provider:
        with afnio.budget(max_cost="0.000015"), pytest.raises(afnio.errors.BudgetExceeded):
            await ask(
                client(provider, service_tier="flex")
            )  # 2 + 2 · 10 millionths at most, half of it at flex
        assert provider.stats()["requests"] == 0


def test_a_continued_run_counts_half_prices_as_half(tmp_path):
    """The journal keeps the service tier of what was paid."""
    journal = tmp_path / "run.journal"
    spent = []

    async def run(lm, text):
        with afnio.budget(max_cost=1) as budget:
            await lm.achat(messages=HELLO, model="m")
            if text:
                await lm.achat(messages=[{"role": "user", "content": text}], model="m")
        spent.append(budget.ledger.total.cost)

    async def main():
        async with Provider(lm=lambda request: "yes") as provider:
            for text in ("", "hello"):
                async with afnio.journal(journal):
                    await run(client(provider, service_tier="flex"), text)

    afnio.run(main())
    assert spent == [STANDARD / 2, STANDARD]


async def test_a_full_tier_uses_up_nothing(monkeypatch):
    """A call waits for as long as there is no room, without attempts and without money."""
    monkeypatch.setattr("afnio.runtime._call.TIER_BACKOFF_MAX", 0.01)
    full = [FULL] * 12  # more than a call has attempts
    async with Provider(
        lm=lambda request: "yes", fault=lambda request, index: full.pop() if full else None
    ) as provider:
        with afnio.budget(max_cost=1) as budget:
            reply = await ask(client(provider, service_tier="flex"))
        sent = provider.stats()["requests"]
    assert (reply.service_tier, rows(budget.ledger)[-1][::3], sent) == ("flex", ("flex", STANDARD / 2), 13)


async def test_a_full_tier_is_no_rate_limit():
    """The account's other calls go on, while this one waits for as long as the provider asked."""
    full = Fault(429, FULL.body, {"retry-after": "60"})
    async with Provider(
        lm=lambda request: "yes",
        fault=lambda request, index: full if "service_tier" in request else None,
    ) as provider:
        with kit.events(CallRetried) as refused, anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, client(provider, service_tier="flex"))
                await until(lambda: refused)
                reply = await ask(client(provider))
                tasks.cancel_scope.cancel()
    assert str(reply) == "yes"


async def test_a_tier_that_stays_full_is_an_error(monkeypatch):
    """After an hour of nothing but refusals."""
    monkeypatch.setattr("afnio.runtime._call.REFUSED_FOR", 0.0)
    async with Provider(fault=no_room) as provider:
        with pytest.raises(TierUnavailableError, match="answered 429: Resource unavailable"):
            await ask(client(provider, service_tier="flex"))
        assert provider.stats()["requests"] == 1


async def test_a_client_may_fall_back_to_the_standard_tier():
    """At its price, within one attempt."""
    async with Provider(lm=lambda request: "yes", fault=no_room) as provider:
        with afnio.budget(max_cost=1) as budget:
            reply = await ask(client(provider, service_tier="flex", fallback="standard"))
        assert (reply.service_tier, rows(budget.ledger), provider.stats()["requests"]) == (
            "default",
            [("", 1, 1, STANDARD)],
            2,
        )


@pytest.mark.parametrize("fallback", ["standard", None])
async def test_a_bridged_sdk(fallback, monkeypatch):
    """Its tier is charged, and its header chooses the fallback."""
    monkeypatch.setattr("afnio.runtime._call.REFUSED_FOR", 0.0)
    headers = {} if fallback is None else {"x-afnio-fallback": fallback}
    async with Provider(lm=lambda request: "yes", fault=no_room if fallback else None) as provider:
        sdk = openai.AsyncOpenAI(
            api_key="k",
            base_url=provider.base_url,
            http_client=bridge.client(),
            default_headers=headers,
        )
        with afnio.budget(max_cost=1) as budget:
            reply = await sdk.chat.completions.create(messages=HELLO, model="m", service_tier="flex")
    tier, dollars = ("", STANDARD) if fallback else ("flex", STANDARD / 2)
    assert (reply.service_tier, rows(budget.ledger)) == (tier or "default", [(tier, 1, 1, dollars)])


async def test_a_stream_is_charged_at_its_tier():
    """Also if only an early event names it."""

    delta = {"service_tier": "flex", "choices": [{"index": 0, "delta": {"content": "yes"}}]}
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    counts = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}
    body = b"".join(data(event) for event in [delta, *[last] * 10, counts]) + b"data: [DONE]\n\n"
    async with Endpoint() as endpoint:
        endpoint.fail = lambda number, asked: web.Response(body=body, content_type="text/event-stream")
        sdk = openai.AsyncOpenAI(api_key="k", base_url=f"{endpoint.url}/v1", http_client=bridge.client())
        with afnio.budget(max_cost=1) as budget:
            stream = await sdk.chat.completions.create(
                messages=HELLO, model="m", max_tokens=9, service_tier="flex", stream=True
            )
            words = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
    assert (words[0], rows(budget.ledger)) == ("yes", [("flex", 1, 1, STANDARD / 2)])


async def test_the_header_of_the_fallback_reaches_the_engine_from_other_processes(monkeypatch):
    """Other headers of Afnio's end at the address of `bridge.url`."""
    monkeypatch.setattr("afnio.runtime._call.REFUSED_FOR", 0.0)
    async with Provider(lm=lambda request: "yes", fault=no_room) as provider:
        with bridge.url(provider.base_url) as url:
            sdk = openai.AsyncOpenAI(
                api_key="k",
                base_url=url,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=False),
                default_headers={"x-afnio-fallback": "standard"},
                max_retries=0,
            )
            async with sdk:
                reply = await sdk.chat.completions.create(messages=HELLO, model="m", service_tier="flex")
        assert (reply.service_tier, provider.stats()["requests"]) == ("default", 2)


def test_the_fallback_is_one_of_two():
    with pytest.raises(ValueError, match=r'fallback must be "wait" or "standard" \(got \'live\'\)'):
        AsyncOpenAI(api_key="k", fallback="live")


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("https://api.openai.com/v1#flex", "0.5"),
        ("https://eu.api.openai.com/v1#flex", "0.5"),
        ("https://api.openai.com/v1", "1"),
        ("https://api.groq.com/openai/v1#flex", "1"),
        ("https://api.openai.com.evil.example/v1#flex", "1"),
        ("https://notapi.openai.com/v1#flex", "1"),
    ],
)
def test_the_share_belongs_to_provider_and_tier(url, want):
    """Flex has the full price at Groq."""
    price = price_of("m", url)
    assert price is not None
    assert price.input == Decimal(want)


def test_the_users_file_may_price_a_tier(tmp_path, monkeypatch):
    """Its row is taken as it is, and holds for that tier alone."""
    file = tmp_path / "own.toml"
    file.write_text('[[price]]\nmodel = "m"\ntier = "flex"\ninput = 3\noutput = 4\n' + PRICES)
    monkeypatch.setenv("AFNIO_PRICES", str(file))
    url = "https://api.openai.com/v1"
    prices = [price_of("m", url), price_of("m", f"{url}#flex")]
    assert [price and price.input for price in prices] == [1, 3]


@pytest.mark.parametrize(
    ("code", "want"), [("capacity_exceeded", TierUnavailableError), ("invalid_token", FinalModelError)]
)
async def test_groqs_status(code, want):
    """498 is Groq's for a tier without room. A proxy's own 498 is final."""
    with pytest.raises(want):
        await read({"error": {"message": "no", "code": code}}, 498)
