"""Subject: the user's function or module in the form that a study calls: with rows, one lane for each."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from afnio import cognitive as cog
from afnio.autodiff._variable import Variable
from afnio.cognitive._agent import traced_within
from afnio.models._trace import Trace
from afnio.runtime._callables import is_async
from afnio.studies._rows import Row, check_text, in_words
from afnio.studies._rules import Rules


@final
class Subject:
    """The agent, as a module that scores rows and can be trained.

    Attributes:
        module: a copy of the user's module, or a `cog.Agent` around the user's function.
        parameters: the prompts, by the user's names.
        rules: what new prompts must keep; at first only a length.
        title: the name of the function or class.
        restored: makes the user's own kind of agent with given prompts.
    """

    def __init__(
        self, module: cog.Module, title: str, restored: Callable[[Mapping[str, str]], Any], function: Any
    ) -> None:
        self.module = module
        self.title = title
        self.restored = restored
        self.function = function
        self.origin = module if function is None else function
        self.parameters = {
            name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        for name, parameter in self.parameters.items():
            if not isinstance(parameter.data, str):
                raise TypeError(f"prompt {name!r} must be a text (got {parameter.data!r})")
        self._validators = {name: parameter.validators for name, parameter in self.parameters.items()}
        self.govern(Rules.of(self.texts))

    def govern(self, rules: Rules) -> None:
        """Let new prompts keep these rules, in place of those before."""
        self.rules = rules
        for name, parameter in self.parameters.items():
            parameter.validators = (*self._validators[name], *rules.validators(name))

    @classmethod
    def of(
        cls, agent: Any, prompts: Mapping[str, str] | None, wanted: Sequence[str], *, trained: bool = True
    ) -> Subject:
        """Return the subject of a user's agent.

        Args:
            wanted: what the metric takes by name.
            trained: whether it must have prompts to train.
        """
        if isinstance(agent, cog.Module):
            if "trace" in wanted and not isinstance(agent, cog.Agent):
                raise TypeError(
                    "a metric can have the trace of a function's calls only; leave `trace` out for a Module"
                )
            return cls._of_module(agent, prompts, trained=trained)
        if isinstance(agent, type) or not callable(agent):
            raise TypeError(f"agent must be a function or a cognitive.Module (got {agent!r})")
        if prompts is None and not trained:
            prompts = {}
        if not isinstance(prompts, Mapping) or (trained and not prompts):
            raise TypeError(
                f"a function needs prompts={{name: text}}, the texts that it takes by name (got {prompts!r})"
            )
        for name, text in prompts.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"prompts must be texts by name (got {name!r}: {text!r})")
            check_text(f"prompt {name!r}", text)
        module = cog.Agent(traced(agent) if "trace" in wanted else agent, prompts=dict(prompts))
        return cls(module, module.extra_repr(), functools.partial(with_prompts, module), agent)

    @classmethod
    def _of_module(cls, agent: cog.Module, prompts: Any, *, trained: bool) -> Subject:
        if prompts is not None:
            raise TypeError("prompts must be left out for a Module: its own Parameters are the prompts")
        module = copy.deepcopy(agent)
        if trained and not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(
                f"{type(agent).__name__} must have a Parameter with requires_grad=True (got none)"
            )

        def restored(texts: Mapping[str, str]) -> cog.Module:
            copied = copy.deepcopy(agent)
            for name, parameter in copied.named_parameters():
                if name in texts:
                    parameter.data = texts[name]
            return copied

        return cls(module, type(agent).__qualname__, restored, None)

    def copied(self) -> Subject:
        """Return the same agent with prompts of its own."""
        copied = Subject(copy.deepcopy(self.module), self.title, self.restored, self.function)
        copied.govern(self.rules)
        return copied

    @property
    def texts(self) -> dict[str, str]:
        """The prompts as they are now."""
        return {name: str(parameter.data) for name, parameter in self.parameters.items()}

    def write(self, texts: Mapping[str, str]) -> None:
        """Give the agent these prompts."""
        for name, parameter in self.parameters.items():
            parameter.data = texts[name]

    def check(self, row: Row) -> None:
        """Raise if the agent can't be called with a row like this one."""
        if isinstance(self.module, cog.Agent):
            self.module.arranged(row.args, row.kwargs)
            return
        try:
            inspect.signature(self.module.forward).bind(*row.args, **row.kwargs)
        except TypeError as error:
            names = " ".join([*row.kwargs]) or "one value"
            raise TypeError(
                f"{self.title} can't be called with a row's inputs ({names}): {error}; keep clients and settings in "
                "the module (self.client = …), or pass a function that has them"
            ) from None

    def __call__(self, rows: Sequence[Row]) -> Any:
        """Launch the agent on rows; returns its output, or a coroutine of it."""
        args = [_lanes([row.args[0] for row in rows])] if rows[0].args else []
        return self.module(
            *args, **{key: _lanes([row.kwargs[key] for row in rows]) for key in rows[0].kwargs}
        )


def with_prompts(agent: cog.Agent, texts: Mapping[str, str]) -> Callable[..., Any]:
    """Return an agent's function with prompts filled in. Inputs are passed as before, wherever the prompts stand."""
    function = agent.fn

    @functools.wraps(function)
    async def awaited(*inputs: Any, **named: Any) -> Any:
        args, kwargs = agent.arranged(inputs, named)
        return await function(*args, **kwargs, **texts)

    @functools.wraps(function)
    def called(*inputs: Any, **named: Any) -> Any:
        args, kwargs = agent.arranged(inputs, named)
        return function(*args, **kwargs, **texts)

    return awaited if is_async(function) else called


def _lanes(values: list[Any]) -> Any:
    """Return a Variable of a batch's values, or the list if a Variable can't hold them."""
    try:
        return Variable(values, role="input")
    except TypeError:
        return values


@final
class Traced(str):
    """An output as a text that brings the trace of its calls to the metric."""

    __slots__ = ("trace", "value")
    value: Any
    trace: Trace


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its trace at its output, for a metric that wants it."""

    def joined(output: Any, trace: Trace) -> Any:
        if output is None:
            return None
        text = Traced(in_words(output))
        text.value, text.trace = output, trace
        return text

    @functools.wraps(function)
    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        with traced_within(record=True) as trace:
            output = await function(*args, **kwargs)
        return joined(output, trace)

    @functools.wraps(function)
    def in_thread(*args: Any, **kwargs: Any) -> Any:
        with traced_within(record=True) as trace:
            output = function(*args, **kwargs)
        return joined(output, trace)

    return on_loop if is_async(function) else in_thread
