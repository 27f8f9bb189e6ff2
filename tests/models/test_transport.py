"""The transport: one session for each account, and failures told apart."""

from __future__ import annotations

import json

import anyio
import pytest

from afnio.errors import TransientModelError
from afnio.models.transport import AiohttpTransport
from afnio.runtime import Account, Launch, Slot, Work
from afnio.testing import Provider
from afnio.testing.provider import Fault

CHAT = json.dumps(
    {"model": "m", "messages": [{"role": "user", "content": "hé"}]}, ensure_ascii=False
).encode()


async def on_runtime(body):
    launch = Launch("test")
    slot = Slot(launch)

    async def run(job, values):
        return [(await body(),)]

    launch.add(run, [], [slot])
    launch.start()
    return (await Work(slot, lambda outcome: outcome))[0]


async def test_an_account_has_one_session():
    """Shared by its clients, another account's is another."""

    async def shared():
        one, two, other = (
            AiohttpTransport.shared(Account("u", "a")),
            AiohttpTransport.shared(Account("u", "a")),
            AiohttpTransport.shared(Account("u", "b")),
        )
        return one is two, one is other

    assert (True, False) == await on_runtime(shared)


async def test_bytes_go_there_and_back():
    """Status, headers in any case, body in UTF-8."""
    async with Provider(lm=lambda request: request["messages"][0]["content"]) as provider:

        async def post():
            transport = AiohttpTransport.shared(Account(provider.base_url, ""))
            return await transport.post(f"{provider.base_url}/chat/completions", {}, CHAT)

        answer = await on_runtime(post)
        assert (200, "application/json") == (answer.status, answer.headers["Content-Type"])
        assert "h\\u00e9" in answer.body.decode()


@pytest.mark.parametrize(
    ("fault", "words"), [(Fault(close=True), "the connection to .* ended early"), (None, "can't reach")]
)
async def test_failures_of_the_wire_are_transient(fault, words):
    """A reset and a closed port each have their sentence."""
    async with Provider(fault=lambda *_: fault) as provider:
        url = f"{provider.base_url}/chat/completions"
        if fault is not None:
            with pytest.raises(TransientModelError, match=words):
                await on_runtime(lambda: AiohttpTransport.shared(Account(url, "")).post(url, {}, CHAT))
    if fault is None:
        with pytest.raises(TransientModelError, match=words):
            await on_runtime(lambda: AiohttpTransport.shared(Account(url, "")).post(url, {}, CHAT))


async def test_many_requests_share_the_session():
    """No limit of the pool's own stands before admission's."""
    async with Provider(fault=lambda *_: Fault(hang=True)) as provider:
        url = f"{provider.base_url}/chat/completions"

        async def burst():
            transport = AiohttpTransport.shared(Account(provider.base_url, ""))
            async with anyio.create_task_group() as tasks:
                for _ in range(150):
                    tasks.start_soon(transport.post, url, {}, CHAT)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(on_runtime, burst)
                while provider.stats()["requests"] < 150:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
        assert 150 == provider.stats()["peak_in_flight"]
