"""Chat calls through ChatCompletion: a graph with a Parameter, admission, and the journal where asked."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.runtime.events import CallEnded, subscribe
from benchmarks.child import serve
from benchmarks.children.collecting import Collecting
from benchmarks.children.texts import MODEL, REPLY, SYSTEM, message
from benchmarks.endpoint import counts
from benchmarks.report import RESULTS, timed

WAVES = 3
"""The most waves of calls that fill a pool."""


def measure(
    base_url: str,
    calls: int,
    in_flight: int,
    journal: bool = False,
    size: int = 0,
    counts_port: int | None = None,
) -> dict[str, Any]:
    """Measure `calls` calls.

    Args:
        size: characters of each user's message, at least.
        counts_port: of an `Endpoint`. Then the first `in_flight` calls are measured too, which find one connection,
            and as many are made up to `WAVES` times until they open no more.
    """
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=in_flight))
    prompt = cog.Parameter(SYSTEM, role="system prompt")
    template = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]
    seconds: list[float] = []

    def ask(texts: list[str]) -> None:
        reply = cog.functional.chat_completion(client, messages, {"message": texts}, model=MODEL)
        assert reply.requires_grad
        assert reply.data == [REPLY] * len(texts)

    def note(event: object) -> None:
        if isinstance(event, CallEnded):
            seconds.append(event.seconds)

    texts = [message(number, size) for number in range(calls)]
    numbers = count(calls)

    def wave() -> None:
        ask([message(next(numbers), size) for _ in range(in_flight)])

    opening: dict[str, float] = {}
    RESULTS.mkdir(exist_ok=True)
    # Not in the system's own folder for such files, which may be memory.
    with TemporaryDirectory(dir=RESULTS) as folder, journalled(Path(folder), journal):
        ask(["warm"])  # imports, thread
        if counts_port is not None:
            opened = [counts(counts_port)["connections"]]
            opening = dict(zip(["cold wall", "cold cpu"], timed(wave), strict=True))
            opened.append(counts(counts_port)["connections"])
            opening["cold opened"] = opened[1] - opened[0] + 1
            while len(opened) < 2 + WAVES and opened[-1] > opened[-2]:
                wave()
                opened.append(counts(counts_port)["connections"])
        subscribe(note)
        with Collecting() as collecting:
            wall, cpu = timed(lambda: ask(texts))
    return {"wall": wall, "cpu": cpu, "gc": collecting.seconds, "p50": median(seconds), **opening}


def journalled(folder: Path, on: bool) -> AbstractContextManager[object]:
    """Return a block in which calls are journalled, if asked for."""
    return afnio.journal(folder / "calls.journal") if on else nullcontext()


if __name__ == "__main__":
    serve(measure)
