"""Errors of `optimize`: the user's own frames, and one sentence that says what to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import afnio
from afnio.testing import Provider

PROGRAM = """
import afnio, openai
from afnio.testing import ScriptedClient

client = openai.AsyncOpenAI(base_url={url!r}, api_key="any", max_retries=0)

async def agent(message, system):
    reply = {wait}client.chat.completions.create(
        model="m", messages=[{{"role": "system", "content": system}}, {{"role": "user", "content": message}}]
    )
    return reply.choices[0].message.content

rows = [(f"text {{number}}", "yes") for number in range(40)]
afnio.optimize(
    agent, rows, lambda output, expected: output == expected, prompts={{"system": "Say yes."}},
    critic=(ScriptedClient("x"), "any"), budget=afnio.budget(max_calls=500), {other}
)
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[str]:
    with Provider.process() as provider:
        yield provider.base_url


def fails(folder: Path, url: str, wait: str = "await ", other: str = "") -> list[str]:
    folder.joinpath("program.py").write_text(PROGRAM.format(url=url, wait=wait, other=other))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "program.py"], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 1
    return done.stderr.splitlines()


def test_a_wrong_address_is_named_with_what_may_be_missing(provider: str, tmp_path: Path) -> None:
    """The SDK says only "Error code: 404"."""
    bare = provider.removesuffix("/v1") + "/api"
    lines = fails(tmp_path, bare)
    (sentence,) = [line for line in lines if "BatchError" in line]
    assert f"(the server has no {bare}/chat/completions; is /v1 missing at the end of base_url?)" in sentence
    assert len(lines) <= 30


class Odd(Exception):
    """An error whose parts can't be read, as `httpx.RequestError.request` can't where none was sent."""

    @property
    def status_code(self) -> int:
        raise RuntimeError("not set")


class Refused(Exception):
    """An SDK's 404."""

    status_code = 404
    request = httpx.Request("POST", "https://user:secret@host.example:8443/chat?key=secret")


@pytest.mark.parametrize("error", [httpx.ConnectError("no"), Odd("no")], ids=["httpx", "odd"])
def test_an_error_whose_parts_cannot_be_read_stays_the_users(error: Exception) -> None:
    def fails_so(text: str) -> str:
        raise error

    with pytest.raises(type(error), match="no"):
        _ = afnio.Variable("a").map(fails_so).data


def test_a_hint_has_no_credentials_of_the_address() -> None:
    def fails_so(text: str) -> str:
        raise Refused("no")

    with pytest.raises(Refused) as caught:
        _ = afnio.Variable("a").map(fails_so).data
    notes = "\n".join(caught.value.__notes__)
    assert "the server has no https://host.example:8443/chat; is /v1 missing" in notes
    assert "secret" not in notes


def test_a_forgotten_await_is_named(provider: str, tmp_path: Path) -> None:
    lines = fails(tmp_path, provider, wait="", other="makes_calls=False")
    (sentence,) = [line for line in lines if "BatchError" in line]
    assert sentence.endswith("(write `await` before the call that returned the coroutine)")
    assert [line for line in lines if "site-packages" in line or "/afnio/" in line] == []


def test_the_engines_frames_are_shown_on_request(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFNIO_TRACEBACK", "full")
    lines = fails(tmp_path, provider, wait="", other="makes_calls=False")
    assert [line for line in lines if "/afnio/studies/" in line] != []
