"""Structured replies: a schema where the endpoint takes one, words where it doesn't, one repair."""

from __future__ import annotations

import pytest

from afnio.cognitive._reduction import ask, complete_json, json_object, unfenced
from afnio.errors import FinalModelError, ReplyError
from afnio.models import ChatModel
from afnio.runtime import Launch, Pending, Slot
from afnio.testing import ScriptedClient

SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
MESSAGES = [{"role": "user", "content": "Answer in JSON."}]


async def in_job(body):
    """Run `body(job)` as an op would."""
    launch = Launch("test")
    slot = Slot(launch)

    async def run(job, values):
        return [(await body(job),)]

    launch.add(run, [], [slot])
    launch.start()
    return (await Pending(slot, lambda outcome: outcome))[0]


def asked(client, **args):
    model = ChatModel(client, {"model": "m", **args})
    return in_job(
        lambda job: ask(
            model,
            job,
            MESSAGES,
            schema=SCHEMA,
            parse=lambda o: o["x"] + 0,
            repair="Bad: {error}",
            purpose="p",
        )
    )


@pytest.mark.parametrize(
    "text",
    ['{"x": 1}', '```json\n{"x": 1}\n```', 'Sure! {"x": 1} Bye.', '  \n{"x": 1}', '```\n{"x": 1}\n```\n'],
)
def test_an_object_is_found_in_what_models_write(text):
    """Fences and words around the object don't matter."""
    assert {"x": 1} == json_object(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "a JSON list"),
        ("", "no JSON object"),
        ("{'x': 1}", "Expecting property name"),
        ('{"x": 1', "no JSON object"),
    ],
)
def test_what_is_no_object_is_a_value_error(text, words):
    """The error says what was found."""
    with pytest.raises(ValueError, match=words):
        json_object(text)


def test_a_fence_is_taken_off_once():
    """Inner fences are content."""
    assert "a\n```\nb" == unfenced("```md\na\n```\nb\n```")


async def test_the_schema_is_sent():
    """The endpoint gets the response format."""
    client = ScriptedClient('{"x": 2}')
    assert 2 == await asked(client)
    assert [SCHEMA] == [r.params["response_format"] for r in client.requests]


async def test_a_refused_schema_falls_back_to_words_for_good():
    """A 400 is answered by asking without the schema, and the next call doesn't try it again."""

    def script(request):
        if "response_format" in request.params:
            return FinalModelError("unknown parameter response_format", status=400)
        return '{"x": 2}'

    client = ScriptedClient(script)
    assert [2, 2] == [await asked(client), await asked(client)]
    assert [True, False, False] == ["response_format" in r.params for r in client.requests]


async def test_another_400_stays_an_error_and_the_schema_stays():
    """Where the request without a schema fails too, the schema was not to blame."""
    client = ScriptedClient(FinalModelError("context too long", status=400))
    with pytest.raises(FinalModelError, match="context too long"):
        await asked(client)
    assert client.json_schema


async def test_another_status_is_no_refusal():
    """A wrong key is not answered by a second call."""
    client = ScriptedClient(FinalModelError("no such key", status=401))
    with pytest.raises(FinalModelError, match="no such key"):
        await asked(client)
    assert 1 == len(client.requests)


async def test_a_response_format_of_the_user_wins():
    """Arguments given with the model override the op's schema."""
    client = ScriptedClient('{"x": 2}')
    assert 2 == await asked(client, response_format={"type": "json_object"})
    assert [{"type": "json_object"}] == [r.params["response_format"] for r in client.requests]


@pytest.mark.parametrize("bad", ["no json", '{"y": 1}', '{"x": "text"}'])
async def test_an_unreadable_reply_is_repaired_once(bad):
    """The repair shows the reply and what is wrong with it."""
    client = ScriptedClient([bad, '{"x": 3}'])
    assert 3 == await asked(client)
    first, second = client.requests
    assert [*first.messages, {"role": "assistant", "content": bad}] == list(second.messages[:-1])
    assert second.messages[-1]["content"].startswith("Bad: ")
    assert {"p": 1, "p-repair": 1} == {
        phase: usage["calls"] for phase, usage in client.get_usage()["phases"].items()
    }


async def test_a_second_unreadable_reply_is_an_error_that_shows_its_start():
    """There is one repair."""
    client = ScriptedClient(["no json", "still none"])
    with pytest.raises(ReplyError, match="nor its repair: it holds no JSON object .it starts 'still none'"):
        await asked(client)
    assert 2 == len(client.requests)


async def test_complete_json_returns_the_response():
    """Usage and text of the reply are there."""
    client = ScriptedClient('{"x": 2}')
    model = ChatModel(client, {"model": "m"})
    reply = await in_job(lambda job: complete_json(model, job, MESSAGES, SCHEMA, "p"))
    assert ('{"x": 2}', "m") == (str(reply), reply.model)
