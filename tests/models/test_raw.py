"""Raw requests and replies: whose account a request uses, and the events of a stream wherever the network cuts it."""

from __future__ import annotations

import itertools
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.wire import http

from afnio.models._raw import EventSplitter, RawRequest, event_json, is_done, split_events
from afnio.models.openai import AsyncAzureOpenAI, AsyncOpenAI
from afnio.runtime import Account

TEXT = st.text(alphabet="ab{}: \u00e9", max_size=8)
EVENT = st.builds(
    lambda lines, end: "".join(f"data: {line}{end}" for line in lines) + end,
    st.lists(TEXT, min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n"]),
)


@given(
    st.lists(EVENT, max_size=6), st.text(alphabet="x", max_size=3), st.lists(st.integers(0, 200), max_size=8)
)
def test_cuts_do_not_matter(events: list[str], rest: str, cuts: list[int]) -> None:
    body = "".join(events).encode() + rest.encode()
    points = sorted({0, *(min(cut, len(body)) for cut in cuts), len(body)})
    splitter = EventSplitter()
    found = [event for start, end in itertools.pairwise(points) for event in splitter.feed(body[start:end])]
    left = splitter.rest()
    assert body == b"".join(found) + left
    whole = list(split_events(body)) if not body.lstrip().startswith(b"{") else [*found, left]
    assert [event for event in whole if event] == [event for event in (*found, left) if event]


def test_lines_of_json() -> None:
    assert list(split_events(b'{"a":1}\n{"b":2}')) == [b'{"a":1}\n', b'{"b":2}']


def test_what_is_in_an_event() -> None:
    assert event_json(b'event: x\ndata: {"a":\ndata: 1}\n\n') == {"a": 1}
    assert event_json(b": keep-alive\n\n") is None
    assert event_json(b"data: [DONE]\n\n") is None
    assert is_done(b"data: [DONE]\n\n")
    assert event_json(b"data: {broken\n\n") is None


@pytest.mark.parametrize("organization", [None, "org-1"])
async def test_accounts_are_those_of_native_clients(organization: str | None) -> None:
    native = AsyncOpenAI(
        api_key="k-0123456", base_url="https://api.example.org/v1", organization=organization
    )
    seen = await sent_by(
        openai.AsyncOpenAI,
        api_key="k-0123456",
        base_url="https://api.example.org/v1",
        organization=organization,
    )
    raw = RawRequest.read("POST", str(seen.url), seen.headers, seen.content)
    assert raw is not None
    assert native.account == raw.account


@pytest.mark.parametrize("token", [False, True])
async def test_azures_accounts_are_those_of_native_clients(token: bool) -> None:
    secret: Any = {"azure_ad_token_provider": lambda: "t-0123456"} if token else {"api_key": "k-0123456"}
    options = {"azure_endpoint": "https://me.openai.azure.com", "api_version": "2024-10-21", **secret}
    seen = await sent_by(openai.AsyncAzureOpenAI, **options)
    raw = RawRequest.read("POST", str(seen.url), seen.headers, seen.content)
    assert raw is not None
    assert isinstance(raw.account, Account)
    assert AsyncAzureOpenAI(**options).account == raw.account
    assert raw.model == "m"


async def sent_by(sdk: Any, **options: Any) -> Any:
    """Return the request that an SDK's client sends."""
    sent: list[Any] = []

    def keep(request: Any) -> Any:
        sent.append(request)
        return http.Response(400, json={"error": {"message": "no"}})

    async with http.AsyncClient(transport=http.MockTransport(keep)) as http_client:
        client = sdk(http_client=http_client, **options)
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    return sent[0]
