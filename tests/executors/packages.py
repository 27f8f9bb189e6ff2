"""Interpreters that have the packages of an executor: loky, Dask and Ray are no part of the test environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio

import afnio

PACKAGES = {"spawn": [], "loky": ["loky"], "dask": ["distributed"], "ray": ["ray>=2.50"]}
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "executors"
TESTS = Path(__file__).parent.parent


def interpreter(name: str) -> str:
    """Return an interpreter with an executor's packages beside those of this environment."""
    if not PACKAGES[name]:
        return sys.executable
    digest = hashlib.sha256(json.dumps([sys.version, PACKAGES[name]]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "cloudpickle", *PACKAGES[name]]
        subprocess.run(command, check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text(str(Path(anyio.__file__).parents[1]))
        (folder / "done").touch()
    return str(python)


def environment(**more: str) -> dict[str, str]:
    """Return the variables for a script that imports Afnio and the modules of these tests."""
    path = os.pathsep.join([str(Path(afnio.__file__).parents[1]), str(TESTS), str(Path(__file__).parent)])
    return {**os.environ, "PYTHONPATH": path, **more}
