"""The parts of a Module: its members, their saved state, its hooks, and its steps for a Trainer.

`Members` holds parameters, buffers, modules and clients by name and kind. `load` puts a state dict into them, all of it
or nothing. `ModuleHooks` are functions called before and after `forward`, which may replace its arguments or its
result; a module without hooks pays nothing for them, because its call is `forward` itself. With hooks, a call is a
`HookedCall`. Hooks of a `def forward` must be `def`s, those of an `async def forward` may be either. `Training` are the
steps, the mode and the log.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple, Protocol, final

from afnio.autodiff._graph import Hook, Hooks, RemovableHandle, checked_hook
from afnio.autodiff._variable import Variable
from afnio.cognitive._template import Parameter
from afnio.models._client import ChatClient
from afnio.runtime._callables import is_async

KINDS: Final = ("parameters", "buffers", "modules", "models")


class Members:
    """Base of Module: holds its members by name and kind.

    Parameters, Modules and clients are registered when they are assigned, buffers by `register_buffer`.
    A name keeps its kind. Assigning a value that doesn't fit, such as a plain str to a Parameter's name, raises: the
    text would otherwise silently drop out of the optimizer and the saved state.
    """

    _members: dict[str, dict[str, Any]]
    _transient: set[str]

    def __init__(self) -> None:
        object.__setattr__(self, "_members", {kind: {} for kind in KINDS})
        object.__setattr__(self, "_transient", set())

    def __setattr__(self, name: str, value: Any) -> None:
        members = self.__dict__.get("_members")
        own = self._kind_of(value)
        if members is None:
            if own is not None:
                raise AttributeError(
                    f"{type(self).__name__}.{name} was assigned before super().__init__(); call that first"
                )
            object.__setattr__(self, name, value)
            return
        before = next((kind for kind in KINDS if name in members[kind]), None)
        kind = own or before
        if kind is None or hasattr(getattr(type(self), name, None), "__set__"):
            object.__setattr__(self, name, value)
            return
        if hasattr(type(self), name):
            raise AttributeError(
                f"{type(self).__name__} has a class attribute {name!r}, which would hide this one; "
                "choose another name"
            )
        self._check(kind, name, value)
        if before is not None and before != kind:
            del members[before][name]
        self.__dict__.pop(name, None)
        members[kind][name] = value

    def __getattr__(self, name: str) -> Any:
        # Python calls this only for names that aren't plain attributes.
        for registered in self.__dict__.get("_members", {}).values():
            if name in registered:
                return registered[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for registered in self._members.values():
            if name in registered:
                del registered[name]
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        names = [name for registered in self._members.values() for name in registered]
        return sorted({*super().__dir__(), *names})

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        self._register("parameters", name, parameter)

    def register_buffer(self, name: str, variable: Variable | None, persistent: bool = True) -> None:
        """Hold a Variable that is saved (if persistent) but not learned."""
        self._register("buffers", name, variable)
        (self._transient.discard if persistent else self._transient.add)(name)

    def register_module(self, name: str, module: Members | None) -> None:
        self._register("modules", name, module)

    def register_model(self, name: str, model: ChatClient | None) -> None:
        self._register("models", name, model)

    def _register(self, kind: str, name: str, value: Any) -> None:
        if "_members" not in self.__dict__:
            raise AttributeError(f"{name!r} was registered before super().__init__(); call that first")
        self._check(kind, name, value)
        if hasattr(self, name) and name not in self._members[kind]:
            raise KeyError(f"{type(self).__name__} has an attribute {name!r} already")
        self._members[kind][name] = value

    def _check(self, kind: str, name: Any, value: Any) -> None:
        """Raise for a name or a value that can't be registered; None always can."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a member must be a string (got {name!r})")
        if not name or "." in name:
            raise KeyError(f"the name of a member must not be empty or hold a dot (got {name!r})")
        if value is None:
            return
        fits = {
            "parameters": isinstance(value, Parameter),
            "buffers": isinstance(value, Variable),
            "modules": isinstance(value, Members),
            "models": isinstance(value, ChatClient),
        }[kind]
        if not fits:
            fix = f"; write {name}.data = … to change its text" if kind == "parameters" else ""
            raise TypeError(f"{name!r} is one of the {kind} and can't become {value!r}{fix}")
        if kind == "parameters" and not value.is_leaf:
            raise ValueError(f"parameter {name!r} must be a leaf; use .detach() on the output of an op")

    @staticmethod
    def _kind_of(value: Any) -> str | None:
        """Return the kind that assigning a value registers it as, None for a plain attribute."""
        if isinstance(value, Parameter):
            return "parameters"
        if isinstance(value, Members):
            return "modules"
        return "models" if isinstance(value, ChatClient) else None


