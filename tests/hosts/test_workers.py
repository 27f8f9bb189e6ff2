"""`Workers(host=…)`: where workers on other hosts reach their driver. Real hosts are in test_ray_hosts.py."""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from typing import Any

import aiohttp
import pytest
from kit.endpoint import Endpoint

import afnio
from afnio.errors import BatchError


class Elsewhere(Executor):
    """Runs each task in a thread, which takes itself for another host's worker."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        threading.Thread(target=lambda: future.set_result(fn(*args, **kwargs))).start()
        return future


def ask(url: str, text: str) -> str:
    import openai

    with openai.OpenAI(api_key="any-key-0123", max_retries=0, base_url=url) as client:
        reply = client.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
    return str(reply.choices[0].message.content)


@pytest.fixture
async def endpoint(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endpoint]:
    monkeypatch.setattr(socket, "gethostname", lambda: threading.current_thread().name)
    async with Endpoint() as found:
        yield found


@pytest.mark.parametrize(("host", "calls"), [("127.0.0.2", 3), (None, 0)])
async def test_calls_from_elsewhere_need_a_named_address(
    endpoint: Endpoint, host: str | None, calls: int
) -> None:
    if host is not None and not _may_bind(host):
        pytest.skip("this system has one loopback address only")
    workers = afnio.Workers(Elsewhere, host=host)
    function = functools.partial(ask, f"{endpoint.url}/v1")
    with afnio.budget(max_calls=10) as budget:
        found = afnio.Variable(["a", "b", "c"]).map(function, executor=workers)
        assert (await found).data == ["A", "B", "C"]
    assert len(endpoint.asked) == 3
    assert calls == budget.ledger.total.calls


async def test_nothing_is_served_there_without_a_lane(endpoint: Endpoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    workers = afnio.Workers(Elsewhere, host=f"127.0.0.1:{port}")
    assert (await afnio.Variable(["a"]).map(lambda x: x * 2, executor=workers)).data == ["aa"]
    async with aiohttp.ClientSession() as session:
        for path in ("", "/v1/chat/completions", "/forwarded", "/a-guess/forwarded", "/%2e%2e/forwarded"):
            target = {"x-afnio-target": f"{endpoint.url}/v1/chat/completions"}
            async with session.post(f"http://127.0.0.1:{port}{path}", json={}, headers=target) as reply:
                assert reply.status == 404
    assert not endpoint.asked


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "a b", "10.0.0.1:x", "10.0.0.1:70000", "http://a", "u@h", 1]
)
def test_a_host_that_is_none(host: Any) -> None:
    with pytest.raises(
        ValueError, match=r"host must be one address of this machine, with or without :port \(got"
    ):
        afnio.Workers(Elsewhere, host=host)


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("203.0.113.7", r"got 203.0.113.7: Cannot assign requested address"),
        ("no-such-host.invalid:8500", "got no-such-host.invalid, port 8500: "),
        ("localhost", r"got localhost: localhost is (127.0.0.1|::1) here, which other hosts can't reach"),
    ],
)
async def test_an_address_that_this_machine_does_not_have(host: str, why: str) -> None:
    found = afnio.Variable(["a", "b"]).map(str.upper, executor=afnio.Workers(Elsewhere, host=host))
    with pytest.raises(BatchError, match=f"host must be an address of this machine.*{why}"):
        _ = (await found).data


def _may_bind(host: str) -> bool:
    try:
        with socket.create_server((host, 0)):
            return os.name == "posix"
    except OSError:
        return False
