"""Open blocks: the budgets, journals and bridges that are open in the process, and how they nest.

A context variable says which block a task is in. A thread that was started without a context knows nothing of them.
`innermost` returns the context that its calls belong to: that of the innermost open block, if they all nest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Final, final

on_open: Final[list[Callable[[], None]]] = []
"""Called whenever a block is opened. What watches for calls outside of the engine begins there."""


@final
class OpenBlock:
    """A block that is open.

    Attributes:
        path: the blocks around it and itself, outermost first.
        context: the context in the block.
    """

    def __init__(self) -> None:
        self.path: tuple[OpenBlock, ...] = (*_path.get(), self)
        _path.set(self.path)
        self.context: Context = copy_context()
        _open[self] = None
        for hear in on_open:
            hear()

    def close(self) -> None:
        _open.pop(self, None)
        if _path.get()[-1:] == (self,):  # or it is left in another context
            _path.set(self.path[:-1])


class UnnestedError(Exception):
    """Blocks are open of which none is in the other."""


def is_inside() -> bool:
    """Return True in the context of an open block."""
    return any(block in _open for block in _path.get())


def innermost() -> Context | None:
    """Return a copy of the innermost open block's context, or None if none is open.

    Raises:
        UnnestedError: if open blocks don't nest.
    """
    blocks = list(_open)
    if not blocks:
        return None
    deepest = max(blocks, key=lambda block: len(block.path))
    if any(block not in deepest.path for block in blocks):
        raise UnnestedError
    return deepest.context.copy()


_path: Final[ContextVar[tuple[OpenBlock, ...]]] = ContextVar("afnio_blocks", default=())
# Needs no lock: each operation on it is atomic.
_open: Final[dict[OpenBlock, None]] = {}
