"""The gateway, as its clients see it: a real process, real SDKs, a provider behind it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from gateway.running import (
    KEY,
    GatewayProcess,
    Upstream,
    after,
    answer,
    chat,
    chunk,
    completion,
    everything_in,
    get,
)
from kit.together import until

from afnio.cli import main
from afnio.testing import Batches, Provider


async def test_passes_calls_and_keys() -> None:
    """A call arrives with its key and without our headers; other requests pass, too; the figures count it."""
    async with Upstream() as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        sdk = gateway.sdk()
        assert await chat(sdk, "Hi", extra_headers={"x-afnio-priority": "serving"}) == "Hi"
        headers, body = upstream.requests[0]
        assert headers["Authorization"] == f"Bearer {KEY}"
        assert not [name for name in headers if name.lower().startswith("x-afnio")]
        assert body["messages"] == [{"role": "user", "content": "Hi"}]
        assert [model.id async for model in sdk.models.list()] == ["m"]
        assert upstream.paths == ["/v1/chat/completions", "/v1/models"]
        status, figures = await get(gateway.metrics_url)
        assert status == 200
        assert 'afnio_gateway_calls_total{model="m",outcome="answered"} 1.0' in figures
        assert 'afnio_gateway_tokens_total{kind="input",model="m"} 3.0' in figures
        assert await gateway.end() == 0


async def test_several_providers_under_one_port() -> None:
    """Each has its own path; one without a name is at the root."""
    async with Upstream() as one, Upstream() as two:
        async with GatewayProcess("--upstream", one.url, "--upstream", f"two={two.url}") as gateway:
            root = gateway.url.removesuffix("/v1")
            assert await chat(gateway.sdk(), "a") == "a"
            assert await chat(gateway.sdk(base_url=f"{root}/two"), "b") == "b"
            assert (one.asked, two.asked) == (["a"], ["b"])


async def test_one_limit_for_all_clients() -> None:
    """Clients of one key share its places in flight."""
    async with Upstream(after(0.02)) as upstream:
        async with GatewayProcess("--upstream", upstream.url, "--max-in-flight", "3") as gateway:
            clients = [gateway.sdk() for _ in range(4)]
            replies = await asyncio.gather(*(chat(clients[n % 4], str(n)) for n in range(40)))
            assert replies == [str(n) for n in range(40)]
            assert upstream.peak == 3


async def test_streams_chunk_by_chunk() -> None:
    """The first chunk is there before the provider has sent the second; usage that wasn't asked for isn't seen."""
    seen = asyncio.Event()

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(chunk("one"))
        await asyncio.wait_for(seen.wait(), 60)
        await response.write(chunk("two") + chunk(None, "stop") + b"data: [DONE]\n\n")
        return response

    async with Upstream(reply) as upstream, GatewayProcess("--upstream", upstream.url) as gateway:
        texts = []
        stream: Any = await gateway.sdk().chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for part in stream:
            texts.append(part.choices[0].delta.content)
            seen.set()
        assert texts == ["one", "two", None]


async def test_the_journal_answers_once_after_a_restart(tmp_path: Path) -> None:
    """Killed and started again, it pays for nothing twice, and it is no cache."""
    path = str(tmp_path / "calls.journal")
    numbers = iter(range(100))

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        return web.json_response(completion(f"{body['messages'][-1]['content']} {next(numbers)}"))

    async with Upstream(reply) as upstream:
        arguments = ("--upstream", upstream.url, "--journal", path)
        async with GatewayProcess(*arguments) as gateway:
            sdk = gateway.sdk()
            before = [await chat(sdk, text) for text in ("a", "a", "b")]
            assert len(set(before)) == 3
            await gateway.end(signal.SIGKILL)
        async with GatewayProcess(*arguments) as gateway:
            sdk = gateway.sdk()
            assert [await chat(sdk, text) for text in ("b", "a", "a")] == [before[2], before[0], before[1]]
            assert len(upstream.requests) == 3
            assert await chat(sdk, "a") == "a 3"
            assert await chat(gateway.sdk(api_key="another"), "a") == "a 4"
            assert await gateway.end() == 0
        assert KEY.encode() not in everything_in(tmp_path)


async def test_once(tmp_path: Path) -> None:
    """Equal requests of a key are one call: at the same time, later, after their client was killed, after a restart."""
    asked, go = asyncio.Event(), asyncio.Event()
    failing = [1]

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = body["messages"][-1]["content"]
        if text == "bad" and failing.pop():
            return web.json_response({"error": {"message": "no"}}, status=400)
        asked.set()
        await asyncio.wait_for(go.wait(), 60)
        return await answer(request, body)

    async with Upstream(reply) as upstream:
        arguments = ("--upstream", upstream.url, "--once", "--journal", str(tmp_path / "calls.journal"))
        async with GatewayProcess(*arguments) as gateway:
            sdk = gateway.sdk(max_retries=0)
            first = asyncio.create_task(chat(sdk, "a"))
            await asked.wait()
            first.cancel()
            others = [asyncio.create_task(chat(sdk, "a")) for _ in range(3)]
            await until_figure(gateway, "afnio_gateway_open_calls 1.0")
            go.set()
            assert [*await asyncio.gather(*others), await chat(sdk, "a")] == ["a", "a", "a", "a"]
            with pytest.raises(openai.BadRequestError):
                await chat(sdk, "bad")
            failing.append(0)
            assert await chat(sdk, "bad") == "bad"  # a failure is asked again
            assert await chat(gateway.sdk(api_key="another"), "a") == "a"
            await gateway.end(signal.SIGKILL)
        async with GatewayProcess(*arguments) as gateway:
            assert [await chat(gateway.sdk(), "a") for _ in range(2)] == ["a", "a"]
        assert upstream.asked == ["a", "bad", "bad", "a"]


async def test_clients_that_time_out_and_retry() -> None:
    """A retry joins the call that its client left, on the wire or in the queue: nothing is sent twice."""
    async with Upstream(after(0.15)) as upstream:
        async with GatewayProcess("--upstream", upstream.url, "--max-in-flight", "1") as gateway:
            sdk = gateway.sdk(timeout=0.4, max_retries=50)
            replies = await asyncio.gather(*(chat(sdk, str(number)) for number in range(12)))
            assert replies == [str(number) for number in range(12)]
            assert sorted(upstream.asked) == sorted(replies)


async def test_serving_overtakes_training() -> None:
    """A more urgent call goes before those that wait, also if they come from another client."""
    go = asyncio.Event()

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.wait_for(go.wait(), 60)
        return await answer(request, body)

    async with Upstream(reply) as upstream:
        async with GatewayProcess("--upstream", upstream.url, "--max-in-flight", "1") as gateway:
            training = [asyncio.create_task(chat(gateway.sdk(), f"training {n}")) for n in range(8)]
            await until(lambda: len(upstream.requests) == 1)
            await until_figure(gateway, "afnio_gateway_open_calls 8.0")
            urgent = {"x-afnio-priority": "serving"}
            serving = asyncio.create_task(chat(gateway.sdk(), "serving", extra_headers=urgent))
            await until_figure(gateway, "afnio_gateway_open_calls 9.0")
            go.set()
            await asyncio.gather(serving, *training)
            assert upstream.asked[1] == "serving"


async def until_figure(gateway: GatewayProcess, line: str) -> None:
    async with asyncio.timeout(60):
        while line not in (await get(gateway.metrics_url))[1]:
            await asyncio.sleep(0.005)


async def test_ends_cleanly(tmp_path: Path) -> None:
    """At a signal the call on the wire ends, is recorded and delivered; the waiting one may be sent again."""
    go = asyncio.Event()

    async def reply(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        await asyncio.wait_for(go.wait(), 60)
        return await answer(request, body)

    path = str(tmp_path / "calls.journal")
    async with Upstream(reply) as upstream:
        arguments = ("--upstream", upstream.url, "--max-in-flight", "1", "--journal", path)
        async with GatewayProcess(*arguments) as gateway:
            sdk = gateway.sdk(max_retries=0)
            first = asyncio.create_task(chat(sdk, "first"))
            await until(lambda: upstream.requests)
            second = asyncio.create_task(chat(sdk, "second"))
            await until_figure(gateway, "afnio_gateway_open_calls 2.0")
            gateway.send_signal(signal.SIGTERM)
            with pytest.raises(
                openai.InternalServerError, match="the gateway is stopping; send the request again"
            ):
                await second
            go.set()
            assert await first == "first"
            assert await gateway.ended() == 0
            assert "Finishing 1 calls on the wire" in "\n".join(gateway.lines)
        async with GatewayProcess(*arguments) as gateway:
            assert await chat(gateway.sdk(), "first") == "first"
            assert upstream.asked == ["first"]


async def test_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that may not fit gets a 402 and isn't sent; what was spent before a restart counts."""
    prices = tmp_path / "prices.toml"
    prices.write_text('version = 1\n[[price]]\nmodel = "m"\ninput = 1000000\noutput = 1000000\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    path = str(tmp_path / "calls.journal")
    async with Upstream() as upstream:
        arguments = ("--upstream", upstream.url, "--budget", "12", "--journal", path)
        async with GatewayProcess(*arguments) as gateway:
            sdk = gateway.sdk()
            assert await chat(sdk, "a", max_completion_tokens=2) == "a"  # 3 + 2 tokens, $5
            with pytest.raises(openai.APIStatusError) as refused:
                await chat(sdk, "b", max_completion_tokens=20)
            assert refused.value.status_code == 402
            await gateway.end(signal.SIGKILL)
        async with GatewayProcess(*arguments) as gateway:
            with pytest.raises(openai.APIStatusError) as refused:
                await chat(gateway.sdk(), "b", max_completion_tokens=6)
            assert refused.value.status_code == 402
        assert upstream.asked == ["a"]


async def test_a_provider_that_is_down(tmp_path: Path) -> None:
    """One sentence, with a status that SDKs don't retry; the key is written nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    path = str(tmp_path / "calls.journal")
    async with GatewayProcess("--upstream", f"http://127.0.0.1:{port}/v1", "--journal", path) as gateway:
        with pytest.raises(openai.APIStatusError, match="can't reach") as refused:
            await chat(gateway.sdk(), "Hi")
        assert refused.value.response.headers["x-should-retry"] == "false"
        status, text = await get(f"{gateway.url}/models")
        assert (status, "can't reach 127.0.0.1" in text) == (502, True)
        await gateway.end()
        assert KEY.encode() not in everything_in(tmp_path) + gateway.errors + "".join(gateway.lines).encode()


async def test_token() -> None:
    """With a token nothing is served without it: as a header, or first in the path. It isn't passed on."""
    async with Upstream() as upstream:
        async with GatewayProcess("--upstream", upstream.url, "--token", "secret-7") as gateway:
            assert "/secret-7/v1" in gateway.url
            assert await chat(gateway.sdk(), "by path") == "by path"
            bare = gateway.sdk(base_url=gateway.url.replace("/secret-7", ""), max_retries=0)
            assert await chat(bare, "by header", extra_headers={"x-afnio-token": "secret-7"}) == "by header"
            with pytest.raises(openai.AuthenticationError, match="the gateway's token is missing or wrong"):
                await chat(bare, "without")
            status, _ = await get(gateway.metrics_url.partition("?")[0])
            assert status == 401
            assert "secret-7" not in repr(
                [
                    (headers, path)
                    for (headers, _), path in zip(upstream.requests, upstream.paths, strict=True)
                ]
            )


@pytest.mark.parametrize(
    ("path", "headers", "status", "sentence"),
    [
        (
            "/one/chat/completions",
            {"x-afnio-priority": "now"},
            400,
            "x-afnio-priority must be one of serving",
        ),
        ("/v2/chat/completions", {}, 404, "the gateway serves /one (got /v2/chat/completions)"),
        ("/one/realtime", {"Connection": "Upgrade", "Upgrade": "websocket"}, 501, "connect WebSockets"),
    ],
)
async def test_wrong_requests(path: str, headers: dict[str, str], status: int, sentence: str) -> None:
    """Each mistake is answered with one sentence."""
    async with GatewayProcess("--upstream", "one=http://127.0.0.1:9/v1") as gateway:
        origin = "/".join(gateway.url.split("/")[:3])
        async with aiohttp.ClientSession() as session:
            async with session.post(origin + path, json={"messages": []}, headers=headers) as response:
                assert response.status == status
                assert sentence in (await response.json())["error"]["message"]


def run(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "afnio.cli", "gateway", *arguments], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


async def test_two_gateways(tmp_path: Path) -> None:
    """On one port, or with one journal, the second one ends with a sentence."""
    path = str(tmp_path / "calls.journal")
    async with GatewayProcess("--upstream", "http://127.0.0.1:9/v1", "--journal", path) as gateway:
        port = gateway.url.split(":")[2].partition("/")[0]
        code, errors = await asyncio.to_thread(run, "--port", port)
        assert (code, "can't listen on 127.0.0.1" in errors, errors.count("\n")) == (1, True, 1)
        code, errors = await asyncio.to_thread(run, "--port", "0", "--journal", path)
        assert (code, "in use" in errors or "open" in errors, errors.count("\n")) == (1, True, 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--upstream", "api.openai.com"], "--upstream must be a URL"),
        (["--upstream", "https://user:pass@example.org"], "must not hold credentials"),
        (["--upstream", "https://a.example", "--upstream", "https://b.example"], "given twice"),
        (["--host", "0.0.0.0"], "must have a token"),
        (["--rpm", "0"], "at least 1"),
        (["--budget", "-1"], "max_cost must be"),
    ],
)
def test_wrong_arguments(arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named before anything is served."""
    monkeypatch.delenv("AFNIO_GATEWAY_TOKEN", raising=False)
    code, errors = run("--port", "0", *arguments)
    assert code in (1, 2)
    assert sentence in errors
    assert "Traceback" not in errors


def test_without_its_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence says what to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert main(["gateway", "--port", "0"]) == 1
    errors = capsys.readouterr().err
    assert errors.endswith("run pip install 'afnio[gateway]'\n")


async def test_a_socket_that_outlives_a_restart() -> None:
    """A client that comes while the gateway is down waits for the next one, without a retry of its own."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        async with Upstream() as upstream:
            async with GatewayProcess("--upstream", upstream.url, listener=listener) as gateway:
                sdk = gateway.sdk(max_retries=0)
                assert await chat(sdk, "before") == "before"
                assert await gateway.end() == 0
                asked = asyncio.create_task(chat(gateway.sdk(max_retries=0), "between"))
                async with GatewayProcess("--upstream", upstream.url, listener=listener):
                    assert await asked == "between"


def test_a_socket_for_others_needs_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AFNIO_GATEWAY_TOKEN", raising=False)
    with socket.create_server(("0.0.0.0", 0)) as listener:
        gateway = GatewayProcess(listener=listener)
        done = subprocess.run(
            gateway.command, capture_output=True, text=True, pass_fds=[listener.fileno()], timeout=60
        )
    assert "must have a token (got host 0.0.0.0 and none)" in done.stderr
    assert done.returncode == 1


@pytest.mark.nightly
async def test_by_batch(tmp_path: Path) -> None:
    """Clients that give up and ask again, without saying so, and a gateway that is killed: one payment, one answer."""
    texts = [str(number) for number in range(8)]
    answers: dict[str, str] = {}

    async def insist(gateway: GatewayProcess, text: str) -> None:
        sdk = gateway.sdk(timeout=0.7, max_retries=0, default_headers={"user-agent": "unknown"})
        while text not in answers:
            with contextlib.suppress(openai.APIConnectionError):  # its timeout is one
                answers[text] = await chat(sdk, text)

    with Provider.process(reply="fine", batches=Batches(seconds=4.0)) as provider:
        arguments = (
            "--upstream",
            provider.base_url,
            "--batch",
            "1h",
            "--journal",
            str(tmp_path / "calls.journal"),
        )
        async with GatewayProcess(*arguments) as gateway:
            clients = [asyncio.create_task(insist(gateway, text)) for text in texts]
            while not provider.stats()["batches"]["sizes"]:
                await asyncio.sleep(0.2)
            await gateway.end(signal.SIGKILL)
            for client in clients:
                client.cancel()
            await asyncio.wait(clients)
        async with GatewayProcess(*arguments) as gateway:
            await asyncio.gather(*(insist(gateway, text) for text in texts))
        stats = provider.stats()
    assert answers == dict.fromkeys(texts, "fine")
    assert (stats["batches"]["paid"], stats["batches"]["paid_twice"], stats["requests"]) == (8, 0, 0)


def test_a_batch_needs_a_journal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway", "--batch", "24h"]) == 1
    assert "--batch must have a journal" in capsys.readouterr().err
