"""The live endpoint: the user's own, with the models that they name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from afnio.demo.endpoint import Endpoint
from afnio.demo.error import RefusedError
from afnio.demo.options import Options

TUTORIAL_MODEL: Final = "gpt-4.1-nano"
TUTORIAL_BACKWARD_MODEL: Final = "gpt-5"
QUORUM: Final = 0.9
_REASONS: Final = re.compile(r"(?:.*/)?(?:gpt-5|o\d)")


@contextmanager
def live_endpoint(options: Options) -> Iterator[Endpoint]:
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
