"""The members of a module, by name and kind."""

from __future__ import annotations

from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive._template import Parameter
from afnio.models._client import ChatClient

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
