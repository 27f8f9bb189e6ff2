"""A stream of scripted rows, with or without a journal: its rate, its CPU time and its memory."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient, ChatRequest, ChatResponse
from afnio.runtime import Account
from benchmarks.child import serve

EARLY = 10_000
"""Rows after which the memory is looked at first."""


class Yes(ChatClient):
    """A model that agrees at once."""

    async def send(self, request: ChatRequest) -> ChatResponse:
        return ChatResponse(content="yes")


class Asks(cog.Module):
    """One call for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.message = afnio.Variable("{message}", role="input")
        self.chat = cog.ChatCompletion()

    def forward(self, client: ChatClient, message: str) -> Any:
        messages = [{"role": "user", "content": [self.message]}]
        return self.chat(client, messages, inputs={"message": message}, model="m")


def megabytes() -> float:
    """Return the most memory that this process has had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(*, rows: int, journal: bool, ordered: bool = True) -> dict[str, Any]:
    """Return the rate over all rows, CPU time, and the memory after `EARLY` rows and at the end."""
    early = 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.journal"
        with afnio.journal(path) if journal else nullcontext():
            texts = (f"row {number}" for number in range(rows))
            wall, cpu = time.perf_counter(), time.process_time()
            for count, result in enumerate(
                Asks().stream(texts, Yes(Account("yes://", "")), ordered=ordered), 1
            ):
                assert result.value == "yes"
                if count == EARLY:
                    early = megabytes()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = path.stat().st_size if journal else 0
    return {
        "rate": rows / wall,
        "cpu": cpu / rows * 1e6,
        "wall": wall,
        "early": early,
        "late": megabytes(),
        "bytes": size / rows,
    }


if __name__ == "__main__":
    serve(measure)
