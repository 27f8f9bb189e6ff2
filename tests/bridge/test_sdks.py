"""The SDKs of OpenAI and Anthropic, and plain HTTP clients, over the bridge: every API, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import kit
import openai
import pytest
from kit.endpoint import Endpoint
from kit.together import until

import afnio
from afnio import bridge
from afnio.runtime.events import CallEnded, subscribed

SAY = [{"role": "user", "content": "one two three"}]


def openai_of(endpoint: Endpoint, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.client(**options)
    )


def anthropic_of(endpoint: Endpoint) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(
        api_key="any-key-0123", base_url=endpoint.url, http_client=bridge.client()
    )


async def chat(endpoint: Endpoint) -> str:
    reply = await openai_of(endpoint).chat.completions.create(model="m", messages=SAY)
    return reply.choices[0].message.content or ""


async def chat_stream(endpoint: Endpoint) -> str:
    stream = await openai_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def responses(endpoint: Endpoint) -> str:
    return (await openai_of(endpoint).responses.create(model="m", input="one two three")).output_text


async def responses_stream(endpoint: Endpoint) -> str:
    stream = await openai_of(endpoint).responses.create(model="m", input="one two three", stream=True)
    return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])


async def messages(endpoint: Endpoint) -> str:
    reply = await anthropic_of(endpoint).messages.create(model="m", max_tokens=9, messages=SAY)
    return reply.content[0].text


async def messages_stream(endpoint: Endpoint) -> str:
    async with anthropic_of(endpoint).messages.stream(model="m", max_tokens=9, messages=SAY) as stream:
        return "".join([text async for text in stream.text_stream])


async def gemini(endpoint: Endpoint) -> str:
    body = {"contents": [{"role": "user", "parts": [{"text": "one two three"}]}]}
    async with bridge.client(module="httpx") as client:
        url = f"{endpoint.url}/v1beta/models/m:generateContent?key=secret-0123"
        found = (await client.post(url, json=body)).json()
    return found["candidates"][0]["content"]["parts"][0]["text"]


async def gemini_stream(endpoint: Endpoint) -> str:
    body = {"contents": [{"role": "user", "parts": [{"text": "one two three"}]}]}
    url = f"{endpoint.url}/v1beta/models/m:streamGenerateContent?alt=sse"
    words = []
    async with bridge.client(module="httpx") as client:
        async with client.stream("POST", url, json=body, headers={"x-goog-api-key": "any-0123"}) as reply:
            async for line in reply.aiter_lines():
                if line:
                    event = json.loads(line.removeprefix("data: "))
                    words.append(event["candidates"][0]["content"]["parts"][0]["text"])
    return "".join(words)


CALLS = [chat, chat_stream, responses, responses_stream, messages, messages_stream, gemini, gemini_stream]


@pytest.mark.parametrize("call", CALLS)
async def test_an_api(endpoint: Endpoint, call: Callable[[Endpoint], Any]) -> None:
    with kit.events(CallEnded) as ended:
        assert await call(endpoint) == "ONE TWO THREE"
    (event,) = ended
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (7, 3)
    assert (event.model, event.attempts, event.error) == ("m", 1, None)
    assert event.request.messages[-1]["content"] == "one two three"
    assert event.reply.content == "ONE TWO THREE"
    assert event.reply.finish_reason == "stop"


@pytest.mark.parametrize("call", CALLS)
async def test_a_journal_answers_again(
    endpoint: Endpoint, call: Callable[[Endpoint], Any], tmp_path: Any
) -> None:
    for _ in range(2):
        async with afnio.journal(tmp_path / "calls.journal"):
            assert await call(endpoint) == "ONE TWO THREE"
    assert len(endpoint.asked) == 1


async def test_embeddings(endpoint: Endpoint) -> None:
    found = await openai_of(endpoint).embeddings.create(model="m", input="one", encoding_format="float")
    assert found.data[0].embedding == [1.0]


async def test_several_replies_to_one_request(endpoint: Endpoint) -> None:
    reply = await openai_of(endpoint).chat.completions.create(model="m", messages=SAY, n=3)
    assert len(reply.choices) == 3


async def test_limits_hold_for_bridged_calls(endpoint: Endpoint) -> None:
    endpoint.latency = 0.01
    client = openai_of(endpoint, limits=afnio.Limits(max_in_flight=3))
    await asyncio.gather(*(client.responses.create(model="m", input=f"number {n}") for n in range(20)))
    assert (len(endpoint.asked), endpoint.peak) == (20, 3)


async def test_blocking_clients_in_threads(endpoint: Endpoint) -> None:
    def ask() -> list[str]:
        with openai.OpenAI(
            api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.sync_client()
        ) as client:
            whole = client.chat.completions.create(model="m", messages=SAY).choices[0].message.content
            stream = client.chat.completions.create(model="m", messages=SAY, stream=True)
            return [str(whole), "".join(chunk.choices[0].delta.content or "" for chunk in stream)]

    assert await asyncio.to_thread(ask) == ["ONE TWO THREE", "ONE TWO THREE"]


async def test_a_blocking_anthropic_client(endpoint: Endpoint) -> None:
    def ask() -> str:
        with anthropic.Anthropic(
            api_key="any-key-0123", base_url=endpoint.url, http_client=bridge.sync_client()
        ) as client:
            return client.messages.create(model="m", max_tokens=9, messages=SAY).content[0].text

    assert await asyncio.to_thread(ask) == "ONE TWO THREE"


async def test_an_openai_client_over_httpx(endpoint: Endpoint) -> None:
    client = openai_of(endpoint, module="httpx")
    reply = await client.chat.completions.create(model="m", messages=SAY)
    assert reply.choices[0].message.content == "ONE TWO THREE"


def test_a_client_on_trio() -> None:
    import trio

    async def ask(url: str) -> tuple[int, str]:
        body = {"model": "m", "messages": SAY, "stream": True}
        async with bridge.client() as client:
            whole = await client.post(f"{url}/v1/chat/completions", json={**body, "stream": False})
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as reply:
                lines = [line async for line in reply.aiter_lines() if line]
        return whole.status_code, lines[-1]

    async def serve() -> tuple[int, str]:
        async with Endpoint() as endpoint:
            return await asyncio.to_thread(trio.run, ask, endpoint.url)

    assert asyncio.run(serve()) == (200, "data: [DONE]")


async def test_other_requests_are_passed_on(endpoint: Endpoint) -> None:
    client = openai_of(endpoint)
    assert [model.id async for model in client.models.list()] == ["m"]

    def names() -> list[str]:
        with openai.OpenAI(
            api_key="k", base_url=f"{endpoint.url}/v1", http_client=bridge.sync_client()
        ) as blocking:
            return [model.id for model in blocking.models.list()]

    assert await asyncio.to_thread(names) == ["m"]
    await client.close()


async def test_a_post_to_a_similar_path_of_another_service_is_passed_on(endpoint: Endpoint) -> None:
    with subscribed(lambda event: pytest.fail(f"{event}")):
        async with bridge.client() as client:
            reply = await client.post(
                f"{endpoint.url}/channels/1/messages", json={"messages": [{"content": "hi"}]}
            )
    assert reply.status_code == 200
    assert len(endpoint.asked) == 1


async def test_a_registered_path(endpoint: Endpoint) -> None:
    bridge.register("v2/complete", usage=lambda reply: (reply["in"], reply["out"]))
    with kit.events(CallEnded) as ended:
        async with bridge.client() as client:
            reply = await client.post(f"{endpoint.url}/v2/complete", json={"model": "m", "input": "hi"})
    assert reply.json()["echo"] == "HI"
    assert ended[0].usage.total_tokens == 10


@pytest.mark.parametrize("path", ["", "/", "a?b"])
def test_a_path_to_register_must_be_one(path: str) -> None:
    with pytest.raises(ValueError, match="path must be the end of a URL's path"):
        bridge.register(path, usage=lambda reply: None)


async def test_a_call_that_is_cancelled_leaves_the_wire(endpoint: Endpoint) -> None:
    endpoint.latency = 60
    client = openai_of(endpoint)
    asked = asyncio.create_task(client.chat.completions.create(model="m", messages=SAY))
    await until(lambda: endpoint.asked)
    asked.cancel()
    await until(lambda: endpoint.gone)


@pytest.mark.parametrize("option", ["proxy", "verify", "cert", "mounts", "transport"])
@pytest.mark.parametrize("make", [bridge.client, bridge.sync_client])
def test_options_of_the_replaced_transport_are_refused(option: str, make: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=rf"{option}= acts on the transport .*inner="):
        make(**{option: None})


def test_an_unknown_library() -> None:
    with pytest.raises(ValueError, match='module must be "httpx2" or "httpx"'):
        bridge.client(module="requests")  # type: ignore[arg-type]


def test_pool_limits_are_not_the_engines() -> None:
    with pytest.raises(TypeError, match=r"limits must be an afnio.Limits \(got Limits\)"):
        bridge.client(limits=httpx2.Limits())  # type: ignore[arg-type]


def test_an_inner_transport_of_the_other_library() -> None:
    with pytest.raises(TypeError, match="inner must be a transport of httpx2"):
        bridge.transport(inner=httpx.AsyncHTTPTransport())


async def test_an_inner_transport_sends_the_attempts(endpoint: Endpoint) -> None:
    sent: list[str] = []

    class Counting(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            sent.append(request.url.path)
            return await super().handle_async_request(request)

    client = openai.AsyncOpenAI(
        api_key="k",
        base_url=f"{endpoint.url}/v1",
        http_client=httpx2.AsyncClient(transport=bridge.transport(inner=Counting())),
    )
    assert (await client.responses.create(model="m", input="one two three")).output_text == "ONE TWO THREE"
    stream = await client.chat.completions.create(model="m", messages=SAY, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "ONE TWO THREE"
    assert [model.id async for model in client.models.list()] == ["m"]
    assert sent == ["/v1/responses", "/v1/chat/completions", "/v1/models"]
    await client.close()


async def test_an_inner_transport_that_blocks(endpoint: Endpoint) -> None:
    client = openai.AsyncOpenAI(
        api_key="k",
        base_url=f"{endpoint.url}/v1",
        http_client=httpx2.AsyncClient(transport=bridge.transport(inner=httpx2.HTTPTransport())),
    )
    assert (await client.responses.create(model="m", input="one two three")).output_text == "ONE TWO THREE"
    await client.close()


async def test_a_native_client_over_the_bridges_client_makes_one_call(endpoint: Endpoint) -> None:
    from afnio.models.openai import AsyncOpenAI

    native = AsyncOpenAI(
        api_key="k",
        base_url=f"{endpoint.url}/v1",
        http_client=bridge.client(),
        limits=afnio.Limits(max_in_flight=1),
    )
    with kit.events(CallEnded) as ended:
        assert str(await native.achat(messages=SAY, model="m")) == "ONE TWO THREE"
    assert len(ended) == 1
