"""Containers: modules in a row, and modules in a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

from afnio.cognitive.module import Module


@final
class Sequential(Module):
    """Modules one after the other, each given what the one before returned.

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
    """A list of modules that are registered."""

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
