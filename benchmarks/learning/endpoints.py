"""Endpoints: whom the benchmark asks: the bundled simulated LM, a small real one, or yours."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from afnio import Limits
from afnio.models._client import ChatClient
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider

SIMULATED = "simulated-limited"
KEY = "simulated"
PEERS = "benchmarks.learning.peer_prompts:PeersLM"
"""The simulated LM that reads the prompts of TextGrad and GEPA too."""
MAX_IN_FLIGHT = 8


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A client, and the arguments (with the model) for each of its three roles.

    Attributes:
        base_url: without credentials.
        forward, backward, step: arguments of the student's, the critic's and the optimizer's calls.
        notes: caveats to print above the tables.
        quorum: the fraction of a batch that must succeed; failed samples are left out and reported.
    """

    kind: Literal["simulated", "live", "local"]
    client: ChatClient
    base_url: str
    forward: Mapping[str, Any]
    backward: Mapping[str, Any]
    step: Mapping[str, Any]
    notes: tuple[str, ...]
    quorum: float = 1.0


@contextmanager
def simulated(seed: int = 0, latency: float = 0.0) -> Iterator[Endpoint]:
    """Run the bundled provider; its model reads as real ones do (docs/simulated-lm.md)."""
    with Provider.process(api_key=KEY, lm=PEERS, seed=seed, latency=latency) as process:
        yield Endpoint(
            kind="simulated",
            client=AsyncOpenAI(base_url=process.base_url, api_key=KEY),
            base_url=process.base_url,
            forward={"model": SIMULATED, "temperature": 0.0},
            backward={"model": SIMULATED, "temperature": 1.0},
            step={"model": SIMULATED, "temperature": 1.0},
            notes=("SIMULATED: rules play the LM (docs/simulated-lm.md); no model was asked.",),
        )


@contextmanager
def local(weights: Path | None = None) -> Iterator[Endpoint]:
    """Run the small real model, from another GGUF file if one is given."""
    from benchmarks.learning.small_model import feedback_format, small_model, value_format

    with small_model(weights) as (base_url, model):
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
                f"The LM is real and small: {model}, behind llama.cpp on this machine.",
                "It is student, critic and optimizer, and far too weak for the last two.",
            ),
            # A model this small writes many replies that can't be read. The run must survive half of them.
            quorum=0.5,
        )


def _sampling(model: str, tokens: int, response_format: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model,
        "temperature": 0.3,
        "seed": 1,
        "max_completion_tokens": tokens,
        "response_format": response_format,
    }


@contextmanager
def remote(base_url: str, model: str, critic: str | None) -> Iterator[Endpoint]:
    """Ask any OpenAI-compatible endpoint, with the key in OPENAI_API_KEY."""
    judge: dict[str, Any] = {"model": critic or model}
    yield Endpoint(
        kind="live",
        client=AsyncOpenAI(base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none")),
        base_url=base_url,
        forward={"model": model, "temperature": 0.0},
        backward=judge,
        step=judge,
        notes=(f"{model} is the student, {critic or model} critic and optimizer.",),
        quorum=0.9,
    )


def drawn_for(endpoint: Endpoint, run: str, critic: str = "") -> Endpoint:
    """Return the endpoint with random draws of this run's own, so that it can be repeated alone.

    The simulated LM draws by the request; a `seed` in the requests of critic and optimizer makes them other requests.

    Args:
        critic: appended to the name of the critic's and the optimizer's model.
    """
    if endpoint.kind != "simulated":
        return endpoint
    own = {
        "model": f"{endpoint.backward['model']}-{critic}" if critic else endpoint.backward["model"],
        "seed": zlib.crc32(run.encode()) >> 1,
    }
    return replace(endpoint, backward={**endpoint.backward, **own}, step={**endpoint.step, **own})


def api_key_of(endpoint: Endpoint) -> str:
    """Return the key that a peer's script is to send."""
    if endpoint.kind == "live":
        return os.environ.get("OPENAI_API_KEY", "none")
    return KEY if endpoint.kind == "simulated" else "local"
