"""Errors of `optimize`: the user's own frames, and one sentence that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from optimize.task import client, equal, rows

import afnio
from afnio.testing import Provider, ScriptedClient

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


def optimized_as(send: Callable[[str], str], model: ScriptedClient, **others: Any) -> afnio.Result:
    """Optimize an agent that sends `send(system)`; each row is right, so no critic is asked."""

    async def agent(text: str, system: str, **unused: str) -> str:
        messages = [{"role": "system", "content": send(system)}, {"role": "user", "content": text}]
        return (await model.achat(messages=messages, model="student")).content

    given: dict[str, Any] = {"prompts": {"system": "level 2"}, "budget": afnio.budget(max_calls=400)}
    return afnio.optimize(agent, rows(100), lambda *_: True, critic=(model, "critic"), **given | others)


def test_an_agent_that_never_sends_its_prompt_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    model = client()
    with pytest.raises(ValueError, match="must send its prompt to a model .* put system into the messages"):
        optimized_as(lambda system: "Say the level.", model, dir=tmp_path)
    assert model.requests == []


@pytest.mark.parametrize(
    "send",
    [str.strip, lambda text: f"level {text.split()[-1]}" if "mark" not in text else text[::-1], json.dumps],
    ids=["as it is", "in a form that hides it", "escaped"],
)
def test_a_prompt_that_is_sent_in_another_form_is_sent(send: Callable[[str], str], tmp_path: Path) -> None:
    result = optimized_as(send, client(), dir=tmp_path)
    assert result.notes == ()


def test_a_prompt_of_several_that_the_first_row_does_not_send_is_noted(tmp_path: Path) -> None:
    result = optimized_as(str, client(), dir=tmp_path, prompts={"system": "level 2", "style": "Be polite."})
    assert result.notes == ("the first row's requests contain nothing of style",)


def test_an_agent_that_fails_on_made_up_replies_is_not_refused(tmp_path: Path) -> None:
    """It can't be seen if it would send its prompt after a real one."""
    model = client()

    async def agent(text: str, system: str) -> str:
        messages = [{"role": "system", "content": "level 0"}, {"role": "user", "content": text}]
        first = (await model.achat(messages=messages, model="student")).content
        if first not in ("yes", "no"):
            raise ValueError("neither yes nor no")
        messages[0]["content"] = system
        return (await model.achat(messages=messages, model="student")).content

    result = afnio.optimize(
        agent, rows(100), equal, prompts={"system": "level 2"}, critic=(model, "critic"),
        budget=afnio.budget(max_calls=600), dir=tmp_path,
    )  # fmt: skip
    assert result.prompts != result.start
