"""The transport: one session for each account, and failures told apart."""

from __future__ import annotations

import gzip
import json
import logging

import anyio
import pytest
from hostile import MIB, HostileServer, Way, bomb, encoded, reply
from memory import peak

from afnio.errors import FinalModelError, TransientModelError, UnreachableError
from afnio.models import _transport
from afnio.models._client import Once
from afnio.models._transport import AiohttpTransport
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import Account, Launch, Pending, Slot
from afnio.testing import Fault, Provider

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
    return (await Pending(slot, lambda outcome: outcome))[0]


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


async def test_a_reset_is_transient():
    """The host was reached."""
    async with Provider(fault=lambda *_: Fault(close=True)) as provider:
        url = f"{provider.base_url}/chat/completions"
        with pytest.raises(TransientModelError, match="the connection to .* ended early") as caught:
            await on_runtime(lambda: AiohttpTransport.shared(Account(url, "")).post(url, {}, CHAT))
        assert not isinstance(caught.value, UnreachableError)


async def test_a_closed_port_and_an_unknown_host_can_not_be_reached():
    """With host and port and what to check."""
    async with Provider() as provider:
        closed = provider.base_url
    for url, words in [
        (closed, rf"can't reach {closed} \(127.0.0.1:\d+: connection refused\); check base_url and that"),
        ("http://nobody.invalid:99/v1", r"can't reach .* \(nobody.invalid:99: .+\); check base_url"),
    ]:
        with pytest.raises(UnreachableError, match=words):
            await on_runtime(lambda url=url: AiohttpTransport.shared(Account(url, "")).post(url, {}, CHAT))


async def test_a_header_that_can_not_be_sent_is_final():
    """Such as a key that ends in a line break, which is not shown."""
    async with Provider() as provider:
        with pytest.raises(FinalModelError, match="the request to .* can't be sent") as caught:
            await ask(AsyncOpenAI(base_url=provider.base_url, api_key="secret\n"))
        assert "secret" not in str(caught.value)
        await ask(AsyncOpenAI(base_url=provider.base_url, api_key="secret"))


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


async def test_a_cancelled_request_closes_its_connection():
    """So that the server stops working on it."""
    async with HostileServer({"v1": Way(then="hang")}) as server:

        async def post():
            return await AiohttpTransport.shared(Account("u", "")).post(server.url("v1"), {}, CHAT)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(on_runtime, post)
                while not server.seen["v1"]:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
            await server.hung_up.wait()


# Large and slow replies ------------------------------------------------------------------------


def client(server, way, **options):
    options = {"api_key": "any", **options}
    return Once(AsyncOpenAI(base_url=server.url(way), **options))


async def ask(lm):
    return str(await lm.achat(messages=[{"role": "user", "content": "hi"}], model="m"))


async def test_a_burst_of_bombs_fills_no_memory():
    """Each is 100 kB that would be 100 MiB; other calls are answered meanwhile."""
    ways = {
        "bomb": Way(reply(bomb(100), headers="content-encoding: gzip\r\n")),
        "good": Way(reply()),
    }
    before = peak()
    async with HostileServer(ways) as server:
        bombs, good = client(server, "bomb"), client(server, "good")
        errors, answered = [], []

        async def burst():
            with pytest.raises(FinalModelError, match="a reply of more than 67,108,864 bytes") as caught:
                await ask(bombs)
            errors.append(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(burst)
            while not errors:
                answered.append(await ask(good))
        assert len(answered) > 3
    assert 6 == len(errors)
    assert peak() - before < 400 * MIB


async def test_the_largest_reply_is_a_setting():
    """It counts decompressed bytes; what is below it is read, however large."""
    large = encoded("x" * 3 * MIB)
    ways = {
        "plain": Way(reply(large)),
        "gzip": Way(reply(gzip.compress(large), headers="content-encoding: gzip\r\n")),
    }
    async with HostileServer(ways) as server:
        for way in ways:
            assert 3 * MIB == len(await ask(client(server, way, max_reply_bytes=len(large))))
            with pytest.raises(FinalModelError, match=rf"more than {len(large) - 1:,} bytes; pass max_reply"):
                await ask(client(server, way, max_reply_bytes=len(large) - 1))


async def test_a_reply_that_stops_in_the_middle_is_given_up(monkeypatch):
    """Though the attempt would have more time."""
    monkeypatch.setattr(_transport, "BETWEEN_BYTES", 0.05)
    monkeypatch.setattr("afnio.runtime._retries.ATTEMPTS", 1)
    half = Way(reply(b'{"choices": ', length=99), "hang")
    async with HostileServer({"v1": half}) as server:
        with pytest.raises(FinalModelError, match="fell silent in the middle of a reply, for 0.05 s"):
            await ask(client(server, "v1"))


async def test_before_a_reply_begins_only_the_attempts_deadline_holds(monkeypatch):
    """Reasoning models are silent for minutes."""
    monkeypatch.setattr(_transport, "BETWEEN_BYTES", 0.05)
    async with Provider(lm=lambda request: "thought", latency=0.3) as provider:
        lm = AsyncOpenAI(base_url=provider.base_url, api_key="any")
        assert "thought" == await ask(lm)


# Silence ---------------------------------------------------------------------------------------


async def test_a_server_that_never_answers_is_told_once(monkeypatch, caplog):
    """For all of the account's calls, with the model that is waited for."""
    monkeypatch.setattr(_transport, "FIRST_HINT", 0.3)
    async with HostileServer({"v1": Way(then="hang")}) as server:
        lm = AsyncOpenAI(base_url=server.url("v1"), api_key="any")

        async def until(done):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask, lm)
                while not done():
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()

        with anyio.fail_after(30), caplog.at_level(logging.WARNING, logger="afnio"):
            await until(lambda: caplog.records)
            ends = anyio.current_time() + 0.5
            await until(lambda: anyio.current_time() > ends)
    (record,) = caplog.records
    assert f"{server.url('v1')} has sent no reply for 0 s (calls waiting: 3, the last for m); the model" in (
        record.message
    )
