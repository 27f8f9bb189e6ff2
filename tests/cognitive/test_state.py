"""State: a Module's texts by name, taken whole or not at all."""

from __future__ import annotations

import pytest

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Variable
from afnio.testing import ScriptedClient


class Inner(cog.Module):
    def __init__(self):
        super().__init__()
        self.prompt = cog.Parameter("inner", role="inner prompt")


class Agent(cog.Module):
    def __init__(self):
        super().__init__()
        self.task = cog.Parameter("task", role="task")
        self.template = Variable("{message}", role="template")
        self.inner = Inner()
        self.chat = cog.ChatCompletion()
        self.steps = 0
        self.register_buffer("kept", Variable("kept", role="buffer"))
        self.register_buffer("passing", Variable("passing"), persistent=False)

    def forward(self, client, message):
        messages = [
            {"role": "system", "content": [self.task]},
            {"role": "user", "content": [self.template]},
        ]
        return self.chat(client, messages, inputs={"message": message}, model="m")


NAMES = ["task", "kept", "inner.prompt"]


def test_a_state_holds_parameters_and_persistent_buffers():
    """As detached Variables."""
    agent = Agent()
    state = agent.state_dict()
    assert list(state) == NAMES
    assert [variable.data for variable in state.values()] == ["task", "kept", "inner"]
    assert not any(variable.requires_grad for variable in state.values())
    assert agent.task is agent.state_dict(keep_vars=True)["task"]
    assert list(agent.inner.state_dict(prefix="x.")) == ["x.prompt"]


def test_a_state_is_a_snapshot():
    """What is learned later doesn't change it."""
    agent = Agent()
    state = agent.state_dict()
    agent.task.data = "learned"
    assert state["task"].data == "task"


@pytest.mark.parametrize("used", [False, True])
def test_a_state_goes_into_used_and_never_run_agents(used):
    """From either to either: a call leaves nothing behind that a state would need."""
    source, target = Agent(), Agent()
    source.task.data = source.inner.prompt.data = "learned"
    if used:
        for agent in (source, target):
            assert agent(ScriptedClient("ok"), "hi").data == "ok"
    assert target.load_state_dict(source.state_dict()) == ([], [])
    assert [parameter.data for parameter in target.parameters()] == ["learned", "learned"]
    assert target.task.requires_grad


def test_misfits_are_listed_together_and_nothing_is_changed():
    """One error says all."""
    agent = Agent()
    state = agent.state_dict()
    del state["kept"]
    state |= {"task": Variable(["a", "b"]), "inner.prompt": "text", "other": Variable("x")}
    with pytest.raises(RuntimeError) as caught:
        agent.load_state_dict(state)
    assert str(caught.value) == (
        "the state dict doesn't fit Agent: task is one value here and not in the state; "
        "inner.prompt must be a Variable (got 'text'); missing: kept; unexpected: other"
    )
    assert [parameter.data for parameter in agent.parameters()] == ["task", "inner"]


def test_a_loose_load_takes_what_fits():
    """And says what didn't."""
    agent = Agent()
    keys = agent.load_state_dict({"task": Variable("new"), "other": Variable("x")}, strict=False)
    assert keys == (["kept", "inner.prompt"], ["other"])
    assert agent.task.data == "new"


def test_assigning_takes_the_variables_and_keeps_parameters():
    """A detached Variable becomes a Parameter, as only that is learned."""
    agent, state = Agent(), Agent().state_dict()
    mine = state["task"] = cog.Parameter("mine", role="mine")
    state["inner.prompt"].data = "new"
    agent.inner.requires_grad_(False)
    agent.load_state_dict(state, assign=True)
    assert agent.task is mine
    assert agent.kept is state["kept"]
    assert (cog.Parameter, "new", False) == (
        type(agent.inner.prompt),
        agent.inner.prompt.data,
        agent.inner.prompt.requires_grad,
    )


