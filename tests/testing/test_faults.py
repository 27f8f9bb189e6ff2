"""Every kind of fault through a real socket, as our own client and as raw bytes see it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import aiohttp
import pytest
from kit.wire import OneAttempt

from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError
from afnio.models import ChatResponse
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Fault, FaultPlan, Provider, Quota
from afnio.testing.provider import request_digest

TRANSIENT, FINAL, ODD = (FaultPlan.GROUPS[name] for name in ("transient", "final", "odd"))
KINDS = [kind for kinds in FaultPlan.GROUPS.values() for kind in kinds]
HELLO = [{"role": "user", "content": "hello"}]


async def attempt(faults: Any, **options: Any) -> tuple[ModelError | ChatResponse, dict[str, Any]]:
    """Ask once; return the reply or the error, and what the provider counted."""
    async with Provider(lm=lambda request: "hi there", faults=faults, **options) as provider:
        client = OneAttempt(AsyncOpenAI(api_key="any", base_url=provider.base_url))
        try:
            reply = await client.achat(messages=HELLO, model="m", max_completion_tokens=50)
        except FinalModelError as error:
            first = error.__cause__
            return (first if isinstance(first, ModelError) else error), provider.stats()
        return reply, provider.stats()


def body(text: str) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()


async def raw(provider: Provider, sent: bytes = body("hello")) -> bytes:
    """Send a request as bytes; return all that comes until the provider closes."""
    port = int(provider.base_url.split(":")[2].split("/")[0])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(sent)}\r\n\r\n"
    writer.write(head.encode() + sent)
    try:
        return await reader.read()
    finally:
        writer.close()


# What our client makes of them -----------------------------------------------------------------

SAID = {
    "500": (500, "had an error"),
    "502": (502, "Bad gateway"),
    "503": (503, "overloaded"),
    "529": (529, "Overloaded"),
    "html": (502, "<html>"),
    "html-200": (200, "isn't a chat completion"),
    "truncated": (None, "ended early"),
    "reset": (None, "ended early"),
    "bad-json": (200, "isn't a chat completion"),
    "empty": (200, "it is empty"),
    "error-200": (502, "Provider returned error"),
    "insufficient-quota": (429, "out of quota"),
    "length": (200, "used up its output tokens"),
    "content-filter": (200, "filtered the reply"),
    "prompt-filter": (400, "filtered"),
}


@pytest.mark.parametrize("name", SAID)
async def test_a_kind_is_classified_as_its_group_says(name):
    """Status and words too."""
    error, stats = await attempt({name: 1.0})
    status, said = SAID[name]
    assert type(error) is (TransientModelError if name in TRANSIENT else FinalModelError)
    assert error.status == status
    assert said in str(error)
    assert stats["by_fault"] == {name: 1}
    assert stats["sent_429"] == (status == 429)


@pytest.mark.parametrize(
    ("name", "asked", "least", "most"),
    [("429-ms", 0.0123, 0.013, 0.013), ("429-seconds", 0.25, 0.25, 0.25), ("429-date", 30, 25, 31)],
)
async def test_a_429_says_when_to_come_back(name, asked, least, most):
    """In each of the three styles."""
    error, stats = await attempt(FaultPlan({name: 1.0}, retry_after=asked))
    assert type(error) is RateLimitedError
    assert least <= error.retry_after <= most
    assert stats["sent_429"] == 1


async def test_a_429_is_sent_at_once_and_uses_no_quota():
    """With the headers of the quota around its own."""
    async with Provider(faults="429-seconds:1", latency=1000, quota=Quota(requests=5, window=60)) as provider:
        head = (await raw(provider)).partition(b"\r\n\r\n")[0].decode().lower()
        for _ in range(5):
            await raw(provider)
        assert provider.stats()["by_refusal"] == {}
        assert provider.stats()["sent_429"] == 6
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
    assert fields["retry-after"] == "0.1"
    assert fields["x-ratelimit-limit-requests"] == "5"
    assert fields["x-ratelimit-remaining-requests"] == "0"
    assert fields["x-ratelimit-reset-requests"] == "100ms"


async def test_odd_replies_are_replies():
    """Without usage, and drop by drop."""
    reply, stats = await attempt("no-usage:1")
    assert (str(reply), reply.usage.total_tokens) == ("hi there", 0)
    start = time.monotonic()
    reply, _ = await attempt(FaultPlan({"drip": 1.0}, drip=0.2))
    assert (str(reply), reply.usage.completion_tokens) == ("hi there", 2)
    assert time.monotonic() - start >= 0.19
    assert set(ODD) == {"no-usage", "drip"}
    assert stats["by_fault"] == {"no-usage": 1}


async def test_hang_ends_with_the_clients_deadline():
    """And the next attempt gets its reply, as faults here come once in a row at most."""
    plan = FaultPlan({"hang": 1.0}, in_a_row=1)
    async with Provider(lm=lambda request: "hi", faults=plan) as provider:
        client = AsyncOpenAI(api_key="any", base_url=provider.base_url, timeout=1)
        assert str(await client.achat(messages=HELLO, model="m")) == "hi"
        assert provider.stats()["by_fault"] == {"hang": 1}
        assert list(provider.stats()["attempts"].values()) == [2]


def test_the_table_leaves_no_kind_out():
    """A new kind needs its line."""
    elsewhere = {"429-ms", "429-seconds", "429-date", "hang", *ODD}
    assert set(KINDS) == {*SAID, *elsewhere}
    assert set(FINAL) <= set(SAID)


# The bytes -------------------------------------------------------------------------------------


async def test_a_truncated_reply_ends_before_its_length():
    """Half of a completion, then the end of the connection."""
    async with Provider(faults="truncated:1") as provider:
        head, _, rest = (await raw(provider)).partition(b"\r\n\r\n")
    length = int(head.decode().lower().split("content-length: ")[1].split("\r\n")[0])
    assert len(rest) == length // 2
    assert rest.startswith(b'{"id": "chatcmpl')


async def test_a_truncated_reply_closes_a_connection_that_was_to_be_kept():
    """A client could wait for the missing bytes forever."""
    async with Provider(faults="truncated:1") as provider, aiohttp.ClientSession() as session:
        url = f"{provider.base_url}/chat/completions"
        for _ in range(2):
            with pytest.raises(aiohttp.ClientPayloadError):
                async with session.post(url, data=body("hello")) as reply:
                    await reply.read()


async def test_a_reset_is_a_reset():
    """Not a mere end."""
    async with Provider(faults="reset:1") as provider:
        with pytest.raises(ConnectionResetError):
            await raw(provider)


async def test_a_drip_comes_in_pieces_and_serves_on():
    """The connection takes another request afterwards; one whose client goes leaves nothing behind."""
    async with Provider(faults=FaultPlan({"drip": 1.0}, drip=0.05)) as provider:
        async with aiohttp.ClientSession() as session:
            url = f"{provider.base_url}/chat/completions"
            for _ in range(2):
                async with session.post(url, data=body("hello")) as reply:
                    pieces = [len(piece) async for piece, _ in reply.content.iter_chunks()]
                    assert len(pieces) > 5
    async with Provider(faults=FaultPlan({"drip": 1.0}, drip=1000)) as provider:
        port = int(provider.base_url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = body("hello")
        writer.write(
            f"POST /chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(sent)}\r\n\r\n".encode()
            + sent
        )
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_fault_by_hand_is_counted_under_its_name():
    """Before the plan is asked."""
    hook = lambda request, index: Fault(429, name="mine") if index == 0 else None  # noqa: E731
    async with Provider(fault=hook, faults="empty:1") as provider:
        assert b" 429 " in await raw(provider)
        assert (await raw(provider)).endswith(b"\r\n\r\n")
        stats = provider.stats()
    assert (stats["by_fault"], stats["sent_429"]) == ({"mine": 1, "empty": 1}, 1)


async def test_a_broken_lm_behind_a_fault_is_a_server_error():
    """As without one."""
    async with Provider(lm=lambda request: {}["x"], faults="no-usage:1") as provider:
        assert b"KeyError" in await raw(provider)


# The order -------------------------------------------------------------------------------------


def outcome(answer: bytes) -> str:
    """Return what is the same in two answers that met the same fate: no ids, no times."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    status, missing = (
        head.split(b"\r\n")[0].decode(),
        f"content-length: {len(rest)}" not in head.decode().lower(),
    )
    try:
        parsed = json.loads(rest)
    except ValueError:
        return f"{status}, broken, {missing=}, {len(rest) > 0}, {rest[:9]}"
    choices = parsed.get("choices", [{"finish_reason": parsed.get("error")}])
    return f"{status}, {choices[0]['finish_reason']}, usage={'usage' in parsed}"


