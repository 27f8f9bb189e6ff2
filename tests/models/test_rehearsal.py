"""A rehearsal: the calls of a program, and nothing sent."""

from __future__ import annotations

import json
import logging
import re

import kit
import pytest
from pydantic import BaseModel

import afnio
import afnio.cognitive as cog
from afnio.cli import main
from afnio.models import rehearsing
from afnio.testing import ScriptedClient


def ask(client, texts, **arguments):
    messages = [{"role": "user", "content": [afnio.Variable("{text}")]}]
    inputs = {"text": afnio.Variable(texts)}
    return cog.ChatCompletion()(client, messages, inputs=inputs, model="m", **arguments)


def test_calls_are_noted_and_not_sent():
    """With their lane, their tokens, and what they belong to; nobody is told."""
    client = ScriptedClient("real")
    with kit.events() as events, rehearsing() as found:
        replies = ask(client, ["a" * 400, "b"]).data
        ask(client, "c").data
    assert events == client.requests == []
    assert len(set(replies)) == 2
    assert sorted([(0, 104), (1, 5), (None, 5)], key=str) == sorted(
        [(call.lane, call.prompt_tokens) for call in found.calls], key=str
    )
    assert {(c.purpose, c.model, c.account) for c in found.calls} == {("forward", "m", client.account)}
    assert client.get_usage()["calls"] == 0
    assert ask(client, "d").data == "real"


def test_no_more_output_than_the_request_allows():
    """As a provider would cut it off."""
    with rehearsing() as found:
        ask(ScriptedClient("x"), "a", max_tokens=7).data
        ask(ScriptedClient("x"), "a").data
    assert [call.output_tokens for call in found.calls] == [7, 100]


def test_no_journal_and_no_budget_hears_of_it(tmp_path, capsys):
    """Nothing is recorded or spent."""
    with afnio.journal(tmp_path / "j"), afnio.budget(max_calls=0) as spending, rehearsing():
        ask(ScriptedClient("x"), "a").data
    assert spending.ledger.total.attempts == 0
    assert main(["journal", "stat", str(tmp_path / "j"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == 0


def test_warnings_of_made_up_replies_are_not_logged(caplog):
    """Others are, also meanwhile on other threads, and afterwards."""
    with rehearsing():
        logging.getLogger("afnio").warning("rehearsed")
        import threading

        thread = threading.Thread(target=logging.getLogger("afnio").warning, args=("other",))
        thread.start()
        thread.join()
    logging.getLogger("afnio").warning("after")
    with rehearsing():
        with rehearsing():
            pass
        logging.getLogger("afnio").warning("rehearsed after another one ended")
    assert [record.message for record in caplog.records] == ["other", "after"]


class Inner(BaseModel):
    kind: str | None
    next: Inner | None = None


class Outer(BaseModel):
    inners: list[Inner]
    score: float
    right: bool


def test_replies_fit_pydantic_models():
    """References, lists, choices and recursion."""
    with rehearsing():
        reply = ask(ScriptedClient("x"), "a", response_format=Outer).data
    made = Outer.model_validate(json.loads(reply))
    assert (len(made.inners), made.score, made.right) == (1, 0.0, False)
    assert made.inners[0].kind.startswith("made-up reply 1")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 5}, 5),
        ({"type": ["string", "null"]}, "t"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "null"}, None),
        ({}, None),
        ({"type": "array", "minItems": 2, "items": {"type": "string"}}, ["t", "t"]),
        (
            {
                "type": "array",
                "minItems": 2,
                "items": {"type": "object", "properties": {"v": {"enum": ["1", "2"]}}},
            },
            [{"v": "1"}, {"v": "2"}],
        ),
        ({"$ref": "#/$defs/none"}, None),
    ],
)
def test_schemas_have_an_instance(schema, value):
    """The smallest that fits."""
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema}}
    with rehearsing():
        reply = ask(ScriptedClient("x"), "a", response_format=form).data
    assert value == json.loads(re.sub(r'"made-up reply 1[^"]*"', '"t"', reply))
