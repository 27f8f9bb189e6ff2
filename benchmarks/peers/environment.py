"""Environment: a peer's own, made at its first use and kept; a peer that can't be had is named with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from benchmarks.child import DEADLINE, ChildError, read

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "benchmarks"
INSTALL_DEADLINE = 900.0

REPLY = """\
{"suggestion": {"prompt0": "Say good or bad."}}
<IMPROVED_VARIABLE>Say good or bad.</IMPROVED_VARIABLE>
<response><reasoning>None says it.</reasoning><method>Rephrase</method>\
<proposed_variable>Say good or bad.</proposed_variable></response>"""
"""A reply that is wrong as an answer, and that each peer can read a new prompt from."""
PROPOSED = "Say good or bad."


class PeerError(Exception):
    """A peer could not be installed, or its step did not run through."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another library: its name, what pip installs, the script beside this file with its step."""

    name: str
    packages: tuple[str, ...]
    script: str

    def step(self, base_url: str, samples: int) -> dict[str, Any]:
        """Run one training step in the peer's environment and return its wall, CPU and calls.

        Raises:
            PeerError: with the reason, if there is nothing to return.
        """
        measured = self.run([base_url, str(samples)])
        if measured["prompt"] != PROPOSED:
            raise PeerError(f"its step left the prompt at {measured['prompt']!r}")
        return measured

    def run(
        self, arguments: Sequence[str], folder: Path = Path(__file__).parent, deadline: float = DEADLINE
    ) -> dict[str, Any]:
        """Run the script in the peer's environment and return what it printed.

        Args:
            folder: where the script is.
            deadline: seconds that it may take.

        Raises:
            PeerError: with the reason, if there is nothing to return.
        """
        with self._command(arguments, folder) as (command, home, env):
            try:
                return read(command, cwd=home, env=env, deadline=deadline)
            except ChildError as error:
                raise PeerError(f"its step failed: {error}") from error

    def stream(self, arguments: Sequence[str], folder: Path, deadline: float) -> Generator[dict[str, Any]]:
        """Run the script in the peer's environment and yield the `run` of each line of JSON as it is printed.

        Raises:
            PeerError: with the reason, once there is nothing more to yield.
        """
        with self._command(arguments, folder) as (command, home, env), TemporaryFile("w+") as errors:
            try:
                child = subprocess.Popen(
                    command, cwd=home, env=env, stdout=subprocess.PIPE, stderr=errors, text=True
                )
            except OSError as error:
                raise PeerError(f"its step failed: {error}") from error
            with child:
                timer = threading.Timer(deadline, child.kill)
                timer.start()
                try:
                    assert child.stdout is not None
                    for line in child.stdout:
                        if line.startswith('{"run": '):
                            yield json.loads(line)["run"]
                    code = child.wait()
                finally:
                    timer.cancel()
                    child.kill()
            if code != 0:
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"it ended with {code}"]
                raise PeerError(f"its step failed: {said[-1]}")

    @contextmanager
    def _command(
        self, arguments: Sequence[str], folder: Path
    ) -> Iterator[tuple[list[str], Path, dict[str, str]]]:
        python = self._python()
        # A fresh home: a reply that was cached on disk by an earlier run would be no call.
        with TemporaryDirectory() as home:
            env = {
                **os.environ,
                "HOME": home,
                "XDG_CACHE_HOME": home,
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # or an import asks the network for prices
            }
            yield [str(python), str(folder / self.script), *arguments], Path(home), env

    def _python(self) -> Path:
        folder = CACHE / self.name.lower()
        python, mark = folder / "bin" / "python", folder / ".installed"
        if not mark.exists():
            _run([sys.executable, "-m", "venv", "--clear", str(folder)])
            _run(
                [
                    str(python),
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    *self.packages,
                ]
            )
            mark.write_text(time.strftime("%Y-%m-%d"))
        return python

    def version(self) -> str:
        """Return the version that is installed, or nothing."""
        command = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
        python = CACHE / self.name.lower() / "bin" / "python"
        if not python.exists():
            return ""
        done = subprocess.run(
            [str(python), "-c", command, self.packages[0]], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()


PEERS = (
    Peer("TextGrad", ("textgrad",), "textgrad_step.py"),
    Peer("AdalFlow", ("adalflow", "openai"), "adalflow_step.py"),
    Peer("Trace", ("trace-opt",), "trace_step.py"),
)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_DEADLINE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"it could not be installed: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise PeerError(f"it could not be installed: {said[-1]}")
