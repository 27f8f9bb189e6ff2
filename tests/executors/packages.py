"""Interpreters that have the packages of an executor: loky, Dask and Ray are no part of the test environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kit import environments

import afnio

PACKAGES = {"spawn": [], "loky": ["loky"], "dask": ["distributed"], "ray": ["ray>=2.50"]}


def interpreter(name: str) -> str:
    """Return an interpreter with an executor's packages beside those of this environment."""
    if not PACKAGES[name]:
        return sys.executable
    return str(environments.interpreter(name, "cloudpickle", *PACKAGES[name]))


def environment(**more: str) -> dict[str, str]:
    """Return the variables for a script that imports Afnio and the modules of these tests."""
    path = os.pathsep.join([str(Path(afnio.__file__).parents[1]), os.environ["PYTHONPATH"]])
    return {**os.environ, "PYTHONPATH": path, **more}
