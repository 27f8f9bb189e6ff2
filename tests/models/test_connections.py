"""The connections of an account: how many are opened, what TLS accepts, and that none is left open."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest
import trustme
from kit.hostile import reply
from kit.wire import OneAttempt

from afnio.errors import FinalModelError, ProviderDownError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import Limits

HOST = "127.0.0.1"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> trustme.CA:
    """Return a certificate authority that SSL_CERT_FILE trusts."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    return made


@pytest.fixture(params=["http", "https"])
def tls(request: pytest.FixtureRequest, authority: trustme.CA) -> ssl.SSLContext | None:
    """Return a server's context, or None for a server without TLS."""
    return None if request.param == "http" else context(authority.issue_cert(HOST))


def context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(made)
    return made


@asynccontextmanager
async def serving(
    handle: Handler, tls: ssl.SSLContext | None = None, scheme: str | None = None
) -> AsyncIterator[str]:
    """Run `handle` for each connection while the block lasts; yields the base URL."""

    async def quietly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (OSError, asyncio.IncompleteReadError):  # the client has gone
            pass
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(quietly, HOST, 0, ssl=tls, backlog=1024) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"{scheme or ('https' if tls else 'http')}://{HOST}:{port}/v1"
        server.close()


async def read(reader: asyncio.StreamReader) -> None:
    """Read one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests until the client hangs up."""
    while True:
        await read(reader)
        writer.write(reply())


async def ask(lm: AsyncOpenAI | OneAttempt) -> str:
    return str(await lm.achat(messages=[{"role": "user", "content": "hi"}], model="m"))


def client(url: str, in_flight: int = 1000) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="any", base_url=url, limits=Limits(max_in_flight=in_flight))


async def until(done: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not done():
            await anyio.sleep(0.001)


# Nothing is left open ----------------------------------------------------------------------------


async def test_a_cancelled_call_closes_its_connection(tls: ssl.SSLContext | None) -> None:
    """So that the server stops working on it."""
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read(reader)
        asked.set()
        assert await reader.read() == b""
        hung_up.set()

    async with serving(hang, tls) as url:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, client(url))
                await asked.wait()
                tasks.cancel_scope.cancel()
            await hung_up.wait()


async def test_nothing_is_left_open_after_500_cancelled_calls(tls: ssl.SSLContext | None) -> None:
    """Whether they were sent, shook hands or waited for a connection; and later calls find room."""
    sent, hanging, process = 0, False, psutil.Process()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            await read(reader)
            sent += 1
            if hanging:
                await reader.read()
                return
            writer.write(reply())

    async with serving(hang, tls) as url:
        lm = client(url)
        await ask(lm)
        before, hanging = process.num_fds(), True

        async def cancel_when(enough: int) -> None:
            nonlocal sent
            sent = 0
            async with anyio.create_task_group() as tasks:
                for _ in range(500):
                    tasks.start_soon(ask, lm)
                await until(lambda: sent >= enough)
                tasks.cancel_scope.cancel()
            await until(lambda: process.num_fds() <= before)

        await cancel_when(150)
        await cancel_when(500)
        hanging = False
        with anyio.fail_after(60):
            assert await asyncio.gather(*(ask(lm) for _ in range(300))) == ["ok"] * 300


# How many are opened -----------------------------------------------------------------------------


async def test_only_so_many_connections_are_opened_at_once(authority: trustme.CA) -> None:
    """The others wait until one is open."""
    now = peak = seen = 0
    secure, full = context(authority.issue_cert(HOST)), asyncio.Event()

    async def slow_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now, peak, seen
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # until TLS reads
        now, seen = now + 1, seen + 1
        peak = max(peak, now)
        if now == 128:
            full.set()
        await full.wait()
        now -= 1
        await writer.start_tls(secure)
        await read(reader)
        await until(lambda: seen == 200)  # so that each call needs a connection
        writer.write(reply())
        await answer(reader, writer)

    async with serving(slow_handshake, scheme="https") as url:
        lm = client(url)
        with anyio.fail_after(60):
            assert await asyncio.gather(*(ask(lm) for _ in range(200))) == ["ok"] * 200
    assert (peak, seen) == (128, 200)


