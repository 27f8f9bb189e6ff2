"""Identity: which call of `optimize` is the same as an earlier one, so that it may continue it or return its result.

`Contents` makes plain data of all that it can see of an agent and a metric: code, closure cells, defaults, arguments of
a `partial`, the globals and helpers in use, and the settings of the user's own objects. An object of a library, such
as a client, has no value that could be compared. It counts by its class, and what it asks for is seen from outside:
`requested` makes data of a rehearsed row's requests. Messages are left out of that, as many have the date in them.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final, final

from afnio.autodiff._variable import Variable
from afnio.cognitive._module import Module
from afnio.models._trace import Rehearsed
from afnio.studies._rows import digest

# Objects that are looked at; what is beyond counts by its class.
MOST: Final = 100_000
# Modules whose objects decide nothing about a request.
_LOCKS: Final = (
    "_thread",
    "threading",
    "asyncio",
    "anyio",
    "logging",
    "contextvars",
    "weakref",
    "concurrent",
)


@final
@dataclass(slots=True)
class Contents:
    """Makes plain data of values, the same in another process.

    Attributes:
        unseen: the places of objects that count by their class alone.

    >>> Contents().of(functools.partial(str.upper, "hi")) == Contents().of(functools.partial(str.upper, "hi"))
    True
    >>> Contents().of(functools.partial(str.upper, "hi")) == Contents().of(functools.partial(str.upper, "no"))
    False
    """

    unseen: list[str] = field(default_factory=list)
    _seen: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def of(self, value: Any, place: str = "the agent") -> Any:
        """Return `value` as plain data.

        Args:
            place: its name, for `unseen`.
        """
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | CodeType):
            return _code(value) if isinstance(value, CodeType) else [type(value).__name__, repr(value)]
        if id(value) in self._seen:  # a circle, or one object in two places
            return ["again", self._seen[id(value)][0]]
        if len(self._seen) >= MOST:
            return ["more", _named(type(value))]
        self._seen[id(value)] = (len(self._seen), value)  # keeps it alive, so that its id stays its own
        return self._compound(value, place)

    def _compound(self, value: Any, place: str) -> Any:
        if isinstance(value, list | tuple):
            return [_named(type(value)), *(self.of(part, place) for part in value)]
        if isinstance(value, set | frozenset):
            return [_named(type(value)), *sorted(digest(self.of(part, place)) for part in value)]
        if isinstance(value, Mapping) and not isinstance(value, types.MappingProxyType):
            pairs = [[self.of(key, place), self.of(part, f"{place}[{key!r}]")] for key, part in value.items()]
            return [_named(type(value)), *sorted(pairs, key=digest)]
        if isinstance(value, Variable):
            return ["Variable", self.of(value.data, place), value.role]
        if isinstance(value, functools.partial):
            return ["partial", *(self.of(part, place) for part in (value.func, value.args, value.keywords))]
        if isinstance(value, MethodType):
            return ["method", self.of(value.__func__, place), self.of(value.__self__, place)]
        if isinstance(value, staticmethod | classmethod):
            return self.of(value.__func__, place)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type):
            return self._class(value)
        return self._object(value, place)

    def _function(self, function: FunctionType) -> Any:
        wrapped = inspect.unwrap(function)
        if isinstance(wrapped, FunctionType) and wrapped is not function and _is_library(function.__module__):
            return self.of(wrapped)
        if _is_library(function.__module__):
            return ["function", function.__module__, function.__qualname__]
        code, name = function.__code__, function.__qualname__
        cells = {
            cell_name: self.of(_cell(cell), f"{cell_name} in {name}")
            for cell_name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
        }
        defaults = [self.of(one, f"a default of {name}") for one in function.__defaults__ or ()]
        named = {
            key: self.of(one, f"{key} in {name}") for key, one in (function.__kwdefaults__ or {}).items()
        }
        used = {}
        for key in sorted(_names(code)):
            if key in function.__globals__:
                value = function.__globals__[key]
                used[key] = self.of(value, f"{key} in {name}")
                if isinstance(value, ModuleType) and not _is_library(value.__name__):
                    attributes = sorted(_names(code) & vars(value).keys())
                    used |= {f"{key}.{one}": self.of(vars(value)[one], f"{key}.{one}") for one in attributes}
        return ["function", _code(code), cells, defaults, named, used]

    def _class(self, kind: type) -> Any:
        if _is_library(kind.__module__):
            return ["class", _named(kind)]
        parts = {
            name: self.of(part, f"{kind.__qualname__}.{name}")
            for name, part in sorted(vars(kind).items())
            if name not in _NOT_CODE
            and not isinstance(part, types.GetSetDescriptorType | types.MemberDescriptorType)
        }
        return ["class", kind.__qualname__, parts, *(self.of(base) for base in kind.__bases__)]

    def _object(self, value: Any, place: str) -> Any:
        kind = type(value)
        if isinstance(value, property):
            return ["property", self.of(value.fget, place), self.of(value.fset, place)]
        if not _is_library(kind.__module__) or isinstance(value, Module):
            state = {**getattr(value, "__dict__", {}), **_slots(value)}
            parts = {
                name: self.of(part, f"{place}.{name}")
                for name, part in sorted(state.items())
                if name not in ("_hooks", "_transient")
            }
            return ["object", self.of(kind), parts]
        text = _plain_repr(value)
        if text is not None:
            return [_named(kind), text]
        if kind.__module__.partition(".")[0].lstrip("_") not in [name.lstrip("_") for name in _LOCKS]:
            self.unseen.append(f"{place} ({_named(kind)})")
        return ["object", _named(kind)]


_NOT_CODE: Final = {"__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__abstractmethods__",
    "_abc_impl", "__firstlineno__", "__static_attributes__", "__parameters__", "__orig_bases__", "__slots__",
    "__match_args__", "__dataclass_params__", "__dataclass_fields__", "__signature__",
}  # fmt: skip


def _plain_repr(value: Any) -> str | None:
    """Return the `repr` of a library's value (a date, a path, an enum, options), or None for an object without one."""
    kind: Any = type(value)
    # An object that compares by identity has no value, whatever its text says.
    if kind.__repr__ == object.__repr__ or (kind.__eq__ == object.__eq__ and not isinstance(value, Enum)):
        return None
    try:
        text = repr(value)
    except Exception:
        return None
    return None if " at 0x" in text else text


def _slots(value: Any) -> dict[str, Any]:
    names: list[str] = []
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    return {name: getattr(value, name) for name in names if hasattr(value, name) and name != "__weakref__"}


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _names(code: CodeType) -> set[str]:
    """Return the names of globals and attributes in a function's code, functions inside of it included."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*inner)


def _code(code: CodeType) -> Any:
    """Return what code does, without names of files and numbers of lines."""
    # The order of a set of constants differs from process to process.
    constants = [
        _code(one)
        if isinstance(one, CodeType)
        else sorted(map(repr, one))
        if isinstance(one, frozenset)
        else repr(one)
        for one in code.co_consts
    ]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _is_library(module: str | None) -> bool:
    """Return True for a module that a package manager installed, or that is part of Python or Afnio."""
    top = (module or "").partition(".")[0]
    if (top in sys.stdlib_module_names and top != "__main__") or top in ("afnio", "builtins"):
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


# Requests


def requested(calls: Sequence[Rehearsed]) -> Any:
    """Return what a row's requests ask for: endpoint, model, parameters and tools, without messages."""
    asked = [[call.account.url, call.model, call.params] for call in calls]
    return sorted({digest(one) for one in asked})
