"""The transport: one session for each account, and failures told apart."""

from __future__ import annotations

import asyncio
import gzip
import logging

import anyio
import pytest
from kit.hostile import MIB, HostileServer, Way, bomb, encoded, reply
from kit.memory import peak
from kit.wire import OneAttempt

from afnio.errors import FinalModelError, UnreachableError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import Limits
from afnio.testing import Fault, Provider


async def test_accounts_of_a_host_share_its_connections():
    """A gateway has thousands of keys: with connections of their own they would use up its descriptors."""
    connections = []

    async def serve(reader, writer):
        connections.append(writer)
        while await reader.read(65_536):
            writer.write(reply())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        seen = []
        for key in ("one", "one", "another"):
            await ask(AsyncOpenAI(api_key=key, base_url=url))
            seen.append(len(connections))
        for writer in connections:
            writer.close()
    assert seen == [1, 1, 1]


async def test_bytes_go_there_and_back():
    """In UTF-8."""
    async with Provider(lm=lambda request: request["messages"][0]["content"]) as provider:
        assert await ask(AsyncOpenAI(api_key="any", base_url=provider.base_url), "hé") == "hé"


async def test_a_reset_is_transient():
    """The host was reached."""
    async with Provider(fault=lambda *_: Fault(close=True)) as provider:
        with pytest.raises(FinalModelError, match="the connection to .* ended early") as caught:
            await ask(OneAttempt(AsyncOpenAI(api_key="any", base_url=provider.base_url)))
    assert not isinstance(caught.value.__cause__, UnreachableError)


async def test_a_closed_port_and_an_unknown_host_can_not_be_reached():
    """With host and port and what to check."""
    async with Provider() as provider:
        closed = provider.base_url
    for url, words in [
        (closed, rf"can't reach {closed}/.* \(127.0.0.1:\d+: connection refused\); check base_url and that"),
        ("http://nobody.invalid:99/v1", r"can't reach .* \(nobody.invalid:99: .+\); check base_url"),
    ]:
        with pytest.raises(FinalModelError, match=words) as caught:
            await ask(OneAttempt(AsyncOpenAI(api_key="any", base_url=url)))
        assert isinstance(caught.value.__cause__, UnreachableError)


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
        lm = AsyncOpenAI(api_key="any", base_url=provider.base_url, limits=Limits(max_in_flight=150))
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                for _ in range(150):
                    tasks.start_soon(ask, lm)
                while provider.stats()["requests"] < 150:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()
        assert provider.stats()["peak_in_flight"] == 150


# Large and slow replies ------------------------------------------------------------------------


def client(server, way, **options):
    options = {"api_key": "any", **options}
    return OneAttempt(AsyncOpenAI(base_url=server.url(way), **options))


async def ask(lm, text="hi"):
    return str(await lm.achat(messages=[{"role": "user", "content": text}], model="m"))


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
    assert len(errors) == 6
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
            assert len(await ask(client(server, way, max_reply_bytes=len(large)))) == 3 * MIB
            with pytest.raises(FinalModelError, match=rf"more than {len(large) - 1:,} bytes; pass max_reply"):
                await ask(client(server, way, max_reply_bytes=len(large) - 1))


async def test_a_reply_that_stops_in_the_middle_is_given_up(monkeypatch):
    """Though the attempt would have more time."""
    monkeypatch.setattr("afnio.models._transport.BETWEEN_BYTES", 0.05)
    monkeypatch.setattr("afnio.runtime._call.ATTEMPTS", 1)
    half = Way(reply(b'{"choices": ', length=99), "hang")
    async with HostileServer({"v1": half}) as server:
        with pytest.raises(FinalModelError, match="fell silent in the middle of a reply, for 0.05 s"):
            await ask(client(server, "v1"))


async def test_before_a_reply_begins_only_the_attempts_deadline_holds(monkeypatch):
    """Reasoning models are silent for minutes."""
    monkeypatch.setattr("afnio.models._transport.BETWEEN_BYTES", 0.05)
    async with Provider(lm=lambda request: "thought", latency=0.3) as provider:
        lm = AsyncOpenAI(base_url=provider.base_url, api_key="any")
        assert await ask(lm) == "thought"


# Silence ---------------------------------------------------------------------------------------


async def test_a_server_that_never_answers_is_told_once(monkeypatch, caplog):
    """For all of the account's calls, with the model that is waited for."""
    monkeypatch.setattr("afnio.models._transport.FIRST_HINT", 0.3)
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
