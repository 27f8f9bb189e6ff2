"""Containers: modules made of modules."""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, final

from afnio.cognitive._module import Module


@final
class Sequential(Module):
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

    def __len__(self) -> int:
        return len(self._members["modules"])

    def __getitem__(self, index: int) -> Module:
        found: Module = list(self.children())[index]
        return found

    def __iter__(self) -> Iterator[Module]:
        return self.children()


@final
class ModuleList(Module):
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

    def __len__(self) -> int:
        return len(self._members["modules"])

    def __getitem__(self, index: int) -> Module:
        found: Module = list(self.children())[index]
        return found

    def __iter__(self) -> Iterator[Module]:
        return self.children()


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
        found: Module = self._members["modules"][name]
        return found

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
