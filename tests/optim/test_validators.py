"""Validators of every kind say in words what they refuse."""

from __future__ import annotations

import copy
import pickle
import re
import threading

import pytest
from pydantic import BaseModel

import afnio
import afnio.cognitive as cog
from afnio.optim import tgd
from afnio.testing import ScriptedClient

SCHEMA = {"type": "object", "properties": {"tone": {"enum": ["kind", "dry"]}}, "required": ["tone"]}


class Style(BaseModel):
    tone: str
    words: int


def short(value):
    return len(value) < 20


def polite(value):
    if "please" not in value:
        raise ValueError("it must say please")


async def calm(value):
    return "it must not shout" if "!" in value else None


def refused(value, *validators):
    """Return why a proposed value isn't taken; nothing if it is."""
    parameter = cog.Parameter("old", role="r", validators=list(validators))
    client = ScriptedClient(lambda request: {"value": value})
    (change,) = tgd([parameter], [[afnio.Variable("Do better.")]], [[]], client, model="m").wait()
    assert change.rejected or parameter.data == value
    return change.rejected.split("; ") if change.rejected else []


@pytest.mark.parametrize(
    ("validator", "good", "bad", "reason"),
    [
        (short, "brief", "x" * 30, "short refuses it"),
        (polite, "please", "now", "it must say please"),
        (calm, "ok", "NOW!", "it must not shout"),
        (re.compile(r"\bJSON\b"), "as JSON", "as XML", r"it must match the pattern '\\bJSON\\b'"),
        (SCHEMA, '{"tone": "dry"}', '{"tone": "odd"}', "it must fit its JSON schema ('odd' is not one of"),
        (SCHEMA, '{"tone": "dry"}', "{tone}", "it must be JSON ("),
        (Style, '{"tone": "dry", "words": 3}', '{"tone": "dry"}', "it must be JSON that fits Style (words: "),
        (lambda value: True, "a", "", ""),
    ],
)
def test_each_kind(validator, good, bad, reason):
    """What passes gives no reason."""
    assert refused(good, validator) == []
    if reason:
        (found,) = refused(bad, validator)
        assert found.startswith(reason)


def test_all_reasons_in_order():
    """One repair is to mend all."""
    assert refused("NOW!" * 9, short, polite, calm) == [
        "short refuses it",
        "it must say please",
        "it must not shout",
    ]


def test_a_plain_function_runs_in_a_thread():
    """The runtime's loop goes on."""
    seen = []
    refused("x", lambda value: seen.append(threading.current_thread().name))
    assert "afnio-runtime" not in seen[0]


@pytest.mark.parametrize(
    ("validator", "error", "words"),
    [
        (lambda value: 3, TypeError, "must return None, True, False, or a text with the reason .got 3"),
        (lambda value: 1 / 0, ZeroDivisionError, "division by zero"),
    ],
)
def test_a_broken_validator_is_no_refusal(validator, error, words):
    """The step fails with its error."""
    with pytest.raises(error, match=words):
        refused("x", validator)


# On a Parameter ----------------------------------------------------------------------------------


def checked():
    return cog.Parameter("a", role="r", max_tokens=7, validators=[short, Style, re.compile("a"), SCHEMA])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
def test_copies_have_the_checks(again):
    """They belong to the parameter as its author made it."""
    found = again(checked())
    assert (7, (short, Style, re.compile("a"), SCHEMA), "r") == (
        found.max_tokens,
        found.validators,
        found.role,
    )


@pytest.mark.parametrize("assign", [False, True])
def test_state_brings_values_and_no_checks(assign, tmp_path):
    """Loading a state keeps those of the program."""

    class Agent(cog.Module):
        def __init__(self, prompt):
            super().__init__()
            self.prompt = prompt

        def forward(self):
            return self.prompt

    afnio.save(Agent(cog.Parameter("new", role="r")).state_dict(), tmp_path / "state")
    agent = Agent(checked())
    agent.load_state_dict(afnio.load(tmp_path / "state"), assign=assign)
    assert (agent.prompt.data, agent.prompt.max_tokens, len(agent.prompt.validators)) == ("new", 7, 4)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_tokens": 0}, ValueError, "max_tokens must be a number of tokens from 1, or None (got 0)"),
        ({"max_tokens": True}, ValueError, "(got True)"),
        ({"validators": short}, TypeError, "validators must be a list"),
        ({"validators": ["short"]}, TypeError, "a validator must be a callable, a compiled pattern"),
    ],
)
def test_checks_that_cannot_work_are_refused_where_they_are_given(options, error, words):
    """At the constructor."""
    with pytest.raises(error) as caught:
        cog.Parameter("a", **options)
    assert words in str(caught.value)
