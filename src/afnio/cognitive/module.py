"""Module: an agent or a part of one; it registers what it holds and computes in `forward`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, ParamSpec, Protocol, Self, TypeVar, overload

from afnio.autodiff._graph import Hook, RemovableHandle, checked_hook
from afnio.autodiff._variable import Variable
from afnio.cognitive.members import Members
from afnio.cognitive.module_hooks import Call, ModuleHooks
from afnio.cognitive.parameter import Parameter
from afnio.cognitive.training import Training
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
    def __get__(self, module: Any, owner: Any = None) -> Any:
        if module is None:
            return self
        hooks: ModuleHooks | None = module.__dict__.get("_hooks")
        return module.forward if hooks is None or hooks.idle else Call(module, hooks)


class IncompatibleKeys(NamedTuple):
    """What `load_state_dict` found on one side only."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module(Members, Training):
    """Base of agents: assign Parameters, Modules and clients as attributes, write `forward`.

    `forward` may be a `def`, which serves `agent(…)` and `await agent(…)` as long as it doesn't read a
    pending value, or an `async def`.

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
    forward: Callable[..., Any]

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[no-redef]
        raise NotImplementedError(f"{type(self).__name__} has no forward; write `def forward(self, ...)`")

    # Hooks

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Have `hook(module, args)` called before each `forward`.

        It returns None, or the arguments to go on with: a tuple, or one value. With `with_kwargs` it is
        called as `hook(module, args, kwargs)` and returns None or `(args, kwargs)`.
        """
        return self._hooks.add_pre(hook, prepend=prepend, with_kwargs=with_kwargs)

    def register_forward_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Have `hook(module, args, output)` called after each `forward`; it returns None or another output.

        The output is what `forward` returned: of a `def`, Variables that may be pending. `output.map(fn)`
        changes each sample as it arrives; reading it would wait. Where `forward` is an `async def` the hook
        may be one too.

        Args:
            prepend: call it before the hooks that are there.
            with_kwargs: call it as `hook(module, args, kwargs, output)`.
            always_call: call it, with None, where `forward` raises too.

        >>> from afnio.cognitive import Add
        >>> add = Add()
        >>> with add.register_forward_hook(lambda module, args, output: output.map(str.upper)):
        ...     add(Variable("a"), Variable("b")).data
        'AB'
        """
        return self._hooks.add_post(hook, prepend=prepend, with_kwargs=with_kwargs, always_call=always_call)

    def register_full_backward_hook(self, hook: Hook, *, prepend: bool = False) -> RemovableHandle:
        """Have `hook(module, grad_input, grad_output)` called when a backward pass has been through a call.

        `grad_input` has a Variable with the feedback for each positional argument, `grad_output` one for
        each output (a Variable, or a tuple of some); for a batch its data is a list with one entry for each
        sample. Both have None where nothing was said. The hook returns None, or other feedback for the
        arguments. It waits for all samples of the call: what comes before the module in the graph waits
        too, what is in the module doesn't. `Variable.register_hook` sees each sample on its own.
        """
        return self._hooks.backward.add(checked_hook(hook), prepend=prepend)

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

    def named_chats(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Any]]:
        return self._named("chats", prefix, recurse)

    def chats(self, recurse: bool = True) -> Iterator[Any]:
        for _, chat in self.named_chats(recurse=recurse):
            yield chat

    def named_models(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, ChatClient]]:
        return self._named("models", prefix, recurse)

    def models(self, recurse: bool = True) -> Iterator[ChatClient]:
        for _, model in self.named_models(recurse=recurse):
            yield model

    def named_functions(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Any]]:
        return self._named("functions", prefix, recurse)

    def functions(self, recurse: bool = True) -> Iterator[Any]:
        for _, function in self.named_functions(recurse=recurse):
            yield function

    def named_completion_configs(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        return self._named("completion_configs", prefix, recurse)

    def completion_configs(self, recurse: bool = True) -> Iterator[dict[str, Any]]:
        for _, config in self.named_completion_configs(recurse=recurse):
            yield config

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
        """Have the parameters, and nothing else, gather feedback or not."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def clear_grad(self) -> None:
        """Drop the parameters' feedback."""
        for parameter in self.parameters():
            parameter.clear_grad()

    empty_grad = clear_grad

    # State

    def get_extra_state(self) -> Any:
        """Return further state to save: JSON-able; override it with `set_extra_state`."""
        return None

    def set_extra_state(self, state: Any) -> None:
        raise RuntimeError(f"{type(self).__name__} was given extra state; write set_extra_state(self, state)")

    def state_dict(self, *, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        """Return parameters, persistent buffers, chats' texts and extra state by dotted name; waits for them.

        Args:
            keep_vars: give the Variables themselves, not detached copies.
        """
        state: dict[str, Any] = {}
        for owner, module in self.named_modules(prefix=prefix.rstrip(".")):
            for name, variable in module._own_state():
                variable.data  # noqa: B018 - a state is what is there once everything has arrived
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
        """Take the values that `state_dict` has.

        A state holds no clients, which hold keys: those that the module has under their names stay, others are
        given.

        Args:
            strict: missing or unexpected names are errors.
            assign: take the Variables themselves instead of their values.
            model_clients: clients by dotted name, such as `{"judge.client": client}`.

        Raises:
            RuntimeError: listing everything that doesn't fit; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"a state dict is a mapping (got {state_dict!r})")
        from afnio.cognitive.state import load

        missing, unexpected = load(self, state_dict, strict, assign, model_clients or {})
        return IncompatibleKeys(missing, unexpected)

    def _own_state(self) -> Iterator[tuple[str, Variable]]:
        members = self._members
        for name, variable in members["parameters"].items():
            if variable is not None:
                yield name, variable
        for name, variable in members["buffers"].items():
            if variable is not None and name not in self._transient:
                yield name, variable
        for name, messages in members["chats"].items():
            for number, message in enumerate(messages or ()):
                for part, variable in enumerate(message["content"]):
                    if not isinstance(variable, Parameter):
                        yield f"{name}.{number}.{part}", variable

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
