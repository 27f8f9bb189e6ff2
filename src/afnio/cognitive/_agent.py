"""Agents that weren't written for Afnio: any function, as a Module whose prompts are Parameters.

The function is called once for each sample with plain values, and makes its language model calls as it likes: through
a client of Afnio's, or through the bridge of an SDK's. Nothing of it is in the graph but the call itself (`Called`).
The trace has what the graph lacks: every request and every reply of that sample. Backward is one call of the backward
model, which reads the trace and says for each prompt what should change (`TraceCritic`). Functions without a
`backward` have the same critic.

A trace is kept only if something wants feedback. It is opened in any case, because it notes what ended the calls for
good, such as a budget: otherwise an agent that catches every exception would return an answer that it made up without
its model, and that answer would be scored.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, final

from afnio.autodiff._function import Arguments, Context, Function, Later, Loop, Place, checked_loop
from afnio.autodiff._variable import Variable, checked, plain
from afnio.cognitive._chat import criticize_trace
from afnio.cognitive._module import Module
from afnio.cognitive._template import Parameter
from afnio.errors import chain
from afnio.models._backward_model import get_backward_model_client
from afnio.models._trace import Trace, current_trace, tracing
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Job, Slot


class Agent(Module):
    """Any function as a Module: an agent of plain SDK code, or of another framework, with prompts to learn.

    `fn(*inputs, **prompts)` is called once for each sample, with plain values. A `def` runs in a worker thread, an
    `async def` on the runtime's loop. Its language model calls are traced if they go through a client of Afnio's or
    through `afnio.bridge`. In `backward()` the backward model reads the trace of a sample, in one call, and writes
    feedback for each prompt that is to blame.

    Call the agent with inputs for `fn`: a list is a batch, anything else is shared by all samples. A positional input
    fills the next parameter that is no prompt. The output holds what `fn` returned, a text or any other value, such
    as a dict. A sample for which it returns None is missing.

    Args:
        fn: the function; also a method, a partial, or an object with `__call__`.
        prompts: a text, or a `Parameter`, for each parameter of `fn` that is to be learned. They are attributes of the
            agent, but for names that every Module has, such as "train"; `named_parameters` has all of them.
        loop: "caller" runs an `async def` on the loop that called the agent, for clients that are bound to it.
        role: the purpose of the output, in words.
        executor: runs `fn` in other processes: a callable that makes a `concurrent.futures.Executor`, an Executor, or
            `afnio.Workers`. Its language model calls still go through this process.
        durable: True to journal what `fn` returns in an executor; 2, 3, … once the function has changed.

    Raises:
        TypeError: for prompts that `fn` doesn't take, or arguments that don't fit it. On calling it, for an `fn` that
            can't be pickled for its executor.

    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient("Rome")
    >>> async def answer(question, system):
    ...     messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    ...     return (await client.achat(messages=messages, model="m")).content
    >>> capital = Agent(answer, prompts={"system": "Be brief."})
    >>> capital(["Italy's capital?", "And of Latium?"]).data
    ['Rome', 'Rome']
    >>> [name for name, _ in capital.named_parameters()]
    ['system']
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        prompts: Mapping[str, str | Parameter],
        loop: Loop = "runtime",
        role: str | None = None,
        executor: Any = None,
        durable: int = False,
    ) -> None:
        super().__init__()
        self._signed = Signed(fn, list(_checked_prompts(prompts)))
        self._loop = checked_loop(loop)
        if executor is not None or durable:
            from afnio.runtime._executors import Workers
            from afnio.runtime._remote import checked_durable

            durable = checked_durable(durable, executor)
            executor = Workers.of(executor)
        self._elsewhere = (executor, durable)
        self._role = f"output of {self._signed.name}" if role is None else role
        for name, prompt in prompts.items():
            if isinstance(prompt, str):
                prompt = Parameter(prompt, role=f"{name} prompt of {self._signed.name}")
            # Not by `register_parameter`: a tool may be called "train", as one of the methods of every Module is.
            self._check("parameters", name, prompt)
            self._members["parameters"][name] = prompt

    @property
    def fn(self) -> Callable[..., Any]:
        """The function."""
        return self._signed.function

    def forward(self, *inputs: Any, **named: Any) -> Variable:
        """Return what `fn` returns for the inputs, one lane for each sample.

        Raises:
            TypeError: for inputs that `fn` doesn't take.
        """
        args, kwargs = self.arranged(inputs, named)
        fn, (executor, durable) = self._signed.function, self._elsewhere
        if executor is not None:
            from afnio.runtime._remote import remote

            fn = remote(fn, executor, durable=durable, loop=self._loop)
        output: Variable = Called.apply(
            [_as_variable(value, "input") for value in args],
            {name: _as_variable(value, name) for name, value in kwargs.items()},
            {name: prompt for name, prompt in self._members["parameters"].items() if prompt is not None},
            signed=self._signed,
            fn=fn,
            role=self._role,
            loop=self._loop,
        )
        return output

    async def once(self, job: Job, inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Return what `fn` returns for one sample, in a job of another launch. Nothing is recorded for a critic."""
        args, kwargs = self.arranged(
            [plain(value) for value in inputs], {name: plain(value) for name, value in named.items()}
        )
        prompts = {name: prompt.data for name, prompt in self._members["parameters"].items()}
        ctx = Context(Arguments((), {}), (), (), (), None)
        options = {"signed": self._signed, "fn": self._signed.function}
        return plain(await Called.run_forward(job, ctx, (args, kwargs, prompts), options))

    def arranged(self, inputs: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return inputs as `fn` takes them together with its prompts: `fn(*args, **kwargs, **prompts)`.

        Raises:
            TypeError: for inputs that `fn` doesn't take.
        """
        return self._signed.arranged(inputs, dict(named))

    def extra_repr(self) -> str:
        return self._signed.name


def agent(
    *,
    prompts: Mapping[str, str | Parameter],
    loop: Loop = "runtime",
    role: str | None = None,
    executor: Any = None,
    durable: int = False,
) -> Callable[[Callable[..., Any]], Agent]:
    """Make an `Agent` of the function below; its arguments are those of `Agent`.

    >>> @agent(prompts={"suffix": "!"})
    ... def shout(text, suffix):
    ...     return text.upper() + suffix
    >>> shout("hello").data
    'HELLO!'
    """

    def decorate(fn: Callable[..., Any]) -> Agent:
        made = Agent(fn, prompts=prompts, loop=loop, role=role, executor=executor, durable=durable)
        for name in ("__doc__", "__name__", "__qualname__", "__module__"):
            object.__setattr__(made, name, getattr(fn, name, None))
        return made

    return decorate


def _checked_prompts(prompts: Any) -> Mapping[str, str | Parameter]:
    if not isinstance(prompts, Mapping):
        raise TypeError(
            f'prompts must be a dict of names and texts (got {prompts!r}); write {{"system": "…"}}'
        )
    for name, prompt in prompts.items():
        if not isinstance(prompt, str | Parameter):
            raise TypeError(f"a prompt must be a text or a Parameter (got {prompt!r} for {name!r})")
    return prompts


def _as_variable(value: Any, role: str) -> Any:
    """Return an input as a Variable: a list is a batch. What no Variable holds, such as a dict, is passed as it is."""
    if isinstance(value, Variable):
        return value
    if isinstance(value, list):
        try:
            checked(value)
        except TypeError:
            return Variable.over([Slot.filled(plain(item)) for item in value], True, role)
        return Variable(value, role)
    return Variable(value, role) if isinstance(value, str | int | float) else value


# The function and its parameters


_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@final
class Signed:
    """A function with its signature, checked once against the prompts that it will get.

    Attributes:
        warned, warned_of_none: True once it was said that it makes no calls, or returns None.
    """

    def __init__(self, function: Any, prompts: Sequence[str]) -> None:
        if isinstance(function, Module):
            raise TypeError(
                f"fn must be a function of plain values (got the Module {type(function).__name__}); a Module needs no "
                "Agent, as its prompts are Parameters already"
            )
        if not callable(function):
            raise TypeError(f"fn must be a function (got {function!r})")
        self.function: Callable[..., Any] = function
        self.name = _name_of(function)
        self.warned = self.warned_of_none = False
        self._prompts = prompts
        try:
            self._signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self._signature = None  # written in C, without a signature to check
        if self._signature is not None:
            self._check(list(self._signature.parameters.values()))

    def _check(self, parameters: list[inspect.Parameter]) -> None:
        kinds = {parameter.name: parameter.kind for parameter in parameters}
        loose = any(kind is inspect.Parameter.VAR_KEYWORD for kind in kinds.values())
        for prompt in self._prompts:
            kind = kinds.get(prompt)
            named = kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
            if not named and not (loose and kind is not inspect.Parameter.POSITIONAL_ONLY):
                taken = ", ".join(kinds) or "none"
                why = "is by position only" if kind is inspect.Parameter.POSITIONAL_ONLY else "isn't one"
                raise TypeError(
                    f"every prompt must be a parameter of {self.name} that can be passed by name (got {prompt!r}, "
                    f"which {why}; its parameters: {taken}); rename the prompt, or add it to the function"
                )
        several = any(kind is inspect.Parameter.VAR_POSITIONAL for kind in kinds.values())
        first = [p.name for p in parameters if p.kind in _POSITIONAL and p.name in self._prompts]
        if several and first:
            raise TypeError(
                f"the prompts of a function with *args must be keyword-only (got {first[0]!r} before it, in "
                f"{self.name}); move it behind *args"
            )

    def arranged(self, inputs: Sequence[Any], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return inputs so that `function(*args, **kwargs, **prompts)` takes them.

        Raises:
            TypeError: if it doesn't.
        """
        taken = [name for name in self._prompts if name in named]
        if taken:
            raise TypeError(
                f"{taken[0]!r} is a prompt of {self.name} and must not be an input; assign {taken[0]}.data of the "
                "agent, or use afnio.bind"
            )
        if self._signature is None:
            return list(inputs), named
        args, kwargs = list(inputs), dict(named)
        positional = [p for p in self._signature.parameters.values() if p.kind in _POSITIONAL]
        free = [p.name for p in positional if p.name not in self._prompts and p.name not in named]
        if any(parameter.name in self._prompts for parameter in positional[: len(args)]):
            # A prompt stands before an input, so the inputs are passed by name.
            only = sum(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in positional)
            kwargs |= dict(zip(free[only:], args[only:], strict=False))
            args = args[:only] + args[len(free) :]
        try:
            self._signature.bind(*args, **kwargs, **dict.fromkeys(self._prompts))
        except TypeError as error:
            why = (
                f"{len(inputs)} inputs for {len(free)} parameters" if len(inputs) > len(free) else str(error)
            )
            prompts = ", ".join(self._prompts)
            do = "pass inputs that fit, or name its prompts in prompts={…}"
            if prompts:
                do = f"its prompts, {prompts}, are passed by name"
            raise TypeError(f"the inputs must fit {self.name}{self._signature} (got {why}); {do}") from None
        return args, kwargs

    def names_of(self, args: Sequence[Any]) -> dict[str, Any]:
        """Return positional arguments by the names of their parameters."""
        parameters = () if self._signature is None else self._signature.parameters.values()
        names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL][: len(args)]
        names += [f"input {number}" for number in range(len(names) + 1, len(args) + 1)]
        return dict(zip(names, args, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> Signed:
        """Return the same object: a copied agent has prompts of its own and calls the same function."""
        return self


def _name_of(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", None) or type(function).__name__
    return "fn" if name == "<lambda>" else str(name)


# The op


@final
class Called(Function):
    """The op of an Agent: one call of the user's function."""

    @classmethod
    def title(cls, arguments: Arguments) -> str:
        name: str = arguments.kwargs["signed"].name
        return name

    @classmethod
    def loop_of(cls, arguments: Arguments) -> Loop:
        loop: Loop = arguments.kwargs["loop"]
        return loop

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        return [arguments.kwargs["role"]]

    @classmethod
    def output(cls, value: Any) -> Any:
        return plain(value)

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        inputs, named, prompts = args
        signed: Signed = kwargs["signed"]
        with traced_within(record=any(ctx.wanted)) as trace:
            try:
                output = await call_in_node(job, partial(kwargs["fn"], *inputs, **named, **prompts))
            except Exception as error:
                _raise_end(trace, error)
                raise
            _raise_end(trace, None)
        if any(ctx.wanted):
            ctx.trace, ctx.output = trace, output
            if not trace.launched and not signed.warned:
                signed.warned = True
                logging.getLogger("afnio").warning(
                    "%s made no language model call that Afnio sees, so its critic reads prompts, inputs and output "
                    "alone; give its SDK a client of afnio.bridge",
                    signed.name,
                )
        if output is None and not signed.warned_of_none:
            signed.warned_of_none = True
            logging.getLogger("afnio").warning(
                "%s returned None%s; a sample with None is missing and isn't scored, so return a text instead",
                signed.name,
                "" if ctx.lane is None else f" for sample {ctx.lane}",
            )
        return output

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        TraceCritic.check()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Later:
        names: dict[int, str] = {}
        inputs, named, prompts = ctx.arguments.args
        signed: Signed = ctx.arguments.kwargs["signed"]
        named = {**signed.names_of(inputs), **named, **prompts}
        for name, place in named.items():
            if isinstance(place, Place):
                names.setdefault(place.number, name)
        return TraceCritic.criticize(job, ctx, names)


# The critic


class TraceCritic:
    """Writes the feedback of agents, and of Functions without a `backward`, from their traces."""

    @staticmethod
    def check() -> None:
        get_backward_model_client()

    @staticmethod
    async def watch(ctx: Context, forward: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of one lane's forward; keep its calls and its output on `ctx`."""
        with traced_within(record=True) as trace:
            try:
                ctx.output = await forward()
            except Exception as error:
                _raise_end(trace, error)
                raise
            _raise_end(trace, None)
        ctx.trace = trace
        return ctx.output

    @staticmethod
    def criticize(job: Job, ctx: Context, names: Mapping[int, str]) -> Later:
        feedback = [entry for incoming in ctx.feedback for entry in incoming]
        seen = [entry.seen for entry in feedback if entry.seen is not None]
        return partial(
            criticize_trace,
            job,
            ctx,
            get_backward_model_client(),
            trace=getattr(ctx, "trace", None),
            values=ctx.lane_values(),
            names=names,
            output=getattr(ctx, "output", seen[0] if seen else ""),
            feedback=feedback,
            wanted=ctx.wanted,
        )


@contextmanager
def traced_within(*, record: bool) -> Iterator[Trace]:
    """Trace the block. What an agent inside of another one does is part of both traces."""
    outer = current_trace.get()
    with tracing(record or (outer is not None and outer.record), purpose="forward") as trace:
        try:
            yield trace
        finally:
            if outer is not None:
                outer.calls += trace.calls if outer.record else []
                outer.launched += trace.launched
                if trace.ended_by is not None:
                    outer.note(trace.ended_by)


def _raise_end(trace: Trace, error: Exception | None) -> None:
    """Raise what ended the lane's calls for good, from the function's own error."""
    end = trace.ended_by
    if end is None or end is error:
        return
    if any(cause is end for cause in chain(error, contexts=True)):
        raise end  # the function's error comes from it; the other way round it would be a circle
    raise end from error


Function.critic = TraceCritic()
