"""State: what of an optimizer's options and state can be written down, and how it comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, final

from afnio.autodiff._variable import Variable

_PLAIN: Final = (str, int, float, bool, type(None), Variable)


@final
class _Left:
    """Marks what is left out."""


_LEFT: Final = _Left()


def savable(value: Any) -> Any:
    """Return `value` without what can't be written down: model clients, which hold keys, functions, objects.

    Entries of dicts are left out; elements of lists and tuples become None, so that the others keep their places.

    >>> savable({"model": "m", "tools": [print, {"fn": len, "n": 1}]})
    {'model': 'm', 'tools': [None, {'n': 1}]}
    """
    kept = _savable(value)
    return None if kept is _LEFT else kept


def _savable(value: Any) -> Any:
    if isinstance(value, Mapping):
        entries = {name: _savable(entry) for name, entry in value.items()}
        return {name: entry for name, entry in entries.items() if entry is not _LEFT}
    if isinstance(value, list):
        return [savable(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(savable(entry) for entry in value)
    return value if isinstance(value, _PLAIN) else _LEFT


def restored(own: Any, saved: Any) -> Any:
    """Return `saved` with what `savable` left out taken from `own`.

    >>> restored({"tools": [print, {"fn": len, "n": 1}]}, {"tools": [None, {"n": 2}]}) == {
    ...     "tools": [print, {"fn": len, "n": 2}]}
    True
    """
    if isinstance(own, Mapping) and isinstance(saved, Mapping):
        left = {name: entry for name, entry in own.items() if name not in saved and _savable(entry) is _LEFT}
        return {**left, **{name: restored(own.get(name), entry) for name, entry in saved.items()}}
    if isinstance(own, list | tuple) and isinstance(saved, list | tuple) and len(own) == len(saved):
        return type(saved)(restored(mine, entry) for mine, entry in zip(own, saved, strict=True))
    if saved is None and own is not None and _savable(own) is _LEFT:
        return own
    return copied(saved)


def copied(value: Any) -> Any:
    """Return state whose lists, tuples and dicts later steps don't change; Variables in it are never assigned."""
    if isinstance(value, dict):
        return {name: copied(entry) for name, entry in value.items()}
    if isinstance(value, list):  # also what is more than a list, such as `Reduced`
        return [copied(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(copied(entry) for entry in value)
    return value
