"""Arguments: the Variables among an op's arguments, and how to put lane values in their places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, final

from afnio.autodiff.variable import Variable
from afnio.runtime import Slot


class Place(NamedTuple):
    """Where a Variable was among the arguments."""

    number: int


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

    __slots__ = ("_index", "args", "cells", "kwargs", "size", "variables")

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.variables: list[Variable] = []
        self._index: dict[int, int] = {}
        for value in (*args, *kwargs.values()):
            self._collect(value)
        self.cells = [variable.cell() for variable in self.variables]
        self.size = self._common_size()

    def lane(self, number: int) -> list[Slot]:
        """Return the slots that lane `number` works on, one for each Variable."""
        return [slots[number] if batch else slots[0] for slots, batch in self.cells]

    def fill(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with a value in the place of each Variable; after `forget`."""

        def put(place: Place) -> Any:
            return values[place.number]

        return (
            tuple(_mapped(value, Place, put) for value in self.args),
            {name: _mapped(value, Place, put) for name, value in self.kwargs.items()},
        )

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
        return _mapped(value, Variable, lambda variable: Place(self._index[id(variable)]))

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


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return `value` with `change` of each `kind` in it; a list, tuple or mapping without any stays itself."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        items = {name: _mapped(item, kind, change) for name, item in value.items()}
        return items if any(items[name] is not item for name, item in value.items()) else value
    if isinstance(value, list) or type(value) is tuple:
        mapped = [_mapped(item, kind, change) for item in value]
        if all(new is old for new, old in zip(mapped, value, strict=True)):
            return value
        return mapped if isinstance(value, list) else tuple(mapped)
    return value


def _places_in(value: Any) -> Iterator[int]:
    if isinstance(value, Place):
        yield value.number
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _places_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _places_in(item)
