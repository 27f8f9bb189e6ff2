"""Child: measure in a fresh process, so that its CPU and its memory are its own.

    measured = run("benchmarks.children.calls_bare", base_url=…, calls=2000, in_flight=64)

The module's script calls `serve(measure)`: it prints what `measure(**options)` returns as its last line.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DEADLINE = 1800.0
"""Seconds after which a child is taken to hang."""


class ChildError(Exception):
    """A child ended without a result."""


def run(module: str, env: Mapping[str, str] | None = None, **options: Any) -> dict[str, Any]:
    """Run one of our modules in a fresh process, with `env` added to its environment; return what it measured."""
    return read(
        [sys.executable, "-m", module, json.dumps(options)], cwd=ROOT, env={**os.environ, **(env or {})}
    )


def read(
    command: list[str], *, cwd: Path, env: Mapping[str, str] | None = None, deadline: float = DEADLINE
) -> dict[str, Any]:
    """Run `command` and return the JSON object that is the last line of its output.

    Args:
        deadline: seconds after which it is taken to hang.

    Raises:
        ChildError: with the last line of its errors, if there is none.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, env=env, capture_output=True, text=True, timeout=deadline, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChildError(str(error)) from error
    if done.returncode != 0:
        raise ChildError((done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1])
    measured: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def serve(measure: Callable[..., Mapping[str, Any]]) -> None:
    """Print what `measure` returns for the options on the command line."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection for each call in flight
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
