"""State: what can be written down is, what can't stays where it is."""

from __future__ import annotations

import io

import afnio
import afnio.cognitive as cog
from afnio.optim import TGD
from afnio.testing import ScriptedClient


def test_clients_nested_in_options_stay_out_of_the_state_and_in_the_optimizer():
    """However deep; a state goes through a file, tuples too."""
    client = ScriptedClient("new")
    options = {"model": "m", "seed": 1}
    optimizer = TGD([{"params": [cog.Parameter("a")]}], client, constraints=["short"], **options)
    group = optimizer.param_groups[0]
    group["completion_args"] = {"model": "m", "tools": [client, {"fn": print, "n": 1}], "pair": (client, 2)}
    file = io.BytesIO()
    afnio.save(optimizer.state_dict(), file)
    file.seek(0)
    saved = afnio.load(file)
    expected = {"model": "m", "tools": [None, {"n": 1}], "pair": (None, 2)}
    assert saved["param_groups"][0]["completion_args"] == expected
    saved["param_groups"][0]["completion_args"]["model"] = "other"
    optimizer.load_state_dict(saved)
    found = group["completion_args"]
    assert ("other", [client, {"fn": print, "n": 1}], (client, 2)) == (
        found["model"],
        found["tools"],
        found["pair"],
    )
    assert client is group["model_client"]


def test_momentum_goes_through_a_file(learned):
    """As pairs of Variables and gradients."""
    parameter = learned("v0", "g0")
    optimizer = TGD([parameter], ScriptedClient({"value": "v1"}), momentum=2, model="m")
    optimizer.step()
    file = io.BytesIO()
    afnio.save(optimizer.state_dict(), file)
    file.seek(0)
    other = TGD([cog.Parameter("v1")], ScriptedClient("x"), momentum=2, model="m")
    other.load_state_dict(afnio.load(file))
    ((before, gradients),) = other.state[other.param_groups[0]["params"][0]]["momentum_buffer"]
    assert (before.data, [gradient.data for gradient in gradients]) == ("v0", ["g0"])


def test_reduced_feedback_that_an_optimizer_keeps_goes_through_a_file(learned):
    """As a plain list of its gradients."""

    class Keeping(TGD):
        def remember(self, parameter, value, gradients, options):
            self.state[parameter]["last"] = gradients

    optimizer = Keeping([learned("v0", "g0")], ScriptedClient({"value": "v1"}), model="m")
    optimizer.step()
    file = io.BytesIO()
    afnio.save(optimizer.state_dict(), file)
    file.seek(0)
    assert [gradient.data for gradient in afnio.load(file)["state"][0]["last"]] == ["g0"]