# State dicts


class Stateful(Protocol):
    """A Module, as far as its state goes."""

    def named_modules(self) -> Iterator[tuple[str, Any]]: ...


EXTRA = "_extra_state"


def load(
    module: Stateful,
    state: Mapping[str, Any],
    strict: bool,
    assign: bool,
    model_clients: Mapping[str, Any],
) -> tuple[list[str], list[str]]:
    """Load `state` into `module`, all of it or nothing; return the missing and the unexpected names."""
    own: dict[str, Variable] = {}
    owners: dict[str, Any] = {}
    wanted_extras: list[str] = []
    for prefix, part in module.named_modules():
        for name, variable in part._own_state():
            own[f"{prefix}.{name}" if prefix else name] = variable
        owners[prefix] = part
        if part.get_extra_state() is not None:
            wanted_extras.append(f"{prefix}.{EXTRA}" if prefix else EXTRA)
    extras = {name: value for name, value in state.items() if name.rpartition(".")[2] == EXTRA}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own and name not in extras]
    unexpected += [name for name in extras if name.rpartition(".")[0] not in owners]
    missing += [name for name in wanted_extras if name not in extras]
    problems = [
        problem
        for name, variable in own.items()
        if name in state
        if (problem := _misfit(name, variable, state[name]))
    ]
    problems += [
        problem for name, client in model_clients.items() if (problem := _unfit(name, client, owners))
    ]
    if strict and missing:
        problems.append(f"missing: {', '.join(missing)}")
    if strict and unexpected:
        problems.append(f"unexpected: {', '.join(unexpected)}")
    if problems:
        raise RuntimeError(f"the state dict doesn't fit {type(module).__name__}: {'; '.join(problems)}")
    values = {name: state[name].data for name in own if name in state}  # wait first: a read may fail
    for name, value in values.items():
        if assign:
            _assign(owners, name, own[name], state[name])
        else:
            own[name].data = value
            own[name].role = state[name].role or own[name].role
    for name, client in model_clients.items():
        owners[name.rpartition(".")[0]]._members["models"][name.rpartition(".")[2]] = client
    for name, extra in extras.items():
        owner = owners.get(name.rpartition(".")[0])
        if owner is not None:
            owner.set_extra_state(extra)
    return missing, unexpected


def _misfit(name: str, variable: Variable, value: Any) -> str | None:
    if not isinstance(value, Variable):
        return f"{name} must be a Variable (got {value!r})"
    (slots, batch), (new_slots, new_batch) = variable.cell(), value.cell()
    if slots[0].outcome is None if not batch else not slots:
        return None  # an empty Variable takes a value of any shape
    if batch != new_batch:
        return f"{name} is {'a batch' if batch else 'one value'} here and not in the state"
    if batch and len(slots) != len(new_slots):
        return f"{name} has {len(slots)} samples here and {len(new_slots)} in the state"
    return None


def _unfit(name: str, client: Any, owners: Mapping[str, Any]) -> str | None:
    """Return the reason why a client can't be attached under a name, None if it can."""
    if not isinstance(client, ChatClient):
        return f"model_clients[{name!r}] must be a model client (got {client!r})"
    prefix, _, last = name.rpartition(".")
    if prefix in owners and last in owners[prefix]._members["models"]:
        return None
    names = [
        f"{owner}.{own}" if owner else own
        for owner, part in owners.items()
        for own in part._members["models"]
    ]
    return f"it holds no model client {name!r} (its clients: {', '.join(names) or 'none'})"


