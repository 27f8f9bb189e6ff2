"""Checkpoint files, made and taken apart by hand: zips with a JSON document for each member."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any


def packed(documents: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, document in documents.items():
            archive.writestr(f"{name}.json", json.dumps(document).encode("utf-8", "backslashreplace"))
    return file.getvalue()


def unpacked(content: bytes) -> dict[str, Any]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name.removesuffix(".json"): json.loads(archive.read(name)) for name in archive.namelist()}
