"""Environments with packages that the development one lacks. Nightly tests make them once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "environments"


def interpreter(name: str, *packages: str) -> Path:
    """Return an interpreter with packages beside those of this environment.

    AFNIO_TEST_PYTHON names one that has them all already.
    """
    given = os.environ.get("AFNIO_TEST_PYTHON")
    if given:
        return Path(given)
    digest = hashlib.sha256(json.dumps([sys.version, packages]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text(str(Path(anyio.__file__).parents[1]))
        (folder / "done").touch()
    return python