def _assign(owners: Mapping[str, Any], name: str, variable: Variable, value: Variable) -> None:
    """Put the state's Variable in the place of the module's."""
    prefix, _, last = name.rpartition(".")
    members = owners[prefix]._members
    if last in members["parameters"] and not isinstance(value, Parameter):
        # state_dict() returns plain Variables, but optimizers only find Parameters.
        value = Parameter(value.data, value.role)
    if isinstance(value, Parameter) and isinstance(variable, Parameter):
        # Checks of values belong to the program, not to the state.
        value.max_tokens, value.validators = variable.max_tokens, variable.validators
    value.requires_grad_(variable.requires_grad)
    members["parameters" if last in members["parameters"] else "buffers"][last] = value


# Hooks


class _Registered(NamedTuple):
    """A forward hook and its options."""

    hook: Hook
    with_kwargs: bool
    always_call: bool = False


@final
class ModuleHooks:
    """The hooks before and after a module's forward."""

    def __init__(self) -> None:
        self.pre: Hooks[_Registered] = Hooks()
        self.post: Hooks[_Registered] = Hooks()

    @property
    def idle(self) -> bool:
        return not (self.pre or self.post)

    def add_pre(self, hook: Hook, *, prepend: bool, with_kwargs: bool) -> RemovableHandle:
        return self.pre.add(_Registered(checked_hook(hook), with_kwargs), prepend=prepend)

    def add_post(self, hook: Hook, *, prepend: bool, with_kwargs: bool, always_call: bool) -> RemovableHandle:
        return self.post.add(_Registered(checked_hook(hook), with_kwargs, always_call), prepend=prepend)

    def __deepcopy__(self, memo: dict[int, Any]) -> ModuleHooks:
        """Copy the lists of hooks but not the callables, so that a copied module's handles are its own."""
        copied = ModuleHooks()
        for registered in self.pre:
            copied.pre.add(registered)
        for registered in self.post:
            copied.post.add(registered)
        return copied