async def fates(order: list[str], provider: Provider, half: Any = lambda: None) -> dict[str, list[str]]:
    """Send each text of `order`; return what each was answered, in turn. `half` is called midway."""
    found: dict[str, list[str]] = {}
    for number, text in enumerate(order):
        if number == len(order) // 2:
            half()
        try:
            seen = outcome(await raw(provider, body(text)))
        except ConnectionResetError:
            seen = "reset"
        found.setdefault(text, []).append(seen)
    return found


MIXED = {kind: 1 / 40 for kind in KINDS if kind not in ("hang", "drip")}
ORDER = [f"text {number}" for number in range(20)] * 3


async def test_a_shuffled_order_meets_the_same_fates():
    """Each attempt of each request."""
    async with Provider(lm=lambda request: "ok", faults=MIXED, seed=7) as provider:
        expected = await fates(ORDER, provider)
    shuffled = random.Random(1).sample(ORDER, len(ORDER))
    async with Provider(lm=lambda request: "ok", faults=MIXED, seed=7) as provider:
        assert await fates(shuffled, provider) == expected
    assert len({seen for answers in expected.values() for seen in answers}) > 8


async def test_what_a_quota_refuses_uses_up_no_fate():
    """When it refuses hangs on the order, so the fates of the attempts that it admits must not."""
    async with Provider(lm=lambda request: "ok", faults=MIXED, seed=7) as provider:
        expected = await fates(ORDER, provider)
    quota = Quota(requests=15, window=1000.0, shape="sliding")
    async with Provider(lm=lambda request: "ok", faults=MIXED, seed=7, quota=quota) as provider:
        found = await fates(ORDER, provider, half=lambda: provider.scale_quota(100))
        assert provider.stats()["by_refusal"]["requests"] > 5
    for text, answers in found.items():
        admitted = [seen for seen in answers if "limit 15" not in seen]
        assert admitted == expected[text][: len(admitted)]


async def test_concurrent_attempts_are_the_same_in_number_and_fate():
    """By the ledger: 30 requests, four attempts each, all at once and in another order."""
    texts = [f"text {number}" for number in range(30)] * 4
    ledgers = []
    for seed in (1, 2):
        random.Random(seed).shuffle(texts)
        async with Provider(faults=MIXED, latency="lognormal:0.01,1", seed=3) as provider:
            await asyncio.gather(*(raw(provider, body(text)) for text in texts), return_exceptions=True)
            ledgers.append(provider.stats())
    assert ledgers[0]["by_fault"] == ledgers[1]["by_fault"]
    assert (
        ledgers[0]["attempts"] == ledgers[1]["attempts"] == {request_digest(body(text)): 4 for text in texts}
    )
