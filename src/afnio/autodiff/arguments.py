"""Arguments: the Variables among an op's arguments, and how to put lane values in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, final

from afnio.autodiff.variable import Variable
from afnio.runtime._kernel import Slot


class Place(NamedTuple):
    """Where a Variable was among the arguments."""

    number: int


Filler = Callable[[Sequence[Any]], Any]
"""Gives a lane's value of one argument from the values of the Variables."""


@final
class Arguments:
    """An op's arguments with the Variables taken out, each once, in order of appearance.

    Attributes:
        variables: the distinct Variables.
        cells: for each of them the slots that this launch captured, and whether they are a batch.
        size: number of lanes, None if all are scalars.

    >>> arguments = Arguments((Variable(["a", "b"]), "c"), {})
    >>> arguments.forget()
    >>> arguments.size, arguments.fill(["a"])
    (2, (('a', 'c'), {}))
    """

    __slots__ = ("_fillers", "_index", "args", "cells", "kwargs", "size", "variables")

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.variables: list[Variable] = []
        self._index: dict[int, int] = {}
        self._fillers: tuple[list[Filler], dict[str, Filler]] | None = None
        for value in (*args, *kwargs.values()):
            self._collect(value)
        self.cells = [variable.cell() for variable in self.variables]
        self.size = self._common_size()

    def lane(self, number: int) -> list[Slot]:
        """Return the slots that lane `number` works on, one for each Variable."""
        return [slots[number] if batch else slots[0] for slots, batch in self.cells]

    def fill(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with a value in the place of each Variable; after `forget`."""

        if self._fillers is None:
            # Once for a launch: walking the arguments again for each lane was a tenth of a call's CPU.
            self._fillers = (
                [_filler(value) for value in self.args],
                {name: _filler(value) for name, value in self.kwargs.items()},
            )
        args, kwargs = self._fillers
        return tuple([put(values) for put in args]), {name: put(values) for name, put in kwargs.items()}

    def forget(self) -> None:
        """Let go of the Variables, keeping their places.

        A graph must not keep its Variables alive: a value that nobody can reach any more is not wanted,
        and its calls are cancelled.
        """
        self.args = tuple(self._marked(value) for value in self.args)
        self.kwargs = {name: self._marked(value) for name, value in self.kwargs.items()}
        self.variables = []
        self._index = {}

    def places(self, visit: Callable[[int, int], None]) -> None:
        """Call `visit(position, index)` where each Variable was; positions count args, then kwargs."""
        for position, value in enumerate((*self.args, *self.kwargs.values())):
            for index in _places_in(value):
                visit(position, index)

    def _marked(self, value: Any) -> Any:
        return _marked(value, self._index)

    def _collect(self, value: Any) -> None:
        if isinstance(value, Variable):
            if id(value) not in self._index:
                self._index[id(value)] = len(self.variables)
                self.variables.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                self._collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._collect(item)

    def _common_size(self) -> int | None:
        sizes = [
            (len(slots), v) for (slots, batch), v in zip(self.cells, self.variables, strict=True) if batch
        ]
        if not sizes:
            return None
        if any(size != sizes[0][0] for size, _ in sizes):
            shown = ", ".join(f"{variable.role!r} has {size}" for size, variable in sizes)
            raise ValueError(
                f"batches given to one op need equal lengths ({shown}); a scalar is shared by all samples"
            )
        return sizes[0][0]


def _marked(value: Any, index: Mapping[int, int]) -> Any:
    """Return `value` with a `Place` for each Variable; a list, tuple or mapping without any stays itself."""
    if isinstance(value, Variable):
        return Place(index[id(value)])
    if isinstance(value, Mapping):
        items = {name: _marked(item, index) for name, item in value.items()}
        return items if any(items[name] is not item for name, item in value.items()) else value
    if isinstance(value, list) or type(value) is tuple:
        items_of = [_marked(item, index) for item in value]
        if all(new is old for new, old in zip(items_of, value, strict=True)):
            return value
        return items_of if isinstance(value, list) else tuple(items_of)
    return value


def _filler(value: Any) -> Filler:
    """Return what puts values into the places of `value`; without any it gives `value` itself."""
    if isinstance(value, Place):
        return itemgetter(value.number)
    if next(_places_in(value), None) is None:
        return lambda values: value
    if isinstance(value, Mapping):
        named = {name: _filler(item) for name, item in value.items()}
        return lambda values: {name: put(values) for name, put in named.items()}
    parts = [_filler(item) for item in value]
    if isinstance(value, list):
        return lambda values: [put(values) for put in parts]
    return lambda values: tuple([put(values) for put in parts])


def _places_in(value: Any) -> Iterator[int]:
    if isinstance(value, Place):
        yield value.number
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _places_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _places_in(item)
