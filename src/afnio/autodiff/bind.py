"""Bind: a context-local overlay of values over Variables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from afnio.autodiff.variable import Variable
    from afnio.runtime._kernel import Slot

Cell = tuple["list[Slot]", bool]

bindings: Final[ContextVar[Mapping[Variable, Cell] | None]] = ContextVar("afnio_bindings", default=None)


@contextmanager
def bind(values: Mapping[Variable, Any]) -> Iterator[None]:
    """Let reads and launches in the block see other values of Variables; everything else sees theirs.

    Args:
        values: for each Variable its data, or a Variable whose value it takes.

    >>> import afnio
    >>> prompt = afnio.Variable("old")
    >>> with afnio.bind({prompt: "new"}):
    ...     prompt.data
    'new'
    >>> prompt.data
    'old'
    """
    from afnio.autodiff.variable import Variable, cell_of

    overlay = dict(bindings.get() or {})
    for variable, value in values.items():
        if not isinstance(variable, Variable):
            raise TypeError(f"bind takes a mapping whose keys are Variables (got {variable!r})")
        overlay[variable] = value.cell() if isinstance(value, Variable) else cell_of(value)
    token = bindings.set(overlay)
    try:
        yield
    finally:
        bindings.reset(token)