def test_lengths_of_batches_have_to_fit():
    """An empty or missing value takes anything."""
    module = cog.Module()
    module.register_buffer("batch", Variable(["a", "b"]))
    with pytest.raises(RuntimeError, match="batch has 2 samples here and 3 in the state"):
        module.load_state_dict({"batch": Variable(["a", "b", "c"])})
    module.batch = Variable(None)
    module.load_state_dict({"batch": Variable(["a", "b", "c"])})
    assert module.batch.data == ["a", "b", "c"]


class Counter(Inner):
    steps = 3

    def get_extra_state(self):
        return {"steps": self.steps}

    def set_extra_state(self, state):
        self.steps = state["steps"]


def test_extra_state_goes_along():
    """What a subclass saves beside its texts."""
    source, target = Counter(), Counter()
    source.steps = 7
    target.load_state_dict(source.state_dict())
    assert target.steps == 7
    with pytest.raises(RuntimeError, match="missing: _extra_state"):
        target.load_state_dict(Inner().state_dict())


def test_a_state_waits_for_what_is_pending():
    """What is saved is what has arrived."""
    agent = Agent()
    agent.kept = Variable("later").map(str.upper)
    assert agent.state_dict()["kept"].data == "LATER"


def test_what_is_no_mapping_is_refused():
    """With the value."""
    with pytest.raises(TypeError, match=r"state_dict must be a mapping .got \[\]"):
        Agent().load_state_dict([])


def test_a_state_survives_a_file(tmp_path):
    """save and load hand it on."""
    agent = Agent()
    agent.task.data = "learned {x}"
    afnio.save(agent.state_dict(), tmp_path / "agent.afnio")
    other = Agent()
    other.load_state_dict(afnio.load(tmp_path / "agent.afnio"))
    assert other.task.data == "learned {x}"


class Asking(Inner):
    def __init__(self, client=None):
        super().__init__()
        self.register_model("client", client)


def asking(outer=None, inner=None):
    agent = Asking(outer)
    agent.judge = Asking(inner)
    return agent


def test_clients_stay_under_their_names_or_are_given():
    """A state holds none; an agent without one loads all the same."""
    one, two, given = (ScriptedClient("x") for _ in range(3))
    state = asking(one, two).state_dict()
    assert list(state) == ["prompt", "judge.prompt"]
    agent = asking(one)
    agent.load_state_dict(state)
    assert (one, None) == (agent.client, agent.judge.client)
    agent.load_state_dict(state, model_clients={"judge.client": given})
    assert (one, given) == (agent.client, agent.judge.client)
    agent.load_state_dict(state, model_clients={"client": two})
    assert list(agent.models()) == [two, given]


@pytest.mark.parametrize(
    ("clients", "problem"),
    [
        (
            {"other": ScriptedClient("x")},
            "it holds no model client 'other' (its clients: client, judge.client)",
        ),
        ({"none.client": ScriptedClient("x")}, "it holds no model client 'none.client'"),
        ({"client": "gpt-5"}, "model_clients['client'] must be a model client (got 'gpt-5')"),
    ],
)
def test_clients_that_fit_nothing_are_told_and_nothing_is_changed(clients, problem):
    """With the names that there are."""
    agent = asking(mine := ScriptedClient("x"))
    state = agent.state_dict()
    state["prompt"] = Variable("new")
    with pytest.raises(RuntimeError) as caught:
        agent.load_state_dict(state, model_clients={"client": ScriptedClient("x"), **clients})
    assert problem in str(caught.value)
    assert (mine, "inner") == (agent.client, agent.prompt.data)


def test_a_state_from_a_file_goes_into_an_agent(tmp_path):
    """As a checkpoint of the Trainer does."""
    source, target = Agent(), Agent()
    source.task.data = "learned"
    afnio.save(source.state_dict(), tmp_path / "state")
    target.load_state_dict(afnio.load(tmp_path / "state"))
    assert target.task.data == "learned"
    assert target.task.requires_grad