async def test_if_none_can_be_opened_those_that_wait_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not after one timeout each."""
    monkeypatch.setattr("afnio.models._transport.CONNECT_TIMEOUT", 0.5)
    seen = 0

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1
        await reader.read(-1)

    async with serving(stall, scheme="https") as url:
        lm = OneAttempt(client(url))

        async def fail() -> None:
            with pytest.raises(FinalModelError, match=r"can't reach .* \(no connection within 0.5 s\)"):
                await ask(lm)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(300):
                    tasks.start_soon(fail)
    assert seen <= 128


async def test_a_waiting_call_takes_the_connection_of_one_that_ended(
    authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another is still being opened."""
    monkeypatch.setattr("afnio.models._connections.OPENING", 1)
    secure = context(authority.issue_cert(HOST))
    accepted, asked, go, shake = 0, asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def second_stalls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # until TLS reads
        if accepted == 2:
            await shake.wait()
        await writer.start_tls(secure)
        while True:
            await read(reader)
            asked.set()
            await go.wait()
            writer.write(reply())

    async with serving(second_stalls, scheme="https") as url, anyio.create_task_group() as tasks:
        lm, ended = client(url), list[int]()

        async def call(number: int) -> None:
            assert await ask(lm) == "ok"
            ended.append(number)

        with anyio.fail_after(60):
            tasks.start_soon(call, 1)
            await asked.wait()
            tasks.start_soon(call, 2)
            await until(lambda: accepted == 2)
            tasks.start_soon(call, 3)
            go.set()
            await until(lambda: len(ended) == 2)
            assert sorted(ended) == [1, 3]
            shake.set()
            await until(lambda: len(ended) == 3)
    assert accepted == 2


# TLS ---------------------------------------------------------------------------------------------


async def test_later_connections_resume_the_session_of_the_first(authority: trustme.CA) -> None:
    """Which saves the verification of certificates; and SSL_CERT_FILE names who is trusted."""
    resumed: list[bool] = []
    enough = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        resumed.append(writer.get_extra_info("ssl_object").session_reused)
        while True:
            await read(reader)
            if len(resumed) in (1, 3):
                enough.set()
            await enough.wait()
            writer.write(reply())

    async with serving(handle, context(authority.issue_cert(HOST))) as url:
        lm = client(url)
        await ask(lm)
        enough.clear()
        with anyio.fail_after(30):
            assert await asyncio.gather(*(ask(lm) for _ in range(3))) == ["ok"] * 3
    assert resumed == [False, True, True]


YESTERDAY = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)


@pytest.mark.parametrize(
    ("issue", "words"),
    [
        (lambda authority: trustme.CA().issue_cert(HOST), "local issuer certificate.*; set SSL_CERT_FILE to"),
        (
            lambda authority: authority.issue_cert(HOST, not_after=YESTERDAY),
            "has expired.*; renew the server's",
        ),
        (lambda authority: authority.issue_cert("other.test"), "not valid for '127.0.0.1'.*; use a host in"),
    ],
    ids=["unknown authority", "expired", "another host"],
)
async def test_a_refused_certificate_is_one_clear_error(
    authority: trustme.CA,
    issue: Callable[[trustme.CA], trustme.LeafCert],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The account is given up after some seconds, as one whose host doesn't exist; no request was sent."""
    monkeypatch.setattr("afnio.runtime._health.FIRST_CONTACT", 0.05)
    async with serving(answer, context(issue(authority))) as url:
        with (
            anyio.fail_after(30),
            pytest.raises(ProviderDownError, match=f"can't reach .* certificate is refused: .*{words}"),
        ):
            await ask(client(url))


async def test_a_server_without_tls_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when http:// was meant."""
    monkeypatch.setattr("afnio.runtime._health.FIRST_CONTACT", 0.05)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(reply())
        await writer.drain()

    async with serving(plain, scheme="https") as url:
        with (
            anyio.fail_after(30),
            pytest.raises(ProviderDownError, match=r"no TLS: .*; check that the server speaks TLS"),
        ):
            await ask(client(url))
