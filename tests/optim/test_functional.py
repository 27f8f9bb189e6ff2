"""Functional TGD: parameters, gradients and momentum buffers are given, and changed in place."""

from __future__ import annotations

import pytest
from kit.roles import shown

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError
from afnio.optim import tgd
from afnio.testing import ScriptedClient


def rewrite(request):
    return {"value": " ".join([*shown(request, "variable"), *shown(request, "feedback")])}


def gradients(*texts):
    return [afnio.Variable(text) for text in texts]


def test_parameters_and_buffers_change_in_place():
    """One without gradients stays; the result lists the changes."""
    one, two, buffers = cog.Parameter("a", role="r"), cog.Parameter("b"), [[], []]
    client = ScriptedClient(rewrite)
    work = tgd([one, two], [gradients("f", "g"), []], buffers, client, momentum=1, model="m")
    (change,) = work.wait()
    assert (
        change.role, change.before, change.after, change.gradients, change.rejected
    ) == ("r", "a", "a f g", 2, None)  # fmt: skip
    assert [evidence.text for evidence in change.evidence] == ["f", "g"]
    assert (one.data, two.data, len(client.requests)) == ("a f g", "b", 1)
    assert [[(v.data, [g.data for g in gs]) for v, gs in b] for b in buffers] == [[("a", ["f", "g"])], []]


async def test_on_a_loop_it_is_awaited():
    """The Pending gives the changes."""
    parameter = cog.Parameter("a")
    (change,) = await tgd([parameter], [gradients("f")], [[]], ScriptedClient(rewrite), model="m")
    assert (change.after, parameter.data) == ("a f", "a f")


def test_a_failure_keeps_the_value():
    """And the buffer."""
    parameter, buffer = cog.Parameter("a"), []
    with pytest.raises(FinalModelError, match="no"):
        tgd(
            [parameter],
            [gradients("f")],
            [buffer],
            ScriptedClient(FinalModelError("no")),
            momentum=1,
            model="m",
        )
    assert (parameter.data, buffer) == ("a", [])


def test_lengths_and_options_are_checked():
    """At the call."""
    with pytest.raises(ValueError, match="must have equal lengths .got 1, 0, 0"):
        tgd([cog.Parameter("a")], [], [], ScriptedClient(), model="m")
    with pytest.raises(TypeError, match="model_client must be a model client"):
        tgd([], [], [], "gpt-5", model="m")
