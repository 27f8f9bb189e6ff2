"""Structured replies, asked for by a judge: a schema if the endpoint takes one, words otherwise, one repair."""

from __future__ import annotations

import json

import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ReplyError
from afnio.testing import ScriptedClient

GOOD = '{"score": 1, "explanation": "fine"}'


async def asked(client, **args):
    """Return the score that a judge gives one prediction."""
    messages = [{"role": "user", "content": [afnio.Variable("Judge {prediction}.")]}]
    score, _ = await cog.functional.lm_judge_evaluator(
        client, messages, afnio.Variable("p"), model="m", **args
    )
    return score.data


@pytest.mark.parametrize(
    "reply",
    [GOOD, f"```json\n{GOOD}\n```", f"Sure! {GOOD} Bye.", f"  \n{GOOD}", f"```\n{GOOD}\n```\n"],
)
async def test_an_object_is_found_in_what_models_write(reply):
    """Fences and words around the object don't matter."""
    client = ScriptedClient(reply)
    assert await asked(client) == 1
    assert len(client.requests) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("[1]", "a JSON list"),
        ("", "no JSON object"),
        ("{'x': 1}", "Expecting property name"),
        ('{"x": 1', "no JSON object"),
        ('{"score": 1}', "the key 'explanation' is missing"),
        ('{"score": [1], "explanation": "e"}', '"score" must be a number'),
    ],
)
async def test_an_unreadable_reply_is_repaired_once(reply, words):
    """The repair shows the reply and what is wrong with it."""
    client = ScriptedClient([reply, GOOD])
    assert await asked(client) == 1
    first, second = client.requests
    assert list(second.messages[:-1]) == [*first.messages, {"role": "assistant", "content": reply}]
    assert words in second.messages[-1]["content"]
    assert {phase: usage["calls"] for phase, usage in client.get_usage()["phases"].items()} == {
        "judge": 1,
        "judge-repair": 1,
    }


async def test_a_second_unreadable_reply_is_an_error_that_shows_its_start():
    """There is one repair."""
    client = ScriptedClient(["no json", "still none"])
    with pytest.raises(ReplyError, match="nor its repair: it holds no JSON object .it starts 'still none'"):
        await asked(client)
    assert len(client.requests) == 2


async def test_the_schema_is_sent():
    """The endpoint gets the response format, strict, with nothing optional."""
    client = ScriptedClient(GOOD)
    await asked(client)
    form = client.requests[0].params["response_format"]["json_schema"]
    assert (form["name"], form["strict"]) == ("afnio_judgement", True)
    assert sorted(json.loads(GOOD)) == sorted(form["schema"]["required"])


async def test_a_refused_schema_falls_back_to_words_for_good():
    """A 400 is answered by asking without the schema, and the next call doesn't try it again."""

    def script(request):
        if "response_format" in request.params:
            return FinalModelError("unknown parameter response_format", status=400)
        return GOOD

    client = ScriptedClient(script)
    assert [await asked(client), await asked(client)] == [1, 1]
    assert ["response_format" in r.params for r in client.requests] == [True, False, False]


async def test_another_400_stays_an_error_and_the_schema_stays():
    """If the request without a schema fails too, the schema was not to blame."""
    client = ScriptedClient(FinalModelError("context too long", status=400))
    with pytest.raises(FinalModelError, match="context too long"):
        await asked(client)
    assert client.json_schema


async def test_another_status_is_no_refusal():
    """A wrong key is not answered by a second call."""
    client = ScriptedClient(FinalModelError("no such key", status=401))
    with pytest.raises(FinalModelError, match="no such key"):
        await asked(client)
    assert len(client.requests) == 1


async def test_a_response_format_of_the_user_wins():
    """Arguments given with the model override the op's schema."""
    client = ScriptedClient(GOOD)
    assert await asked(client, response_format={"type": "json_object"}) == 1
    assert [r.params["response_format"] for r in client.requests] == [{"type": "json_object"}]
