"""The backward model: a process default, and blocks with one of their own."""

from __future__ import annotations

import threading

import pytest

import afnio
from afnio.models import ChatModel
from afnio.testing import ScriptedClient


def test_none_is_set_at_first():
    """The sentence says how to set one."""
    with pytest.raises(RuntimeError, match="no backward model has been set .* before backward"):
        afnio.get_backward_model_client()


def test_a_plain_call_sets_the_process_default():
    """Threads see it too."""
    client = ScriptedClient()
    afnio.set_backward_model_client(client, completion_args={"model": "m", "temperature": 1})
    found = []
    thread = threading.Thread(target=lambda: found.append(afnio.get_backward_model_client()))
    thread.start()
    thread.join()
    assert found == [ChatModel(client, {"model": "m", "temperature": 1})]
    assert (found[0].get_provider(), found[0].get_usage()["calls"]) == ("ScriptedClient", 0)


def test_a_block_sets_its_context_alone():
    """What was set before holds afterwards, and outside of the block meanwhile."""
    one, two = ScriptedClient(), ScriptedClient()
    afnio.set_backward_model_client(one, completion_args={"model": "m"})
    with afnio.set_backward_model_client(two, completion_args={"model": "n"}) as model:
        assert model is afnio.get_backward_model_client()
        assert two is model.client
        found = []
        thread = threading.Thread(target=lambda: found.append(afnio.get_backward_model_client().client))
        thread.start()
        thread.join()
        assert found == [one]
    assert one is afnio.get_backward_model_client().client


def test_a_path_makes_an_openai_client():
    """From the arguments, which stay as they are."""
    client_args = {"api_key": "any", "base_url": "http://127.0.0.1:1/v1"}
    completion_args = {"temperature": 1.0}
    afnio.set_backward_model_client("openai/org/gpt", client_args, completion_args)
    model = afnio.get_backward_model_client()
    assert model.completion_args == {"model": "org/gpt", "temperature": 1.0}
    assert repr(model.client) == "AsyncOpenAI('http://127.0.0.1:1/v1')"
    assert (
        client_args,
        completion_args,
    ) == ({"api_key": "any", "base_url": "http://127.0.0.1:1/v1"}, {"temperature": 1.0})


@pytest.mark.parametrize(
    ("path", "args", "error", "words"),
    [
        ("gpt-5", {}, ValueError, "such as \"openai/gpt-5\" (got 'gpt-5')"),
        ("openai/", {}, ValueError, "(got 'openai/')"),
        ("/gpt", {}, ValueError, "(got '/gpt')"),
        ("anthropic/claude", {}, ValueError, "must be openai or azure (got 'anthropic'); use openai/"),
        (3, {}, TypeError, 'model_path must be "provider/model", a model client or None (got 3)'),
        (ScriptedClient(), {}, ValueError, "completion_args must name the model of a client"),
        (ScriptedClient(), {"model": "m", "n": 2}, ValueError, "n=2 replies"),
    ],
)
def test_bad_models_are_refused_and_change_nothing(path, args, error, words):
    """At the call."""
    with pytest.raises(error) as caught:
        afnio.set_backward_model_client(path, completion_args=args)
    assert words in str(caught.value)
    with pytest.raises(RuntimeError, match="no backward model"):
        afnio.get_backward_model_client()
