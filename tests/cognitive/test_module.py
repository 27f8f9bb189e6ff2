"""Modules register what they are assigned, compute in forward, and have none of the known traps."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Variable
from afnio.testing import ScriptedClient


class Part(cog.Module):
    def __init__(self, text="one"):
        super().__init__()
        self.prompt = cog.Parameter(text, role="prompt")

    def forward(self, value: Variable) -> Variable:
        return value + self.prompt


class Agent(cog.Module):
    def __init__(self, part=None):
        super().__init__()
        self.first = part or Part()
        self.second = Part("two")
        self.task = cog.Parameter("task", role="task")
        self.template = Variable("{message}", role="template")
        self.options = {"temperature": 0}
        self.nothing = None
        self.names = ["a", "b"]

    def forward(self, value):
        return self.second(self.first(value))


def names(pairs):
    return [name for name, _ in pairs]


# Registration ----------------------------------------------------------------------------------


def test_parameters_modules_and_clients_are_registered_and_nothing_else():
    """A dict is no configuration, None no function, a plain Variable is not saved."""
    agent = Agent()
    agent.client = ScriptedClient()
    assert names(agent.named_parameters()) == ["task", "first.prompt", "second.prompt"]
    assert names(agent.named_modules()) == ["", "first", "second"]
    assert names(agent.named_models()) == ["client"]
    assert [*agent.buffers()] == []
    assert (agent.options, agent.nothing, agent.names) == ({"temperature": 0}, None, ["a", "b"])


def test_assignment_before_init_is_an_error():
    """The fix is in the sentence; plain attributes are free."""

    class Early(cog.Module):
        def __init__(self):
            self.plain = 1
            self.prompt = cog.Parameter("x")

    with pytest.raises(
        AttributeError, match=r"Early.prompt was assigned before super\(\).__init__\(\); call"
    ):
        Early()
    with pytest.raises(AttributeError, match="registered before"):
        cog.Module.register_parameter(object.__new__(cog.Module), "p", cog.Parameter("x"))


@pytest.mark.parametrize("value", ["better", Variable("better"), Part()])
def test_a_parameter_is_not_replaced_by_something_that_learns_nothing(value):
    """Assigning a text over a Parameter would silently end its training."""
    part = Part()
    if isinstance(value, cog.Module):
        part.prompt = value
        assert (names(part.named_parameters(recurse=False)), names(part.named_children())) == ([], ["prompt"])
        return
    with pytest.raises(TypeError, match="'prompt' is one of the parameters .* write prompt.data = …"):
        part.prompt = value
    assert part.prompt.data == "one"


def test_a_registered_name_can_be_replaced_emptied_and_deleted():
    """It keeps its kind and its place."""
    part = Part()
    part.prompt = cog.Parameter("new")
    assert [p.data for p in part.parameters()] == ["new"]
    part.prompt = None
    assert ([*part.parameters()], part.prompt) == ([], None)
    part.prompt = cog.Parameter("again")
    del part.prompt
    assert not hasattr(part, "prompt")
    with pytest.raises(AttributeError, match="'Part' has no attribute 'prompt'"):
        _ = part.prompt


def test_a_plain_attribute_may_become_a_parameter():
    """The plain one is gone then."""
    agent = Agent()
    agent.nothing = cog.Parameter("x")
    assert "nothing" in names(agent.named_parameters())
    assert "nothing" not in agent.__dict__


def test_a_member_cannot_hide_behind_a_method_or_a_class_attribute():
    """`agent.models = client` would otherwise be lost without a word."""

    class Default(cog.Module):
        prompt = None

    with pytest.raises(AttributeError, match="class attribute 'models', which would hide this one"):
        Agent().models = ScriptedClient()
    with pytest.raises(AttributeError, match="class attribute 'prompt'"):
        Default().prompt = cog.Parameter("x")


def test_a_property_of_the_class_takes_what_is_assigned():
    """Its setter decides."""

    class Renaming(cog.Module):
        @property
        def prompt(self):
            return self._prompt

        @prompt.setter
        def prompt(self, value):
            self._prompt = value

    module = Renaming()
    module.prompt = cog.Parameter("x")
    assert names(module.named_parameters()) == ["_prompt"]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.register_parameter(3, None), TypeError, "must be a string (got 3)"),
        (
            lambda m: m.register_parameter("a.b", None),
            KeyError,
            "must not be empty or hold a dot (got 'a.b')",
        ),
        (lambda m: m.register_parameter("", None), KeyError, "must not be empty"),
        (lambda m: m.register_parameter("forward", None), KeyError, "has an attribute 'forward' already"),
        (lambda m: m.register_parameter("first", cog.Parameter("x")), KeyError, "'first' already"),
        (lambda m: m.register_parameter("p", Variable("x")), TypeError, "'p' is one of the parameters"),
        (lambda m: m.register_buffer("p", "x"), TypeError, "'p' is one of the buffers and can't become 'x'"),
        (lambda m: m.register_module("p", "x"), TypeError, "'p' is one of the modules"),
        (lambda m: m.register_model("p", "x"), TypeError, "'p' is one of the models"),
        (lambda m: setattr(m, "a.b", cog.Parameter("x")), KeyError, "hold a dot"),
    ],
)
def test_bad_registrations_are_refused(call, error, words):
    """With the name and the value."""
    with pytest.raises(error) as caught:
        call(Agent())
    assert words in str(caught.value)


def test_a_parameter_has_to_be_a_leaf():
    """The output of an op is computed, not learned."""
    parameter = cog.Parameter("x")
    parameter += Variable("y")
    with pytest.raises(ValueError, match="must be a leaf; use .detach"):
        Agent().register_parameter("p", parameter)


def test_everything_can_be_registered_by_hand():
    """Each kind has its traversal."""
    module = cog.Module()
    module.register_buffer("buffer", Variable("b"))
    module.register_model("model", client := ScriptedClient())
    module.register_module("part", part := Part())
    assert (["b"], [client], [part]) == (
        [b.data for b in module.buffers()],
        [*module.models()],
        [*module.children()],
    )
    module.buffer = Variable("new")
    assert [b.data for b in module.buffers()] == ["new"]
    assert {"buffer", "part"} <= set(dir(module))


# Traversal -------------------------------------------------------------------------------------


def test_a_shared_module_is_seen_once():
    """Under its first name; every name on request."""
    shared = Part()
    agent = Agent(shared)
    agent.second = shared
    assert names(agent.named_modules()) == ["", "first"]
    assert names(agent.named_parameters()) == ["task", "first.prompt"]
    assert names(agent.named_modules(remove_duplicate=False)) == ["", "first", "second"]
    assert names(agent.named_parameters(remove_duplicate=False)) == ["task", "first.prompt", "second.prompt"]


def test_a_shared_parameter_is_seen_once():
    """An optimizer must not get it twice."""
    agent = Agent()
    agent.second.prompt = agent.first.prompt
    assert len([*agent.parameters()]) == 2
    assert names(agent.named_parameters(prefix="p", recurse=False)) == ["p.task"]


def test_train_and_eval_reach_everything_and_take_a_bool():
    """`training` is a flag for user code."""
    agent = Agent()
    assert agent is agent.eval()
    assert [m.training for m in agent.modules()] == [False] * 3
    assert [m.training for m in agent.train().modules()] == [True] * 3
    with pytest.raises(ValueError, match="training mode must be True or False .got 1."):
        agent.train(1)


def test_requires_grad_touches_parameters_only():
    """A plain template doesn't become trainable."""
    agent = Agent()
    agent.requires_grad_(False)
    assert [p.requires_grad for p in agent.parameters()] == [False] * 3
    agent.requires_grad_()
    assert (agent.task.requires_grad, agent.template.requires_grad) == (True, False)


