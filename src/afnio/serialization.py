"""Serialization: state dicts in a file that is safe to open: JSON in a zip, never pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

from afnio.archive import packed, replace, unpacked
from afnio.autodiff._variable import Variable
from afnio.cognitive._template import Parameter

FORMAT: Final = 1
_DOCUMENT: Final = "state"
_VARIABLE: Final = "__variable__"
_TUPLE: Final = "__tuple__"
_PAIRS: Final = "__pairs__"


def save(obj: Any, f: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a state dict, or any structure of Variables, dicts, lists and plain values; waits for values.

    A path is written whole or not at all.

    Raises:
        TypeError: for a value that JSON can't hold.

    >>> import io
    >>> file = io.BytesIO()
    >>> save({"prompt": Variable("Be brief.", role="prompt")}, file)
    >>> load(file)["prompt"].data
    'Be brief.'
    """
    content = packed({_DOCUMENT: {"format": FORMAT, "state": encoded(obj)}})
    if isinstance(f, str | os.PathLike):
        replace(Path(f), content)
    else:
        f.write(content)


def load(f: str | os.PathLike[str] | IO[bytes]) -> Any:
    """Return what `save` wrote, or a trainer's checkpoint as a dict. Opening a file runs no code of it.

    A checkpoint's dict has "agent_state_dict", "optimizer_state_dict" (a list of them where the agent has
    several optimizers), "epoch", "metrics", and whatever else is in `Checkpoint`.

    Raises:
        ValueError: for a file that is damaged, newer, or something else, such as a pickle.
    """
    name, content = _content(f)
    try:
        documents = unpacked(content)
    except ValueError as error:
        raise _foreign(name, error) from error
    if _DOCUMENT in documents:
        return _state(name, documents[_DOCUMENT])
    if "versions" not in documents:
        raise _foreign(name, f"it holds {', '.join(documents)}")
    from afnio.checkpoint_file import as_state, fields_of

    return as_state(fields_of(name, documents))


def encoded(value: Any) -> Any:
    """Return `value` in JSON's types, from which `decoded` makes it again; waits for Variables."""
    if isinstance(value, Variable):
        trail = {"provenance": encoded(list(value.provenance))} if value.provenance else {}
        return {
            _VARIABLE: "Parameter" if isinstance(value, Parameter) else "Variable",
            "data": value.data,
            "role": value.role,
            "requires_grad": value.requires_grad,
            **trail,
        }
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: encoded(item) for key, item in value.items()}
        return {_PAIRS: [[encoded(key), encoded(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [encoded(item) for item in value]}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    fix = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    raise TypeError(f"a file holds Variables and plain values (got {value!r}, a {type(value).__name__}){fix}")


def decoded(value: Any) -> Any:
    """Return what `encoded` was given."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _VARIABLE in value:
        if not isinstance(value["role"], str) or not isinstance(value["requires_grad"], bool):
            raise TypeError(f"a Variable's role must be a text (got {value['role']!r})")
        made = Parameter if value[_VARIABLE] == "Parameter" else Variable
        variable = made(value["data"], value["role"], value["requires_grad"])
        variable._provenance = tuple(decoded(value.get("provenance", [])))
        return variable
    if _TUPLE in value:
        return tuple(decoded(item) for item in value[_TUPLE])
    if _PAIRS in value:
        return {decoded(key): decoded(item) for key, item in value[_PAIRS]}
    return {key: decoded(item) for key, item in value.items()}


def _content(f: str | os.PathLike[str] | IO[bytes]) -> tuple[str, bytes]:
    if isinstance(f, str | os.PathLike):
        return str(f), Path(f).read_bytes()
    if f.seekable():
        f.seek(0)  # wherever writing it has left off
    return str(getattr(f, "name", "the file")), f.read()


def _state(name: str, document: Any) -> Any:
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise ValueError(
            f"{name} has format {found!r} and this Afnio reads {FORMAT}; update Afnio to open it"
        )
    try:
        return decoded(document["state"])
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(name, error) from error


def _foreign(name: str, error: object) -> ValueError:
    return ValueError(
        f"{name} is no state that afnio.save wrote, or it is damaged ({error}); pickles are not opened"
    )
