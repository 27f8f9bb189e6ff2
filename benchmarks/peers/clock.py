"""Clock: what a peer's script reports; it imports nothing, as a peer's environment has neither us nor ours."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

FIRST = "Say whether the message is good."
"""The prompt that the step is to change."""


def base_url() -> str:
    """Return the provider's URL."""
    return sys.argv[1]


def report(step: Callable[[Sequence[int]], str]) -> None:
    """Run `step` on the samples of those numbers and print what it took; it returns the new prompt.

    A step on one sample goes first, for imports and connections.
    """
    step([-1])
    before = requests(base_url())
    wall, cpu = time.perf_counter(), time.process_time()
    prompt = step(range(int(sys.argv[2])))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    calls = requests(base_url()) - before
    sys.stdout.write("\n" + json.dumps({"wall": wall, "cpu": cpu, "calls": calls, "prompt": prompt}) + "\n")


def requests(url: str) -> int:
    """Return how many requests the provider has had."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("GET", "/stats")
    stats: dict[str, Any] = json.load(connection.getresponse())
    connection.close()
    return int(stats["requests"])