def test_apply_visits_children_first():
    """And returns the module."""
    agent, seen = Agent(), []
    assert agent is agent.apply(lambda module: seen.append(type(module).__name__))
    assert seen == ["Part", "Part", "Agent"]


def test_clear_grad_drops_the_feedback():
    """That of every parameter."""
    agent = Agent()
    agent.task.append_grad(Variable("better"))
    agent.clear_grad()
    assert agent.task.grad == []


def test_the_repr_shows_the_tree_and_its_parameters():
    """Long texts are cut, pending ones are not waited for."""
    agent = Agent()
    agent.task.data = "x" * 100
    assert repr(agent) == (
        "Agent(\n"
        f"  (task): Parameter('{'x' * 56}...', role='task', requires_grad=True)\n"
        "  (first): Part(\n"
        "    (prompt): Parameter('one', role='prompt', requires_grad=True)\n"
        "  )\n"
        "  (second): Part(\n"
        "    (prompt): Parameter('two', role='prompt', requires_grad=True)\n"
        "  )\n"
        ")"
    )
    assert repr(cog.ChatCompletion()) == "ChatCompletion()"


# Calls -----------------------------------------------------------------------------------------


def test_a_call_is_forward():
    """With the arguments and the result of forward."""
    assert (Agent()(Variable("x")).data, Part()(value=Variable("x")).data) == ("xonetwo", "xone")
    assert callable(Agent())
    assert list(inspect.signature(Agent().__call__).parameters) == ["value"]


def test_a_module_without_forward_says_so():
    """At the call."""
    with pytest.raises(NotImplementedError, match="Module has no forward; write `def forward"):
        cog.Module()(1)


async def test_one_body_serves_call_and_await():
    """A `def forward` that doesn't read works on a loop."""
    result = Agent()(Variable("x").map(str))
    assert result is await result
    assert result.data == "xonetwo"


class Reader(cog.Module):
    async def forward(self, value):
        await value
        return value.data


def test_an_async_forward_returns_its_coroutine():
    """Awaited on a loop, or run by afnio.run in a script."""
    assert afnio.run(Reader()(Variable("x").map(str))) == "x"


async def test_an_async_forward_is_awaited():
    """As Python users expect."""
    assert await Reader()(Variable("x").map(str)) == "x"


# Copies ----------------------------------------------------------------------------------------


def test_a_deep_copy_shares_nothing_but_clients():
    """Parameters are new and without feedback, sharing inside the agent is kept."""
    agent = Agent()
    agent.second.prompt = agent.first.prompt
    agent.client = ScriptedClient()
    agent.task.append_grad(Variable("better"))
    clone = copy.deepcopy(agent)
    clone.task.data = "changed"
    assert (agent.task.data, clone.task.data) == ("task", "changed")
    assert clone.task.grad == []
    assert type(clone.task) is cog.Parameter
    assert clone.second.prompt is clone.first.prompt is not agent.first.prompt
    assert clone.client is agent.client
    assert clone(Variable("x")).data == "xoneone"


def test_an_agent_can_be_pickled():
    """With its Parameters as Parameters."""
    agent = Agent()
    agent.eval()
    clone = pickle.loads(pickle.dumps(agent))
    assert names(clone.named_parameters()) == ["task", "first.prompt", "second.prompt"]
    assert (clone(Variable("x")).data, clone.training) == ("xonetwo", False)


def test_a_client_is_not_pickled():
    """It holds a key; the sentence says what to do."""
    agent = Agent()
    agent.client = ScriptedClient()
    with pytest.raises(TypeError, match="can't be pickled because it has a key and connections; pass it to"):
        pickle.dumps(agent)
