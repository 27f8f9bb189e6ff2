"""Provenance: which code, which versions and which machine a run is of; never environment variables."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("afnio", "aiohttp", "anyio", "openai", "pydantic", "genai-prices")
GIT_TIMEOUT: Final = 5.0


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is at, with "+" if files differ from it; None where there is none.

    >>> git_commit(Path("/")) is None
    True
    """
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no").strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+" if changed else commit


def versions() -> str:
    """Versions of Python and of the packages that calls go through, as JSON."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return json.dumps(found)


def platform_facts() -> str:
    """The system, the machine and its processors, as JSON."""
    facts = {
        "system": platform.system(),
        "release": platform.release(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "implementation": sys.implementation.name,
    }
    return json.dumps(facts)


def _git(folder: Path, *arguments: str) -> str:
    # Looking must not write: without this `status` refreshes the index.
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    done = subprocess.run(  # noqa: S603 (fixed arguments)
        ["git", *arguments],  # noqa: S607 (the user's own git)
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT,
        check=True,
    )
    return done.stdout
