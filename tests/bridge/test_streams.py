"""Streams: event by event, recorded whole, retried until the first content, left early, broken off."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx2
import kit
import openai
import pytest
from aiohttp import web
from kit.endpoint import Asked, Endpoint, data, named
from kit.together import until

import afnio
from afnio import bridge
from afnio.models import tracing
from afnio.runtime.events import CallEnded, CallReplayed

SAY = [{"role": "user", "content": "one two three"}]


def client_of(endpoint: Endpoint) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        api_key="any-key-0123", base_url=f"{endpoint.url}/v1", http_client=bridge.client()
    )


def texts(chunk: Any) -> str:
    return chunk.choices[0].delta.content or ""


async def test_chunks_arrive_one_by_one(endpoint: Endpoint) -> None:
    """The server sends the next event only when the reader has had the one before."""
    had = [asyncio.Event() for _ in range(10)]
    home = asyncio.get_running_loop()

    async def wait(n: int) -> None:
        if n >= 2:  # the first event carries nothing and is held back
            await asyncio.wait_for(had[n - 2].wait(), 60)

    assert home is asyncio.get_running_loop()
    endpoint.pace = wait
    stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
    words = []
    n = 0
    async for chunk in stream:
        if texts(chunk):
            words.append(texts(chunk))
        had[n].set()
        n += 1
        if n >= 4:
            for event in had:
                event.set()
    assert words == ["ONE ", "TWO ", "THREE"]


async def test_the_end_waits_until_the_record_is_on_disk(endpoint: Endpoint, tmp_path: Path) -> None:
    """Whoever sees the end of a stream finds it in the journal, even if the process is killed right then."""
    path = tmp_path / "calls.journal"

    async with afnio.journal(path):
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        async for _ in stream:
            pass
        command = [sys.executable, "-m", "afnio.cli", "journal", "stat", str(path), "--json"]
        stat = json.loads((await anyio.run_process(command)).stdout)
        assert stat["spent"][0]["calls"] == 1


async def test_a_replay_has_the_same_events(endpoint: Endpoint, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with afnio.journal(tmp_path / "calls.journal"):
            stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
            seen.append([chunk.model_dump() async for chunk in stream])
    assert seen[0] == seen[1]
    assert len(endpoint.asked) == 1


# Usage


async def test_usage_is_asked_for_and_taken_out(endpoint: Endpoint) -> None:
    with kit.events(CallEnded) as ended:
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.choices for chunk in chunks)
    assert endpoint.asked[0].body["stream_options"] == {"include_usage": True}
    assert ended[0].usage.total_tokens == 10
    assert "stream_options" not in ended[0].request.params


async def test_usage_that_the_caller_asked_for_stays(endpoint: Endpoint) -> None:
    stream = await client_of(endpoint).chat.completions.create(
        model="m", messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage.total_tokens == 10


async def test_a_server_that_refuses_to_be_asked_is_remembered(endpoint: Endpoint) -> None:
    def refuse(number: int, asked: Asked) -> web.Response | None:
        if "stream_options" in asked.body:
            return web.json_response({"error": {"message": "extra field: stream_options"}}, status=400)
        return None

    endpoint.fail = refuse
    client = client_of(endpoint)
    with kit.events(CallEnded) as ended:
        for _ in range(2):
            stream = await client.chat.completions.create(model="m", messages=SAY, stream=True)
            assert "".join([texts(chunk) async for chunk in stream]) == "ONE TWO THREE"
    assert ["stream_options" in asked.body for asked in endpoint.asked] == [True, False, False]
    assert ended[1].usage.completion_tokens == 4  # estimated: 13 characters


async def test_a_request_that_is_bad_in_itself_is_told_so(endpoint: Endpoint) -> None:
    endpoint.fail = lambda number, asked: web.json_response({"error": {"message": "bad"}}, status=400)
    client = client_of(endpoint)
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match="bad"):
            await client.chat.completions.create(model="m", messages=SAY, stream=True)


# Retries


ERRORS = {
    "openai": data({"error": {"message": "overloaded", "type": "server_error", "code": None}}),
    "responses": named(
        "error", {"type": "error", "code": "server_error", "message": "overloaded", "param": None}
    ),
    "anthropic": named(
        "error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    ),
}


@pytest.mark.parametrize("api", list(ERRORS))
async def test_an_error_before_the_first_content_is_retried(endpoint: Endpoint, api: str) -> None:
    endpoint.event_of = lambda number, n: ERRORS[api] if number == 0 and n == 1 else None
    if api == "openai":
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        words = [texts(chunk) async for chunk in stream]
    elif api == "responses":
        found = await client_of(endpoint).responses.create(model="m", input="one two three", stream=True)
        words = [event.delta async for event in found if event.type == "response.output_text.delta"]
    else:
        claude = anthropic.AsyncAnthropic(api_key="k", base_url=endpoint.url, http_client=bridge.client())
        async with claude.messages.stream(model="m", max_tokens=9, messages=SAY) as manager:
            words = [text async for text in manager.text_stream]
    assert "".join(words) == "ONE TWO THREE"
    assert len(endpoint.asked) == 2


async def test_a_connection_that_breaks_before_the_first_content_is_retried(endpoint: Endpoint) -> None:
    endpoint.break_after = 1

    async def mend(n: int) -> None:
        if len(endpoint.asked) == 2:
            endpoint.break_after = None

    endpoint.pace = mend
    stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
    assert "".join([texts(chunk) async for chunk in stream]) == "ONE TWO THREE"
    assert len(endpoint.asked) == 2


async def test_a_connection_that_breaks_later_is_the_readers(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.break_after = 3
    words = []
    async with afnio.journal(tmp_path / "calls.journal"):
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        with pytest.raises(openai.APIConnectionError) as caught:
            async for chunk in stream:
                words.append(texts(chunk))
    assert isinstance(caught.value.__cause__, httpx2.RemoteProtocolError)
    assert "the reply broke off" in str(caught.value.__cause__)
    assert words == ["", "ONE ", "TWO "]
    assert len(endpoint.asked) == 1
    endpoint.break_after = None
    async with afnio.journal(tmp_path / "calls.journal"):
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        assert "".join([texts(chunk) async for chunk in stream]) == "ONE TWO THREE"


async def test_an_error_later_is_the_providers_own(endpoint: Endpoint) -> None:
    endpoint.event_of = lambda number, n: ERRORS["openai"] if n == 2 else None
    stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
    with pytest.raises(openai.APIError, match="overloaded"):
        async for _ in stream:
            pass
    assert len(endpoint.asked) == 1


# Readers


async def test_a_reader_that_leaves_early_pays_once(endpoint: Endpoint, tmp_path: Path) -> None:
    for _ in range(2):
        async with afnio.journal(tmp_path / "calls.journal"):
            stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
            async for chunk in stream:
                if "ONE" in texts(chunk):
                    break
            await stream.close()
    assert len(endpoint.asked) == 1


async def test_what_would_take_too_long_to_read_on_is_recorded_as_cut(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afnio.models._exchange.READ_ON", 0.05)
    never = asyncio.Event()

    async def hang(n: int) -> None:
        if n == 3:
            await never.wait()

    endpoint.pace = hang
    seen = []
    for _ in range(2):
        async with afnio.journal(tmp_path / "calls.journal"):
            with kit.events(CallReplayed) as replayed:
                stream = await client_of(endpoint).chat.completions.create(
                    model="m", messages=SAY, stream=True
                )
                words: list[str] = []
                async for chunk in stream:
                    words.append(texts(chunk))
                    if "TWO" in words[-1]:
                        break
                seen.append(words)
                await stream.close()
    assert seen == [["", "ONE ", "TWO "]] * 2
    assert len(endpoint.asked) == 1
    assert len(replayed) == 1
    await until(lambda: endpoint.gone)

    # A reader that wants more than the one before it is told so.
    async with afnio.journal(tmp_path / "calls.journal"):
        stream = await client_of(endpoint).chat.completions.create(model="m", messages=SAY, stream=True)
        with pytest.raises(openai.APIConnectionError) as caught:
            async for _ in stream:
                pass
    assert "the recorded reply ends here" in str(caught.value.__cause__)


async def test_a_slow_reader_slows_the_provider(endpoint: Endpoint) -> None:
    """A reply of 30 MB to a reader that doesn't read stays with the provider."""
    sent = 0

    async def flood(n: int) -> None:
        nonlocal sent
        sent = n

    endpoint.pace = flood
    word = 20_000 * "x"
    words = " ".join([word] * 1_500)
    async with bridge.client() as client:
        body = {"model": "m", "messages": [{"role": "user", "content": words}], "stream": True}
        async with client.stream("POST", f"{endpoint.url}/v1/chat/completions", json=body) as reply:
            pieces = reply.aiter_raw()
            await anext(pieces)
            before = -1
            while before != sent:  # until the sockets are full
                before = sent
                await anyio.sleep(0.3)
            stalled = sent
            rest = [piece async for piece in pieces]
    assert stalled < 1_000
    assert sum(map(len, rest)) > 30_000_000


