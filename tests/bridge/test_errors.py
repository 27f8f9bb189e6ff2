"""Errors: an SDK gets the provider's own response or one of ours, raises its own exception, and doesn't retry."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import anthropic
import httpx2
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Endpoint

import afnio
from afnio import bridge
from afnio.runtime.events import CallEnded

SAY = [{"role": "user", "content": "hello"}]


def client_of(endpoint: Endpoint, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.client(**options)
    )


def answer(status: int, message: str, **fields: Any) -> Callable[..., web.Response]:
    return lambda number, asked: web.json_response({"error": {"message": message, **fields}}, status=status)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, openai.BadRequestError), (401, openai.AuthenticationError), (404, openai.NotFoundError)],
)
async def test_a_final_error_is_the_providers_and_is_sent_once(
    endpoint: Endpoint, status: int, kind: type[Exception]
) -> None:
    endpoint.fail = answer(status, "the provider says no")
    with pytest.raises(kind, match="the provider says no"):
        await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    assert len(endpoint.asked) == 1


async def test_a_quota_without_money_is_sent_once(endpoint: Endpoint) -> None:
    endpoint.fail = answer(429, "no money", code="insufficient_quota")
    with pytest.raises(openai.RateLimitError, match="no money"):
        await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    assert len(endpoint.asked) == 1


async def test_the_engine_retries_and_the_sdk_does_not(endpoint: Endpoint) -> None:
    endpoint.fail = answer(500, "down")
    with kit.events(CallEnded) as ended:
        with pytest.raises(openai.InternalServerError, match="down"):
            await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    (event,) = ended
    assert event.attempts == len(endpoint.asked) > 1


async def test_an_anthropic_client_does_not_retry(endpoint: Endpoint) -> None:
    endpoint.fail = lambda number, asked: web.json_response(
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, status=529
    )
    client = anthropic.AsyncAnthropic(api_key="k-0123456", base_url=endpoint.url, http_client=bridge.client())
    with kit.events(CallEnded) as ended:
        with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
            await client.messages.create(model="m", max_tokens=9, messages=SAY)
    assert [event.attempts for event in ended] == [len(endpoint.asked)]


async def test_a_failure_that_passes_is_not_seen(endpoint: Endpoint) -> None:
    endpoint.fail = lambda number, asked: web.Response(status=503) if number < 2 else None
    reply = await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    assert reply.choices[0].message.content == "HELLO"
    assert len(endpoint.asked) == 3


async def test_an_error_with_status_200_is_retried(endpoint: Endpoint) -> None:
    def fail(number: int, asked: Any) -> web.Response | None:
        return web.json_response({"error": {"message": "busy", "code": 503}}) if number == 0 else None

    endpoint.fail = fail
    assert (await client_of(endpoint).responses.create(model="m", input="hello")).output_text == "HELLO"
    assert len(endpoint.asked) == 2


async def test_an_upstream_that_is_down() -> None:
    client = openai.AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:9/v1", http_client=bridge.client())
    with pytest.raises(openai.APIStatusError, match="can't reach http://127.0.0.1:9/v1") as caught:
        await client.chat.completions.create(model="m", messages=SAY)
    assert caught.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_budget_is_status_402(endpoint: Endpoint, stream: bool) -> None:
    client = client_of(endpoint)
    with afnio.budget(max_calls=1):
        await client.chat.completions.create(model="m", messages=SAY)
        with pytest.raises(openai.APIStatusError, match="max_calls=1 leaves no room") as caught:
            await client.chat.completions.create(model="m", messages=[*SAY, *SAY], stream=stream)
    assert caught.value.status_code == 402
    assert len(endpoint.asked) == 1
    assert "429" not in str(caught.value)
    assert "rate limit" not in str(caught.value).lower()


async def test_a_budget_for_anthropics_client(endpoint: Endpoint) -> None:
    client = anthropic.AsyncAnthropic(api_key="k-0123456", base_url=endpoint.url, http_client=bridge.client())
    with afnio.budget(max_calls=0), pytest.raises(anthropic.APIStatusError, match="max_calls=0") as caught:
        await client.messages.create(model="m", max_tokens=9, messages=SAY)
    assert caught.value.status_code == 402


async def test_a_model_without_a_price_under_a_budget_in_dollars(endpoint: Endpoint) -> None:
    with afnio.budget(max_cost=1), pytest.raises(openai.APIStatusError, match="price of 'm'") as caught:
        await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    assert caught.value.status_code == 402


def test_a_blocking_client_in_an_async_def_callable() -> None:
    """It would wait for the loop that it runs on. It gets an answer at once."""
    with openai.OpenAI(
        api_key="k", base_url="http://127.0.0.1:9/v1", http_client=bridge.sync_client()
    ) as client:

        async def ask(text: str) -> str:
            client.chat.completions.create(model="m", messages=SAY)
            return text

        rows = afnio.Variable(["a"])
        with pytest.raises(afnio.errors.BatchError, match="synchronous client was called in an `async def`"):
            rows.map(ask).data


def test_a_blocking_client_in_a_def_callable() -> None:
    async def serve() -> list[str]:
        async with Endpoint() as endpoint:
            with openai.OpenAI(
                api_key="k", base_url=f"{endpoint.url}/v1", http_client=bridge.sync_client()
            ) as client:

                def ask(text: str) -> str:
                    return client.responses.create(model="m", input=text).output_text

                return (await afnio.Variable(["a", "b"]).map(ask)).data

    assert asyncio.run(serve()) == ["A", "B"]


async def test_a_call_outside_of_any_scope(endpoint: Endpoint) -> None:
    assert (await client_of(endpoint).responses.create(model="m", input="hello")).output_text == "HELLO"


async def test_the_read_timeout_does_not_count_while_a_call_waits_for_its_turn(endpoint: Endpoint) -> None:
    endpoint.latency = 0.2
    client = client_of(endpoint, limits=afnio.Limits(max_in_flight=1)).with_options(timeout=1.2)
    replies = await asyncio.gather(*(client.responses.create(model="m", input=f"n {n}") for n in range(8)))
    assert len(endpoint.asked) == len(replies) == 8


async def test_the_read_timeout_ends_an_attempt(endpoint: Endpoint) -> None:
    endpoint.latency = 30
    client = client_of(endpoint).with_options(timeout=0.05)
    with pytest.raises(openai.APIStatusError, match="gave no reply within 0.05 s") as caught:
        await client.chat.completions.create(model="m", messages=SAY)
    assert caught.value.status_code == 504


async def test_a_redirect_is_not_followed(endpoint: Endpoint) -> None:
    """Neither by the engine nor by an SDK's client: the key and the prompts would go there."""
    target = f"{endpoint.url}/elsewhere/chat/completions"
    endpoint.fail = lambda number, asked: web.Response(status=307, headers={"location": target})
    with pytest.raises(openai.APIStatusError, match="a redirect to .*, which is not followed") as caught:
        await client_of(endpoint, follow_redirects=True).chat.completions.create(model="m", messages=SAY)
    assert caught.value.status_code == 502
    assert len(endpoint.asked) == 1


