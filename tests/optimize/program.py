"""A program that optimizes, for tests that kill or interrupt it. Writes a line for each request that it sends.

With the argument "pause" it pauses its run with its 30th request.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from optimize.task import agent_of, answer, equal, rows

import afnio
import afnio.tellurio as te
from afnio.runtime import current_runtime
from afnio.testing import ScriptedClient

count = 0


def noted(request: Any) -> Any:
    global count
    count += 1
    os.write(1, b"sent\n")
    if count == 30 and "pause" in sys.argv:
        te.get_active_run().pause()
        current_runtime().post(os.write, 1, b"paused\n")  # when the run is
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
