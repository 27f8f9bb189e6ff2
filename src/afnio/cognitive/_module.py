"""Modules: agents and their parts, as in `torch.nn`.

A `Module` registers what it is made of under the names of its attributes (`Members`), computes in `forward`, and is
called as `module(...)`. That gives a program of many prompts three things: an optimizer finds every `Parameter`, a
state dict saves and loads the texts by dotted name, and a Trainer knows the agent's steps (`Training`).

Calling a module adds nothing to its `forward`. `__call__` is a descriptor (`_Call`) that hands out `forward` itself as
long as no hook is registered; type checkers then see the parameters and the result of each agent's own `forward`.

Below it are the containers, modules made of modules: `Sequential`, `ModuleList` and `ModuleDict`.
"""

from __future__ import annotations

import os
from collections.abc import (
    AsyncIterable,
    Callable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    ValuesView,
)
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, Self, TypeVar, final, overload

from afnio.autodiff._graph import Hook, RemovableHandle
from afnio.autodiff._variable import Variable
from afnio.cognitive._members import HookedCall, Members, ModuleHooks, Training, load
from afnio.cognitive._stream import Stream
from afnio.cognitive._template import Parameter
from afnio.models._client import ChatClient

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class HasForward(Protocol[P, R_co]):
    """Anything with a `forward`."""

    def forward(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _Call:
    """`__call__` as a descriptor: `agent(…)` has the parameters and the result of the agent's `forward`."""

    @overload
    def __get__(self, module: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self, module: HasForward[P, R], owner: Any = None) -> Callable[P, R]: ...
    @overload
    def __get__(self, module: object, owner: Any = None) -> Callable[..., Any]: ...
    def __get__(self, module: Any, owner: Any = None) -> Any:
        if module is None:
            return self
        hooks: ModuleHooks | None = module.__dict__.get("_hooks")
        return module.forward if hooks is None or hooks.idle else HookedCall(module, hooks)


class IncompatibleKeys(NamedTuple):
    """The names that `load_state_dict` found in the module only, or in the state only."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Members, Training):
    """Base of agents: assign Parameters, Modules and clients as attributes, write `forward`.

    `forward` is a `def` or an `async def`. A `def` that doesn't read a pending value serves both `agent(…)` and
    `await agent(…)`.

    >>> from afnio import Variable
    >>> class Echo(Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.suffix = Parameter("!", role="suffix")
    ...     def forward(self, text):
    ...         return text + self.suffix
    >>> Echo()(Variable("Hi")).data
    'Hi!'
    """

    __call__ = _Call()

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "_hooks", ModuleHooks())

    _hooks: ModuleHooks

    if not TYPE_CHECKING:  # a declared type would hide the one of a subclass's `forward = staticmethod(...)`

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{type(self).__name__} has no forward; write `def forward(self, ...)`")

    # Hooks

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args)` before each `forward`.

        It returns None, or other arguments: a tuple, or one value. With `with_kwargs` it is called as
        `hook(module, args, kwargs)` and returns None or `(args, kwargs)`.
        """
        return self._hooks.add_pre(hook, prepend=prepend, with_kwargs=with_kwargs)

    def register_forward_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call `hook(module, args, output)` after each `forward`; it returns None or another output.

        The Variables that a `def forward` returns may still be pending, and reading them in a hook would wait.
        `output.map(fn)` changes each sample as it arrives. If `forward` is an `async def` the hook may be one too.

        Args:
            prepend: call it before the hooks that are registered already.
            with_kwargs: call it as `hook(module, args, kwargs, output)`.
            always_call: call it after a `forward` that raised too, with an output of None.

        >>> class Echo(Module):
        ...     def forward(self, text):
        ...         return text
        >>> echo = Echo()
        >>> with echo.register_forward_hook(lambda module, args, output: output.map(str.upper)):
        ...     echo(Variable("ab")).data
        'AB'
        """
        return self._hooks.add_post(hook, prepend=prepend, with_kwargs=with_kwargs, always_call=always_call)

    def stream(
        self,
        rows: Iterable[Any] | AsyncIterable[Any],
        *args: Any,
        max_pending: int = 1_000,
        ordered: bool = True,
        start: int = 0,
        **kwargs: Any,
    ) -> Stream:
        """Call the agent for each row, and yield a result for each, with bounded memory.

        A result has the row's number `index`, the `row`, the `value` of the output, None if it failed, and its `error`.

        Use it with `for`, or with `async for` on an event loop; in a `with` block if you may leave it early. No graph
        is recorded. A row is launched by itself, at
        an address of its number, so a program that was killed continues with its journal.

        Args:
            rows: any iterable, also a generator, or an async iterable (within `async with`). A tuple is several
                arguments of `forward`, a dict its keywords, any other row is one argument. `async for` reads a
                synchronous iterable in a thread.
            *args, **kwargs: further arguments of `forward`, the same for all rows; `args` come before the row's.
            max_pending: the most rows that are launched and not yet taken.
            ordered: True for results in the order of the rows, False for the order in which they are done.
            start: the number of the first row to launch; those before it are read and skipped.

        Raises:
            BudgetExceeded, JournalError: while iterating, after the results of the rows before; no further row could
                succeed. So does an error of `rows` themselves. Its note says where to start again. Other errors of a
                row are in its result.
            TypeError, ValueError: for rows that aren't iterable, or numbers out of range.

        >>> from afnio import Variable
        >>> class Shout(Module):
        ...     def forward(self, text):
        ...         return Variable(text).map(str.upper)
        >>> [result.value for result in Shout().stream(["a", "b"])]
        ['A', 'B']
        """
        return Stream(self, rows, args, kwargs, max_pending=max_pending, ordered=ordered, start=start)

    # Traversal

    def named_modules(
        self, memo: set[int] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Yield this module and all below it with their dotted names, each once."""
        memo = set() if memo is None else memo
        if id(self) in memo:
            return
        if remove_duplicate:
            memo.add(id(self))
        yield prefix, self
        for name, child in self._members["modules"].items():
            if child is not None:
                yield from child.named_modules(memo, _joined(prefix, name), remove_duplicate)

    def modules(self) -> Iterator[Module]:
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        for name, child in self._members["modules"].items():
            if child is not None:
                yield name, child

    def children(self) -> Iterator[Module]:
        for _, child in self.named_children():
            yield child

    def _named(
        self, kind: str, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        owners: Iterable[tuple[str, Module]] = (
            self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
            if recurse
            else [(prefix, self)]
        )
        for owner, module in owners:
            for name, value in module._members[kind].items():
                if value is None or (remove_duplicate and id(value) in seen):
                    continue
                seen.add(id(value))
                yield _joined(owner, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        return self._named("parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Variable]]:
        return self._named("buffers", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Variable]:
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def named_models(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, ChatClient]]:
        return self._named("models", prefix, recurse)

    def models(self, recurse: bool = True) -> Iterator[ChatClient]:
        for _, model in self.named_models(recurse=recurse):
            yield model

    def apply(self, fn: Callable[[Module], object]) -> Self:
        """Call `fn` on every module below and on this one; returns this one."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # Mode

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below."""
        if not isinstance(mode, bool):
            raise ValueError(  # noqa: TRY004 - as in the interface that users know
                f"training mode must be True or False (got {mode!r})"
            )
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Turn gathering of feedback on or off for the parameters, and for nothing else."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def clear_grad(self) -> None:
        """Drop the parameters' feedback."""
        for parameter in self.parameters():
            parameter.clear_grad()

    # State

    def get_extra_state(self) -> Any:
        """Return further state to save, which JSON can hold; override it together with `set_extra_state`."""
        return None

    def set_extra_state(self, state: Any) -> None:
        raise RuntimeError(f"{type(self).__name__} was given extra state; write set_extra_state(self, state)")

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        """Return parameters, persistent buffers and extra state by dotted name; waits for them.

        Args:
            keep_vars: return the Variables themselves, not detached copies.
        """
        state: dict[str, Any] = {}
        for owner, module in self.named_modules(prefix=prefix.rstrip(".")):
            for name, variable in module._own_state():
                variable.data  # noqa: B018 - wait, so that no pending value is saved
                state[_joined(owner, name)] = variable if keep_vars else variable.detach()
            extra = module.get_extra_state()
            if extra is not None:
                state[_joined(owner, "_extra_state")] = extra
        return state

    def load_state_dict(
        self,
        state_dict: Mapping[str, Any],
        strict: bool = True,
        assign: bool = False,
        model_clients: Mapping[str, ChatClient] | None = None,
    ) -> IncompatibleKeys:
        """Load the values of `state_dict`, all or none.

        Clients hold API keys, so a state doesn't contain them. The module keeps its own; pass `model_clients` for
        others.

        Args:
            strict: missing or unexpected names are errors.
            assign: take the Variables themselves instead of their values.
            model_clients: clients by dotted name, such as `{"judge.client": client}`.

        Raises:
            RuntimeError: lists everything that doesn't fit; nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping (got {state_dict!r})")

        missing, unexpected = load(self, state_dict, strict, assign, model_clients or {})
        return IncompatibleKeys(missing, unexpected)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the agent's texts and the name of its class. `afnio.load_agent(path)` makes the agent again.

        The file has no code, no client and no key. It is replaced atomically, and only the user can read it.

        Raises:
            TypeError: for a class inside a function, which can't be imported, or extra state that JSON can't hold.
            OSError: if the file can't be written.
        """
        from afnio.cognitive._archive import save_agent

        save_agent(self, path)

    def _own_state(self) -> Iterator[tuple[str, Variable]]:
        members = self._members
        for name, variable in members["parameters"].items():
            if variable is not None:
                yield name, variable
        for name, variable in members["buffers"].items():
            if variable is not None and name not in self._transient:
                yield name, variable

    def extra_repr(self) -> str:
        return ""

    def __repr__(self) -> str:
        """Show the tree of modules with their parameters; never waits."""
        lines = [self.extra_repr()] if self.extra_repr() else []
        lines += [
            f"({name}): {'None' if value is None else _shown(value)}"
            for name, value in self._members["parameters"].items()
        ]
        lines += [f"({name}): {_indented(repr(child))}" for name, child in self.named_children()]
        head = type(self).__name__
        return f"{head}()" if not lines else "\n".join([f"{head}(", *(f"  {line}" for line in lines), ")"])


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def _shown(parameter: Parameter) -> str:
    slots, _ = parameter.cell()
    value = repr(slots[0].outcome)
    shown = value if len(value) <= 60 else f"{value[:57]}...{value[-1]}"
    return f"Parameter({shown}, role={parameter.role!r}, requires_grad={parameter.requires_grad})"


class _Numbered(Module):
    """Modules by position."""

    def __len__(self) -> int:
        return len(self._members["modules"])

    def __getitem__(self, index: int) -> Module:
        module: Module = list(self.children())[index]
        return module

    def __iter__(self) -> Iterator[Module]:
        return self.children()


@final
class Sequential(_Numbered):
    """Modules one after the other, each called with the output of the one before.

    >>> from afnio.autodiff import Variable
    >>> class Upper(Module):
    ...     def forward(self, text):
    ...         return text.map(str.upper)
    >>> Sequential(Upper())(Variable("a")).data
    'A'
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__()
        for number, module in enumerate(modules):
            self.register_module(str(number), module)

    def forward(self, value: Any) -> Any:
        for module in self.children():
            value = module(value)
        return value


@final
class ModuleList(_Numbered):
    """A list of modules, registered under their positions."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    def append(self, module: Module) -> ModuleList:
        self.register_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self


@final
class ModuleDict(Module):
    """Modules by name, registered, in the order in which they were put in.

    >>> from afnio.cognitive import ExactMatchEvaluator
    >>> parts = ModuleDict({"judge": ExactMatchEvaluator()})
    >>> parts["other"] = ExactMatchEvaluator()
    >>> list(parts), "judge" in parts
    (['judge', 'other'], True)
    """

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Put in the modules of a mapping, or of pairs."""
        pairs = modules.items() if isinstance(modules, Mapping) else modules
        for name, module in pairs:
            self[name] = module

    def __setitem__(self, name: str, module: Module) -> None:
        if name in self:
            self._check("modules", name, module)
            self._members["modules"][name] = module
        else:
            self.register_module(name, module)

    def __getitem__(self, name: str) -> Module:
        module: Module = self._members["modules"][name]
        return module

    def __delitem__(self, name: str) -> None:
        del self._members["modules"][name]

    def __contains__(self, name: object) -> bool:
        return name in self._members["modules"]

    def __len__(self) -> int:
        return len(self._members["modules"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._members["modules"])

    def pop(self, name: str) -> Module:
        """Take a module out and return it."""
        module = self[name]
        del self[name]
        return module

    def clear(self) -> None:
        self._members["modules"].clear()

    def keys(self) -> KeysView[str]:
        return self._members["modules"].keys()

    def values(self) -> ValuesView[Module]:
        return self._members["modules"].values()

    def items(self) -> ItemsView[str, Module]:
        return self._members["modules"].items()