@final
class HookedCall:
    """One call of a module with hooks: pre-hooks, forward, hooks."""

    __slots__ = ("_hooks", "_module")

    def __init__(self, module: Any, hooks: ModuleHooks) -> None:
        self._module = module
        self._hooks = hooks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_async(self._module.forward):
            return self._call_async(args, kwargs)
        try:
            for registered in list(self._hooks.pre):
                returned = self._checked(registered, self._ask(registered, args, kwargs))
                args, kwargs = _replaced(registered, returned, args, kwargs)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        if inspect.iscoroutine(output):  # a `def` that returns the coroutine of an `async def`
            return self._await_output(output, args, kwargs)
        for registered in list(self._hooks.post):
            returned = self._checked(registered, self._ask(registered, args, kwargs, output))
            output = output if returned is None else returned
        return output

    async def _call_async(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            for registered in list(self._hooks.pre):
                returned = await _awaited(self._ask(registered, args, kwargs))
                args, kwargs = _replaced(registered, returned, args, kwargs)
            output = self._module.forward(*args, **kwargs)
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        return await self._await_output(output, args, kwargs)

    async def _await_output(
        self, output: Coroutine[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            result = await output
        except BaseException:
            self._report_failure(args, kwargs)
            raise
        for registered in list(self._hooks.post):
            returned = await _awaited(self._ask(registered, args, kwargs, result))
            result = result if returned is None else returned
        return result

    def _ask(
        self, registered: _Registered, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any
    ) -> Any:
        """Call a hook: `(module, args)`, with `kwargs` if it wants them, with the output if there is one."""
        if registered.with_kwargs:
            return registered.hook(self._module, args, kwargs, *output)
        return registered.hook(self._module, args, *output)

    def _checked(self, registered: _Registered, returned: Any) -> Any:
        """Return what a hook of a `def forward` returned; a coroutine is an error, because no one would await it."""
        if inspect.iscoroutine(returned):
            returned.close()
            raise TypeError(
                f"{type(self._module).__name__}.forward is a `def`, so its hooks must be too (got the `async def` "
                f"{registered.hook!r}); change values as they arrive with output.map(fn)"
            )
        return returned

    def _report_failure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the hooks that are called after a failed forward too, with an output of None."""
        for registered in list(self._hooks.post):
            if not registered.always_call:
                continue
            try:
                self._checked(registered, self._ask(registered, args, kwargs, None))
            except Exception as error:
                warnings.warn(
                    f"a hook of {type(self._module).__name__} failed after forward had raised: {error!r}",
                    stacklevel=3,
                )


async def _awaited(returned: Any) -> Any:
    return await returned if inspect.iscoroutine(returned) else returned


def _replaced(
    registered: _Registered, returned: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of `forward` after a pre-hook has returned."""
    if returned is None:
        return args, kwargs
    if not registered.with_kwargs:
        return (returned if isinstance(returned, tuple) else (returned,)), kwargs
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise TypeError(
            f"a forward pre-hook with kwargs must return None or (args, kwargs) (got {returned!r})"
        )
    return tuple(returned[0]), dict(returned[1])


# Steps for a Trainer


# Receives the metrics of `self.log()`; set for the context of a Trainer's step.
step_log: Final[ContextVar[Callable[[str, Any], None] | None]] = ContextVar("afnio_step_log", default=None)

_mode: Final[ContextVar[bool | None]] = ContextVar("afnio_mode", default=None)


@contextmanager
def mode(training: bool) -> Iterator[None]:
    """Set the mode of all modules for the block's context; it overrides `train()` and `eval()`.

    The mode can't be an attribute of the agent alone: a validation pass and a training step may run on it at the same
    time.
    """
    token = _mode.set(training)
    try:
        yield
    finally:
        _mode.reset(token)


class Training:
    """The part of a Module that a Trainer calls. Write the steps that you need.

    A step may be a `def`, which runs in a worker thread and may read, or an `async def`. It returns
    `(score, explanation)`, or a dict with that as "score" and further metrics, or None to skip the batch.
    """

    # If False, `training_step` clears, runs backward and steps itself, with `self.optimizers()`.
    automatic_optimization: bool = True

    @property
    def training(self) -> bool:
        """The mode that `train()` and `eval()` set; a Trainer overrides it while it runs a pass."""
        here = _mode.get()
        return bool(self.__dict__.get("_training", True)) if here is None else here

    @training.setter
    def training(self, training: bool) -> None:
        self.__dict__["_training"] = training

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score and the explanation of one batch."""
        raise NotImplementedError(_missing(self, "training_step", "fit"))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch. No graph is recorded; parameters have the values that the pass began with."""
        raise NotImplementedError(_missing(self, "validation_step", "validate"))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch; no graph is recorded."""
        raise NotImplementedError(_missing(self, "test_step", "test"))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the predictions of one batch for `Trainer.predict`; Variables are awaited."""
        raise NotImplementedError(_missing(self, "predict_step", "predict"))

    def configure_optimizers(self) -> Any:
        """Return the optimizer, or a list of several."""
        raise NotImplementedError(
            f"{type(self).__name__} has no optimizer; write `def configure_optimizers(self)` that returns one"
        )

    def optimizers(self) -> Any:
        """Return the Trainer's optimizer, or the list of several.

        Raises:
            AttributeError: outside of a `fit`.
        """
        own = self.__dict__.get("_optimizers")
        if not own:
            raise AttributeError(f"{type(self).__name__} has optimizers only while Trainer.fit runs")
        return own[0] if len(own) == 1 else list(own)

    def log(self, name: str, value: Any) -> None:
        """Record a metric of the batch, like one that the step returns; does nothing outside of a Trainer.

        Args:
            value: a number is the batch's mean. A score, a batch of numbers or a list of numbers counts for each
                sample. Anything else is logged unchanged.
        """
        if not isinstance(name, str):
            raise TypeError(f"a metric's name must be a string (got {name!r})")
        record = step_log.get()
        if record is not None:
            record(name, value)


def _missing(agent: object, step: str, what: str) -> str:
    return (
        f"{type(agent).__name__} has no {step}, which Trainer.{what} needs; "
        f"write `def {step}(self, batch, batch_idx)`"
    )
