"""Members: what a Module holds by name, registered by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive.parameter import Parameter
from afnio.cognitive.template import check_messages
from afnio.models._client import ChatClient

KINDS: Final = (
    "parameters", "buffers", "chats", "modules", "models", "functions", "completion_configs",
)  # fmt: skip


class Members:
    """Base of Module. Parameters, Modules and clients are registered as they are assigned, the rest by hand.

    A name keeps the kind that it was registered as: assigning what doesn't fit there is an error, as it
    would silently be saved and learned no more.
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
        # Only for names that are no plain attributes.
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

    def register_chat(self, name: str, messages: list[dict[str, Any]] | None) -> None:
        """Hold messages, whose texts are saved."""
        self._register("chats", name, messages)

    def register_module(self, name: str, module: Members | None) -> None:
        self._register("modules", name, module)

    def register_model(self, name: str, model: ChatClient | None) -> None:
        self._register("models", name, model)

    def register_function(self, name: str, function: Callable[..., Any] | None) -> None:
        self._register("functions", name, function)

    def register_completion_config(self, name: str, args: dict[str, Any] | None) -> None:
        self._register("completion_configs", name, args)

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
        if kind == "chats":
            check_messages(value)
        fits = {
            "parameters": isinstance(value, Parameter),
            "buffers": isinstance(value, Variable),
            "chats": isinstance(value, list),
            "modules": isinstance(value, Members),
            "models": isinstance(value, ChatClient),
            "functions": callable(value),
            "completion_configs": isinstance(value, dict),
        }[kind]
        if not fits:
            fix = f"; write {name}.data = … to change its text" if kind == "parameters" else ""
            raise TypeError(f"{name!r} is one of the {kind} and can't become {value!r}{fix}")
        if kind == "parameters" and not value.is_leaf:
            raise ValueError(f"parameter {name!r} must be a leaf; use .detach() on the output of an op")

    @staticmethod
    def _kind_of(value: Any) -> str | None:
        """Return the kind under which a value is registered by assigning it, None for a plain attribute."""
        if isinstance(value, Parameter):
            return "parameters"
        if isinstance(value, Members):
            return "modules"
        return "models" if isinstance(value, ChatClient) else None
