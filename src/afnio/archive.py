"""Archive: named JSON documents in a zip file; written whole or not at all, and opening it runs nothing.

Any unzip shows what is inside. Equal documents make equal bytes, as no time is noted.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

LARGEST: Final = 2**30
"""Bytes that the documents of a file may unpack to: a small file can claim to hold terabytes."""
TEMPORARY: Final = ".tmp"
"""How the name of a file that is being written ends; it begins with a dot and the name it will get."""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_PRIVATE: Final = 0o600
"""Prompts and feedback may hold what only their owner should read."""


def packed(documents: Mapping[str, Any]) -> bytes:
    """Return the bytes of an archive with one JSON member for each document.

    Raises:
        TypeError: for a value that JSON can't hold.

    >>> unpacked(packed({"loop": {"epoch": 3}}))
    {'loop': {'epoch': 3}}
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, document in documents.items():
            text = json.dumps(document, ensure_ascii=False, indent=1)
            member = zipfile.ZipInfo(f"{name}.json", _EPOCH)
            member.compress_type, member.external_attr = zipfile.ZIP_DEFLATED, _PRIVATE << 16
            # Half a surrogate pair, as broken replies hold, has no UTF-8; as an escape it is JSON.
            archive.writestr(member, text.encode("utf-8", "backslashreplace"))
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    """Return the documents by name.

    Raises:
        ValueError: for bytes that are no such archive, or a damaged one; pickles among them.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".json")]
            if sum(member.file_size for member in members) > LARGEST:
                raise ValueError(f"it unpacks to more than {LARGEST:,} bytes")
            documents = {
                member.filename.removesuffix(".json"): json.loads(archive.read(member)) for member in members
            }
    except Exception as error:  # damaged bytes make zipfile and its decompressors raise nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    if not documents:
        raise ValueError("it holds no JSON")
    return documents


def replace(path: Path, content: bytes) -> None:
    """Have the file at `path` hold `content`, or be as it was: after a crash at any point too.

    Only the user may read it, whatever the umask and whoever could read what was there before.

    Raises:
        OSError: if the disk is full, or the folder gone or read-only.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, _PRIVATE)) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Have the new name itself survive a power cut; systems that can't open a folder do so by themselves."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