# Secrets


@pytest.mark.parametrize("path", ["generateContent", "streamGenerateContent"])
async def test_a_key_in_the_url_reaches_no_file_event_or_error(
    endpoint: Endpoint, path: str, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "AIzaSyVerySecretKey0123456789abcdefgh"
    body = {"contents": [{"role": "user", "parts": [{"text": "one two"}]}]}
    caplog.set_level(logging.DEBUG, "afnio")

    async def ask(client: Any, text: str) -> httpx2.Response:
        sent = {"contents": [{"role": "user", "parts": [{"text": text}]}]}
        return await client.post(f"{endpoint.url}/v1beta/models/m:{path}?alt=sse&key={secret}", json=sent)

    async with bridge.client() as client:
        with kit.events() as events:
            async with afnio.journal(tmp_path / "calls.journal"):
                assert (await ask(client, "one two")).status_code == 200
                endpoint.fail = lambda number, asked: web.json_response(
                    {"error": {"code": 400, "message": f"API key {asked.query['key']} not valid"}}, status=400
                )
                refused = await ask(client, "three")
                endpoint.fail = lambda number, asked: web.Response(
                    status=302, headers={"location": f"/x?key={secret}"}
                )
                redirected = await ask(client, "four")
    assert body
    assert secret == endpoint.asked[0].query["key"]
    assert "<api key>" in refused.text
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    seen = [repr(event) + repr(getattr(event, "request", "")) for event in events]
    for text in (*seen, refused.text, redirected.text, caplog.text, written.decode("latin-1")):
        assert secret not in text
    assert seen


async def test_a_key_in_the_url_of_a_server_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    secret = "AIzaSyVerySecretKey0123456789abcdefgh"
    body = {"contents": [{"role": "user", "parts": [{"text": "one"}]}]}
    async with bridge.client() as client:
        with kit.events() as events:
            reply = await client.post(
                f"http://127.0.0.1:9/v1beta/models/m:generateContent?key={secret}", json=body
            )
    assert 502 <= reply.status_code <= 504
    assert secret not in reply.text + repr(events)


async def test_the_key_of_a_header_is_masked_in_errors(endpoint: Endpoint) -> None:
    endpoint.fail = answer(401, "Incorrect API key provided: any-key-0123")
    with pytest.raises(openai.AuthenticationError) as caught:
        await client_of(endpoint).chat.completions.create(model="m", messages=SAY)
    assert "any-key-0123" not in str(caught.value)
