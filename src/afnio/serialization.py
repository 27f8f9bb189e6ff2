"""Serialization: state dicts in a file that is safe to open: JSON in a zip, never pickle."""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any, Final

from afnio.autodiff import Variable
from afnio.cognitive import Parameter

FORMAT: Final = 1
_MEMBER: Final = "state.json"
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
    document = json.dumps({"format": FORMAT, "state": _encoded(obj)}, ensure_ascii=False, indent=1)
    if not isinstance(f, str | os.PathLike):
        _write(document, f)
        return
    path = Path(f)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(f: str | os.PathLike[str] | IO[bytes]) -> Any:
    """Return what `save` wrote. Opening a file runs no code of it.

    Raises:
        ValueError: for a file that is damaged, newer, or something else, such as a pickle.
    """
    file: IO[bytes]
    if isinstance(f, str | os.PathLike):
        name, file = str(f), io.BytesIO(Path(f).read_bytes())
    else:
        name, file = str(getattr(f, "name", "the file")), f
    try:
        with zipfile.ZipFile(file) as archive:
            document = json.loads(archive.read(_MEMBER))
    except Exception as error:  # damaged bytes make zipfile and its decompressors raise nearly anything
        raise ValueError(
            f"{name} is no state that afnio.save wrote, or it is damaged ({error}); pickles are not opened"
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise ValueError(
            f"{name} has format {found!r} and this Afnio reads {FORMAT}; update Afnio to open it"
        )
    return _decoded(document.get("state"))


def _write(document: str, file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_MEMBER, document)


def _encoded(value: Any) -> Any:
    if isinstance(value, Variable):
        return {
            _VARIABLE: "Parameter" if isinstance(value, Parameter) else "Variable",
            "data": value.data,
            "role": value.role,
            "requires_grad": value.requires_grad,
        }
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {key: _encoded(item) for key, item in value.items()}
        return {_PAIRS: [[_encoded(key), _encoded(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_encoded(item) for item in value]}
    if isinstance(value, list):
        return [_encoded(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    fix = "; save its state_dict()" if hasattr(value, "state_dict") else ""
    raise TypeError(f"a file holds Variables and plain values (got {value!r}, a {type(value).__name__}){fix}")


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _VARIABLE in value:
        made = Parameter if value[_VARIABLE] == "Parameter" else Variable
        return made(value["data"], value["role"], value["requires_grad"])
    if _TUPLE in value:
        return tuple(_decoded(item) for item in value[_TUPLE])
    if _PAIRS in value:
        return {_decoded(key): _decoded(item) for key, item in value[_PAIRS]}
    return {key: _decoded(item) for key, item in value.items()}