async def test_a_stream_that_is_not_read_to_its_end_gives_its_place_back(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("afnio.models._exchange.READ_ON", 0.05)
    never = asyncio.Event()

    async def hang(n: int) -> None:
        if n == 3 and len(endpoint.asked) == 1:
            await never.wait()

    endpoint.pace = hang
    client = openai.AsyncOpenAI(
        api_key="k",
        base_url=f"{endpoint.url}/v1",
        http_client=bridge.client(limits=afnio.Limits(max_in_flight=1)),
    )
    stream = await client.chat.completions.create(model="m", messages=SAY, stream=True)
    async for chunk in stream:
        if texts(chunk):
            break
    await stream.close()
    with anyio.fail_after(60):
        assert (
            await client.responses.create(model="m", input="one two three")
        ).output_text == "ONE TWO THREE"


async def test_a_stream_that_falls_silent_before_its_first_content_is_retried(endpoint: Endpoint) -> None:
    never = asyncio.Event()

    async def hang(n: int) -> None:
        if len(endpoint.asked) == 1:
            await never.wait()

    endpoint.pace = hang
    client = client_of(endpoint).with_options(timeout=1)
    stream = await client.chat.completions.create(model="m", messages=SAY, stream=True)
    assert "".join([texts(chunk) async for chunk in stream]) == "ONE TWO THREE"
    assert len(endpoint.asked) == 2


async def test_a_server_that_answers_a_stream_with_a_whole_reply(endpoint: Endpoint) -> None:
    whole = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{}],
        "usage": None,
    }
    endpoint.fail = lambda number, asked: web.json_response(whole)
    async with bridge.client() as client:
        body = {"model": "m", "messages": SAY, "stream": True}
        reply = await client.post(f"{endpoint.url}/v1/chat/completions", json=body)
    assert whole == json.loads(reply.content)


