"""Arguments: the Variables among an op's arguments, and how to put lane values in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from afnio.autodiff.variable import Variable
from afnio.runtime import Slot


@final
class Arguments:
    """An op's arguments with the Variables taken out, each once, in order of appearance.

    Attributes:
        variables: the distinct Variables.
        cells: for each of them the slots that this launch captured, and whether they are a batch.
        size: number of lanes, None if all are scalars.

    >>> arguments = Arguments((Variable(["a", "b"]), "c"), {})
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
        """Return `(args, kwargs)` with a value in the place of each Variable."""
        put = self._put
        return (
            tuple(put(value, values) for value in self.args),
            {name: put(value, values) for name, value in self.kwargs.items()},
        )

    def places(self, visit: Callable[[int, int], None]) -> None:
        """Call `visit(position, index)` for each Variable's appearance, positions counting args, then kwargs."""
        for position, value in enumerate((*self.args, *self.kwargs.values())):
            self._visit(value, position, visit)

    def _visit(self, value: Any, position: int, visit: Callable[[int, int], None]) -> None:
        if isinstance(value, Variable):
            visit(position, self._index[id(value)])
        elif isinstance(value, Mapping):
            for item in value.values():
                self._visit(item, position, visit)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._visit(item, position, visit)

    def _collect(self, value: Any) -> None:
        if isinstance(value, Variable):
            if id(value) not in self._index:
                self._index[id(value)] = len(self.variables)
                self.variables.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                self._collect(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                self._collect(item)

    def _put(self, value: Any, values: Sequence[Any]) -> Any:
        if isinstance(value, Variable):
            return values[self._index[id(value)]]
        if isinstance(value, Mapping):
            return {name: self._put(item, values) for name, item in value.items()}
        if isinstance(value, list):
            return [self._put(item, values) for item in value]
        if type(value) is tuple:
            return tuple(self._put(item, values) for item in value)
        return value

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
