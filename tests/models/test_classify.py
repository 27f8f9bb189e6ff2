"""Replies are classified by what providers really send: errors behind 200 included."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
from kit.wire import read

from afnio.errors import FinalModelError, RateLimitedError, TransientModelError

URL = "http://host/v1"
GOOD = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}


async def asked_to_wait(headers, url=URL):
    with pytest.raises(RateLimitedError) as caught:
        await read(error(), 429, headers, url)
    return caught.value.retry_after


def error(message="bad", **fields):
    return {"error": {"message": message, **fields}}


def said(content, reason):
    return {"choices": [{"message": {"content": content}, "finish_reason": reason}]}


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, error(), FinalModelError, "http://host/v1 answered 400: bad"),
        (401, error(), FinalModelError, "(check api_key or OPENAI_API_KEY)"),
        (404, error("no model x"), FinalModelError, "answered 404: no model x"),
        (429, error(), RateLimitedError, "answered 429: bad"),
        (429, error(code="insufficient_quota"), FinalModelError, "out of quota: check its billing"),
        (429, error(type="insufficient_quota"), FinalModelError, "out of quota"),
        (429, b"<html>slow down</html>", RateLimitedError, "it starts '<html>slow down</html>'"),
        (408, error(), TransientModelError, "answered 408"),
        (500, error(), TransientModelError, "answered 500: bad"),
        (502, b"<html>\n <h1>Bad gateway</h1></html>", TransientModelError, "it starts '<html> <h1>Bad"),
        (503, b"", TransientModelError, "it is empty"),
        (529, error(), TransientModelError, "answered 529"),
        (599, error(), TransientModelError, "answered 599"),
        (400, {"error": "text"}, FinalModelError, "answered 400: text"),
        (400, ["list"], FinalModelError, "answered 400: it starts"),
        (200, b"", TransientModelError, "isn't a chat completion (it is empty)"),
        (200, b'{"choices": [{"mess', TransientModelError, "isn't a chat completion (it starts"),
        (200, b"<html>", TransientModelError, "isn't a chat completion"),
        (200, {"choices": []}, TransientModelError, "answered 200 with no choices"),
        (200, {}, TransientModelError, "answered 200 with no choices"),
        (200, error("overloaded"), TransientModelError, "answered 500: overloaded"),
        (200, error("limit", code="rate_limit_exceeded"), RateLimitedError, "answered 429: limit"),
        (200, error("gone", code=404), FinalModelError, "answered 404: gone"),
        (200, error("money", code="insufficient_quota"), FinalModelError, "out of quota"),
        (200, error("odd", code=["a"]), TransientModelError, "answered 500: odd"),
        (200, error("odd", type={"a": 1}, code="429"), RateLimitedError, "answered 429: odd"),
        (200, error("odd", code="9" * 5000), TransientModelError, "answered 500: odd"),
        (429, error("odd", code={"a": 1}), RateLimitedError, "answered 429: odd"),
        (429, error("odd", type=["a"]), RateLimitedError, "answered 429: odd"),
        (500, error("x" * 9000), TransientModelError, "answered 500: xxx"),
        (503, b"[" * 200_000, TransientModelError, "answered 503: it starts"),
        (200, b"[" * 200_000, TransientModelError, "isn't a chat completion"),
        (200, {"choices": [{"message": {"content": 5}}]}, TransientModelError, "isn't a chat completion"),
        (200, b'{"choices": [' + b"9" * 5000, TransientModelError, "isn't a chat completion"),
        (200, said("", "length"), FinalModelError, "raise max_completion_tokens or lower reasoning_effort"),
        (200, said(None, "content_filter"), FinalModelError, "finish_reason=content_filter"),
    ],
)
async def test_what_a_reply_means(status, body, kind, words):
    """Worth another attempt or not, with what the provider said."""
    with pytest.raises((TransientModelError, FinalModelError)) as caught:
        await read(body, status)
    assert kind is type(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 2100


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://new.org/v1/chat/completions", "a redirect to https://new.org/v1, which is not followed"),
        ("https://me:secret@new.org:99/v1?key=secret#secret", "a redirect to https://new.org:99/v1, which"),
        ("/v2/chat/completions", "a redirect to http://host/v2, which is not followed"),
        ("file:///etc/passwd", "a redirect to file:///etc/passwd, which"),
        ("//[broken", "a redirect to nowhere; check base_url"),
        (None, "a redirect to nowhere; check base_url"),
    ],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_final_and_names_the_address(status, location, words):
    """As a base URL, without credentials or query."""
    with pytest.raises(FinalModelError) as caught:
        await read(b"", status, {} if location is None else {"location": location})
    assert f"http://host/v1 answered {status}, {words}" in str(caught.value)
    assert "secret" not in str(caught.value)


TEXT = json.dumps({**GOOD, "choices": [{"message": {"content": "é"}}]}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("body", "content"),
    [
        (b"\xef\xbb\xbf" + TEXT.encode(), "é"),
        (TEXT.encode("utf-16"), "é"),
        (TEXT.replace("é", "cut:").encode().replace(b"cut:", b"cut:\xc3"), "cut:\ufffd"),
        (TEXT.replace("é", r"cut:\ud83d").encode(), "cut:?"),
    ],
)
async def test_a_reply_in_a_wrong_encoding_is_read(body, content):
    """With a mark, in UTF-16, or with half a character at the end."""
    assert content == (await read(body)).content


@pytest.mark.parametrize("body", [GOOD, said("cut", "length"), said("", "stop")])
async def test_what_is_a_reply(body):
    """A cut-off text and an empty one are what the model said."""
    assert body["choices"][0]["message"]["content"] == (await read(body)).content


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
async def test_how_long_the_provider_asks_to_wait(headers, seconds):
    """In milliseconds, seconds or as a date."""
    assert seconds == await asked_to_wait(headers)


async def test_a_date_ahead_is_counted_from_now():
    """Within the second that dates have."""
    ahead = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 58 < (await asked_to_wait({"retry-after": ahead}) or 0) <= 60


@pytest.mark.parametrize("name", ["retry-after", "retry-after-ms"])
@pytest.mark.parametrize(
    "value", ["1e9", "1e300", "Thu, 01 Jan 2101 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"]
)
async def test_a_wait_out_of_reach_is_none(name, value, caplog):
    """Nobody means years; it is told once, with what was read."""
    url = f"https://{name}.example/{len(value)}{value[:1]}"
    assert [await asked_to_wait({name: value}, url) for _ in range(2)] == [None, None]
    (record,) = caplog.records
    assert f"{url} sent {name}: {value}, which is" in record.getMessage()


async def test_a_long_wait_is_cut(caplog):
    """To ten minutes; an hour's wait may have been for nothing."""
    url = "https://long.example"
    assert [
        await asked_to_wait(given, url)
        for given in (
            {"retry-after": "3600"},
            {"retry-after-ms": "3600000"},
            {"retry-after": email.utils.formatdate(time.time() + 3600, usegmt=True)},
        )
    ] == [600.0, 600.0, 600.0]
    assert "sent retry-after: 3600, which is long; the next request follows after 600 s" in caplog.text


async def test_a_unix_time_to_come_back_at():
    """It is counted from now."""
    assert 28 <= (await asked_to_wait({"retry-after": str(int(time.time() + 30))}) or 0) <= 30