def _choices(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


@pytest.mark.parametrize("strange", [True, 7, 0.5, ["a"], {"a": 1}], ids=repr)
@pytest.mark.parametrize(
    ("path", "field"),
    [("chat/completions", "content"), ("chat/completions", "finish_reason"), ("responses", "type")],
)
async def test_fields_of_any_type_reach_the_reader(path: str, field: str, strange: Any) -> None:
    """The reader gets what the server sent, as without the bridge, and the trace has a reply."""
    if path == "responses":
        done = {"type": "response.completed", "response": {"status": "completed", "output": []}}
        events = [{"type": strange, "delta": "a"}, done]
    elif field == "content":
        events = [_choices(content=strange), _choices(content="b")]
    else:
        events = [_choices(content="b"), {"choices": [{"index": 0, "delta": {}, "finish_reason": strange}]}]
    sent = b"".join(data(event) for event in events)
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=sent)
    inner = httpx2.MockTransport(lambda request: answer)
    body = {"model": "m", "messages": SAY, "input": "a", "stream": True}

    with (
        kit.events(CallEnded) as ended,
        tracing() as trace,
    ):
        async with httpx2.AsyncClient(transport=bridge.transport(inner=inner)) as client:
            got = await client.post(f"http://provider/v1/{path}", json=body)
    assert (200, sent) == (got.status_code, got.content)
    assert [event.error for event in ended] == [None]
    assert trace.calls[0].reply is not None


async def test_a_request_of_many_levels_is_sent_like_others() -> None:
    """Levels that JSON can hold are no error, though no counting of tokens can go down so far by recursion."""
    deep: Any = "a"
    for _ in range(900):
        deep = {"a": deep}
    answer = httpx2.Response(200, json={"choices": [{"message": {"content": "b"}}]})
    inner = httpx2.MockTransport(lambda request: answer)
    async with httpx2.AsyncClient(transport=bridge.transport(inner=inner)) as client:
        body = {"model": "m", "messages": [{"role": "user", "content": [deep]}]}
        got = await client.post("http://provider/v1/chat/completions", json=body)
    assert got.status_code == 200


async def test_a_long_stream_is_whole_on_another_thread(endpoint: Endpoint) -> None:
    words = " ".join(str(number) for number in range(3_000))

    def read() -> str:
        with openai.OpenAI(
            api_key="k", base_url=f"{endpoint.url}/v1", http_client=bridge.sync_client()
        ) as client:
            messages: Any = [{"role": "user", "content": words}]
            stream = client.chat.completions.create(model="m", messages=messages, stream=True)
            return "".join(texts(chunk) for chunk in stream)

    assert await asyncio.gather(*(asyncio.to_thread(read) for _ in range(3))) == [words] * 3
