"""Hooks of the site: it links the repository that it is built from, if that has an address."""

from __future__ import annotations

import re
import subprocess
from typing import Any


def on_config(config: Any) -> Any:
    """Set `repo_url` to the remote of the checkout."""
    found = subprocess.run(
        ["git", "remote", "get-url", "origin"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    # git@host:owner/name.git and https://token@host/owner/name.git are both https://host/owner/name.
    address = re.fullmatch(
        r"(?:https://|ssh://|git@)(?:[^@/]*@)?([\w.-]+)[:/](.+?)(?:\.git)?", found.stdout.strip()
    )
    if address:
        config.repo_url = f"https://{address[1]}/{address[2]}"
        config.repo_name = address[2]
    return config
