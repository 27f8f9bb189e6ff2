"""Resolve: await every value in a structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from afnio.autodiff.variable import Variable
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Work, wait_async

T = TypeVar("T")


@folding
async def resolve(tree: T) -> T:
    """Wait for every Variable and Work in lists, tuples and dicts; returns the same structure.

    Raises:
        Exception: the first error, in order, if any of the values failed.

    >>> import afnio
    >>> async def main():
    ...     return (await resolve({"sum": Variable(1) + Variable(2)}))["sum"].data
    >>> afnio.run(main())
    3
    """
    found: list[Any] = []
    _collect(tree, found)
    await wait_async([slot for value in found if isinstance(value, Variable) for slot in value.cell()[0]])
    for value in found:
        await value
    return tree


def _collect(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, Variable | Work):
        found.append(tree)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            _collect(item, found)
    elif isinstance(tree, list | tuple):
        for item in tree:
            _collect(item, found)
