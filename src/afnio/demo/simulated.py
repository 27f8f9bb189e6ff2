"""The simulated endpoint: the bundled provider, in a process of its own on 127.0.0.1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from afnio.demo.endpoint import Endpoint
from afnio.demo.error import DemoError
from afnio.demo.loopback import stay_on_this_machine
from afnio.demo.watch import Watch, held_interrupts

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
