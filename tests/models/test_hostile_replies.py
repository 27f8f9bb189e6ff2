"""The fault matrix: what each hostile reply means to each client, within bounds of time and memory."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any, Final

import anyio
import pytest
from kit.hostile import (
    MIB,
    HostileServer,
    Way,
    bomb,
    chunk,
    chunked,
    completion,
    encoded,
    forever,
    numbered,
    refusal,
    reply,
)
from kit.memory import peak
from kit.wire import OneAttempt, http

from afnio.errors import FinalModelError, ModelError, RateLimitedError, TransientModelError
from afnio.models import ChatClient
from afnio.models.openai import AsyncAzureOpenAI, AsyncOpenAI

KEY: Final = "sk-secret-0123456789"
DEADLINE: Final = 0.3
LARGEST: Final = 1 << 20
GZIP: Final = "content-encoding: gzip\r\n"

OK: Final = ("answered", "ok")
HANGS: Final = (TransientModelError, "gave no reply within 0.3 s")
EARLY: Final = (TransientModelError, "ended early")
NO_HTTP: Final = (TransientModelError, "sent a response that isn't HTTP")
NO_COMPLETION: Final = (TransientModelError, "isn't a chat completion")
TOO_LARGE: Final = (FinalModelError, "sent a reply of more than 1,048,576 bytes; pass max_reply_bytes=…")
REDIRECT: Final = (FinalModelError, "/elsewhere/v1, which is not followed")
ELSEWHERE: Final = "location: /elsewhere/v1/chat/completions?key=1\r\n"


def status(line: str, kind: type[ModelError], headers: str = "") -> tuple[Way, Any]:
    return Way(refusal(line, headers)), (kind, f"answered {line[:3]}: refused")


def usage(**tokens: Any) -> Way:
    return Way(reply(encoded(usage=tokens)))


GOOD: Final = encoded()
MATRIX: Final[dict[str, tuple[Way, tuple[Any, str]]]] = {
    # Statuses
    "400": status("400 Bad Request", FinalModelError),
    "401": status("401 Unauthorized", FinalModelError),
    "403": status("403 Forbidden", FinalModelError),
    "404": status("404 Not Found", FinalModelError),
    "408": status("408 Request Timeout", TransientModelError),
    "413": status("413 Content Too Large", FinalModelError),
    "422": status("422 Unprocessable Content", FinalModelError),
    "429": status("429 Too Many Requests", RateLimitedError),
    "500": status("500 Internal Server Error", TransientModelError),
    "503": status("503 Service Unavailable", TransientModelError, "retry-after: soon\r\n"),
    "529": status("529 Overloaded", TransientModelError),
    "600": status("600 What", TransientModelError),
    "999": status("999 What", TransientModelError),
    "204": (Way(reply(b"", "204 No Content", length=None)), (FinalModelError, "answered 204: it is empty")),
    "101": (
        Way(reply(b"", "101 Switching Protocols", "upgrade: x\r\nconnection: upgrade\r\n", length=None), "hang"),
        (FinalModelError, "answered 101"),
    ),
    "301": (Way(reply(b"", "301 Moved", ELSEWHERE)), REDIRECT),
    "302": (Way(reply(b"", "302 Found", ELSEWHERE)), REDIRECT),
    "303": (Way(reply(b"", "303 See Other", ELSEWHERE)), REDIRECT),
    "307": (Way(reply(b"", "307 Temporary", ELSEWHERE)), REDIRECT),
    "308": (Way(reply(b"", "308 Permanent", ELSEWHERE)), REDIRECT),
    "302-nowhere": (Way(reply(b"", "302 Found")), (FinalModelError, "a redirect to nowhere")),
    "1xx": (
        Way(b"".join(b"HTTP/1.1 %d X\r\nlink: </x>\r\n\r\n" % code for code in (100, 102, 103)) + reply()),
        OK,
    ),
    # Connections
    "never": (Way(then="hang"), HANGS),
    "half-head": (Way(b"HTTP/1.1 200 OK\r\ncontent-type:", "hang"), HANGS),
    "half-body": (Way(reply(GOOD[:40], length=len(GOOD)), "hang"), HANGS),
    "1xx-flood": (Way(pieces=forever(b"HTTP/1.1 100 Continue\r\n\r\n" * 50)), HANGS),
    "head-drip": (Way(b"HTTP/1.1 200 OK\r\n", pieces=numbered()), HANGS),
    "body-drip": (Way(reply(b"", length=MIB), pieces=forever(b" ")), HANGS),
    "chunk-drip": (Way(chunked(end=b""), pieces=forever(b"1\r\n \r\n")), HANGS),
    "drip": (Way(reply(length=len(GOOD) + 3, body=b""), pieces=(b"\n", b" ", b"\t", GOOD)), OK),
    "close": (Way(then="close"), EARLY),
    "reset": (Way(then="reset"), EARLY),
    "reset-in-body": (Way(reply(GOOD[:40], length=len(GOOD)), "reset"), EARLY),
    "close-after": (Way(reply(), "close"), OK),
    "http10": (Way(reply(version="1.0", length=None), "close"), OK),
    "http09": (Way(GOOD, "close"), NO_HTTP),
    "garbage": (Way(bytes(range(256)), "close"), NO_HTTP),
    "tls-alert": (Way(b"\x15\x03\x01\x00\x02\x02\x46", "close"), NO_HTTP),
    "two-replies": (Way(reply() + reply(encoded("second"))), OK),
    # Framing
    "chunked": (Way(chunked(GOOD[:9], GOOD[9:])), OK),
    "chunk-cut": (Way(chunked(GOOD, end=b""), "close"), EARLY),
    "chunk-garbage": (Way(chunked(GOOD[:9], end=b"zz\r\nzz\r\n")), NO_HTTP),
    "length-short": (Way(reply(length=20), "close"), NO_HTTP),
    "length-long": (Way(reply(length=9999), "close"), EARLY),
    "length-negative": (Way(reply(length=-5), "close"), NO_HTTP),
    "head-flood": (Way(reply(headers="".join(f"x-{n}: {'v' * 100}\r\n" for n in range(9000)))), NO_HTTP),
    "head-huge": (Way(reply(headers=f"x: {'v' * 200_000}\r\n")), NO_HTTP),
    # Encodings
    "gzip": (Way(reply(gzip.compress(GOOD), headers=GZIP)), OK),
    "gzip-none": (Way(reply(b"\x1f\x8bnonsense", headers=GZIP)), EARLY),
    "gzip-cut": (Way(reply(gzip.compress(GOOD)[:-30], headers=GZIP)), NO_COMPLETION),
    "gzip-bomb": (Way(reply(bomb(50), headers=GZIP)), TOO_LARGE),
    "deflate-bomb": (Way(reply(bomb(50, 15), headers="content-encoding: deflate\r\n")), TOO_LARGE),
    "gzip-bomb-500": (Way(reply(bomb(100), "500 X", GZIP)), (TransientModelError, "answered 500: it starts")),
    "large": (Way(reply(encoded("x" * 2 * MIB))), TOO_LARGE),
    "endless": (Way(chunked(end=b""), pieces=forever(chunk(bytes(MIB)))), TOO_LARGE),
    "encoding-unknown": (Way(reply(headers="content-encoding: x\r\n")), OK),
    "utf8-mark": (Way(reply(b"\xef\xbb\xbf" + GOOD)), OK),
    "utf16": (Way(reply(GOOD.decode().encode("utf-16"))), OK),
    "utf8-cut": (Way(reply(GOOD.replace(b"ok", b"ok\xc3"))), ("answered", "ok\ufffd")),
    "surrogate": (Way(reply(GOOD.replace(b"ok", b"ok\\ud83d"))), ("answered", "ok?")),
    "nul": (Way(reply(encoded("o\0k"))), ("answered", "o\0k")),
    "html-type": (Way(reply(kind="text/html")), OK),
    # JSON
    "empty": (Way(reply(b"")), NO_COMPLETION),
    "html": (Way(reply(b"<html>Bad gateway</html>", kind="text/html")), NO_COMPLETION),
    "html-503": (Way(reply(b"<html>down</html>", "503 X", kind="text/html")), (TransientModelError, "'<html>down")),
    "deep": (Way(reply(b"[" * 200_000)), NO_COMPLETION),
    "deep-503": (Way(reply(b"[" * 200_000, "503 X")), (TransientModelError, "answered 503")),
    "array": (Way(reply(b"[1, 2]")), NO_COMPLETION),
    "no-choices": (Way(reply(b'{"choices": []}')), (TransientModelError, "no choices")),
    "message-null": (Way(reply(b'{"choices": [{"message": null}]}')), NO_COMPLETION),
    "content-parts": (Way(reply(encoded([{"type": "text", "text": "o"}, {"type": "text", "text": "k"}]))), OK),
    "content-number": (Way(reply(encoded(5))), NO_COMPLETION),
    "choices-two": (Way(reply(encoded(choices=completion()["choices"] * 2))), OK),
    "model-number": (Way(reply(encoded(model=5))), OK),
    # Usage
    "usage-none": (Way(reply(encoded(usage=None))), OK),
    "usage-text": (Way(reply(encoded(usage="lots"))), OK),
    "usage-negative": (usage(prompt_tokens=-5_000_000, completion_tokens=-7), OK),
    "usage-huge": (usage(prompt_tokens=10**20, completion_tokens=10**300), OK),
    "usage-fraction": (usage(prompt_tokens=5.5, completion_tokens=float("nan")), OK),
    "usage-string": (usage(prompt_tokens="5", completion_tokens=["1"]), OK),
    # Errors
    "error-text": (Way(reply(b'{"error": "boom"}')), (TransientModelError, "answered 500: boom")),
    "error-404": (Way(refusal(code=404)), (FinalModelError, "answered 404: refused")),
    "error-429": (Way(refusal(code="429")), (RateLimitedError, "answered 429: refused")),
    "error-code-list": (Way(refusal(code=["a"])), (TransientModelError, "answered 500: refused")),
    "error-code-dict": (Way(refusal("429 X", code={"a": 1})), (RateLimitedError, "answered 429: refused")),
    "error-type-list": (Way(refusal("429 X", type=["a"])), (RateLimitedError, "answered 429: refused")),
    "error-quota": (Way(refusal("429 X", code="insufficient_quota")), (FinalModelError, "out of quota")),
    "error-echo": (Way(refusal("401 X", message=f"bad key {KEY}")), (FinalModelError, "bad key <api key>")),
}  # fmt: skip

BY_SDK: Final[dict[str, tuple[Any, str]]] = {
    "101": EARLY,
    "http09": EARLY,
    "garbage": EARLY,
    "tls-alert": EARLY,
    "chunk-garbage": EARLY,
    "length-negative": EARLY,
    "length-short": NO_COMPLETION,
    "head-flood": EARLY,
    "head-huge": EARLY,
}
"""What the SDK's transport, for an `http_client` of the user's, calls by another name."""


def openai(url: str, **more: Any) -> ChatClient:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, max_reply_bytes=LARGEST, **more)


def azure(url: str, **more: Any) -> ChatClient:
    return AsyncAzureOpenAI(azure_endpoint=url, api_version="v", api_key=KEY, max_reply_bytes=LARGEST, **more)


async def outcome(client: ChatClient) -> tuple[Any, str]:
    """Return what one attempt of a call came to."""
    try:
        said = await OneAttempt(client).achat(messages=[{"role": "user", "content": "hi"}], model="m")
    except ModelError as error:
        kept = error.__cause__ if isinstance(error.__cause__, TransientModelError) else error
        return type(kept), str(kept)
    return "answered", str(said)


@pytest.mark.parametrize(
    ("make", "own", "differs"), [(openai, False, {}), (azure, False, {}), (openai, True, BY_SDK)]
)
async def test_every_reply_has_its_meaning(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., ChatClient], own: bool, differs: dict[str, Any]
) -> None:
    """Used, or an error of its class, after one request, in bounds of time and memory and without the key."""
    monkeypatch.setattr("afnio.runtime._call.ATTEMPTS", 1)
    expected = {name: meaning for name, (_, meaning) in MATRIX.items()} | differs
    found: dict[str, tuple[Any, str]] = {}
    before = peak()

    async def ask(name: str) -> None:
        # A reply that comes has as long as it takes on a busy machine.
        deadline = DEADLINE if expected[name] is HANGS else 15.0
        found[name] = await outcome(make(server.url(name), timeout=deadline, **options))

    ways = {name: way for name, (way, _) in MATRIX.items()} | {"elsewhere": Way(reply())}
    async with HostileServer(ways) as server, http.AsyncClient(follow_redirects=True) as http_client:
        options = {"http_client": http_client} if own else {}
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for name in MATRIX:
                    tasks.start_soon(ask, name)
        for name in ways:
            # A busy machine may not have sent one by its short deadline; nothing is sent twice, or elsewhere.
            assert server.seen[name] == (name in MATRIX) or (
                expected[name] is HANGS and not server.seen[name]
            ), name
    assert {name: (kind, words) for name, (kind, words) in expected.items()} == {
        name: (kind, expected[name][1] if expected[name][1] in text else text)
        for name, (kind, text) in found.items()
    }
    assert all(KEY not in text for _, text in found.values())
    assert peak() - before < 200 * MIB
