"""A program that evaluates, for a test that kills it. Writes a line for each request that it sends."""

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
    model = ScriptedClient(noted, latency=0.02, limits=afnio.Limits(max_in_flight=4))
    found = afnio.evaluate(agent_of(model), rows(60), equal, prompts={"system": "level 2"}, draws=2)
    sys.stdout.write(f"{found}\n")
