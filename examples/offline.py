"""The endpoint of the examples: yours if the environment names one, else the bundled simulated LM.

    OPENAI_API_KEY=… python examples/own_data.py                     OpenAI
    OPENAI_BASE_URL=http://127.0.0.1:8000/v1 … OPENAI_API_KEY=any     any compatible server
    python examples/own_data.py                                       offline

AFNIO_MODEL names the model. The simulated LM accepts any name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import afnio
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider

MODEL = os.environ.get("AFNIO_MODEL", "gpt-4.1-nano")


@contextmanager
def endpoint(limits: afnio.Limits | None = None) -> Iterator[AsyncOpenAI]:
    """Give a client, and make it the backward model's too."""
    if os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL"):
        client = AsyncOpenAI(limits=limits)
        with afnio.set_backward_model_client(client, completion_args={"model": MODEL}):
            yield client
        return
    with Provider.process() as provider:
        client = AsyncOpenAI(base_url=provider.base_url, api_key="any", limits=limits)
        with afnio.set_backward_model_client(client, completion_args={"model": MODEL}):
            yield client
