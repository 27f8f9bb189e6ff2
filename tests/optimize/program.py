"""A program that optimizes, for tests that kill or interrupt it. Writes a line for each request that it sends."""

from __future__ import annotations

import os
import sys
from typing import Any

from optimize.task import agent_of, answer, equal, rows

import afnio
from afnio.testing import ScriptedClient


def noted(request: Any) -> Any:
    os.write(1, b"sent\n")
    return answer(request)


if __name__ == "__main__":
    model = ScriptedClient(noted, latency=0.02)
    result = afnio.optimize(
        agent_of(model),
        rows(100),
        equal,
        prompts={"system": "level 2"},
        critic=(model, "critic"),
        budget=afnio.budget(max_calls=400),
    )
    sys.stdout.write(f"{result}\nverdict: {result.verdict}\n")
