"""Endpoints: whom the benchmark asks: the bundled simulated LM, a small real one, or yours."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from afnio.demo._endpoint import Endpoint
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider

SIMULATED = "simulated-limited"
KEY = "simulated"


@contextmanager
def simulated(seed: int = 0, latency: float = 0.0) -> Iterator[Endpoint]:
    """Run the bundled provider; its model reads as real ones do (docs/simulated-lm.md)."""
    with Provider.process(api_key=KEY, seed=seed, latency=latency) as process:
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
    """Run the demo's small real model, from another GGUF file if one is given."""
    from afnio.demo._endpoint import local_endpoint

    with local_endpoint(weights) as endpoint:
        yield endpoint


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
