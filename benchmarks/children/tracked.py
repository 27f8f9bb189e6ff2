"""Chat calls and their evaluation, inside a run of the store or without one."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio.models.openai import AsyncOpenAI
from benchmarks.child import serve
from benchmarks.children.texts import MODEL, REPLY, SYSTEM, message
from benchmarks.report import RESULTS, timed


def measure(base_url: str, calls: int, in_flight: int, tracked: bool, rounds: int = 1) -> dict[str, Any]:
    """Time `rounds` batches of `calls` calls each; both ways there is a journal, as every run has one."""
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=in_flight))
    prompt = cog.Parameter(SYSTEM, role="system prompt", requires_grad=True)
    template = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [template]}]

    def ask(texts: list[str]) -> None:
        reply = cog.functional.chat_completion(client, messages, {"message": texts}, model=MODEL)
        score, _ = cog.functional.exact_match_evaluator(reply, [REPLY] * len(texts))
        assert score.data == len(texts)

    batches = [[message(place + 1_000_000 * number) for place in range(calls)] for number in range(rounds)]
    RESULTS.mkdir(exist_ok=True)
    # Not in the system's own folder for such files, which may be memory.
    with TemporaryDirectory(dir=RESULTS) as folder, recording(Path(folder), tracked):
        ask(["warm"])
        wall, cpu = timed(lambda: [ask(batch) for batch in batches])
    return {"wall": wall, "cpu": cpu}


def recording(folder: Path, on: bool) -> AbstractContextManager[object]:
    return te.init("me", "bench", dir=folder, resume=False) if on else afnio.journal(folder / "calls.journal")


if __name__ == "__main__":
    serve(measure)
