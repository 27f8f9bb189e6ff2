"""Calls by a provider's batch API: CPU and memory at the peak, with the provider in a process of its own."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Batches, Provider
from benchmarks.child import serve
from benchmarks.report import timed

SIZE = 1000
"""Bytes of a request's text."""


def measure(calls: int) -> dict[str, Any]:
    """Return CPU seconds and bytes a call, from before the first one to the end of the journal."""
    texts = [f"{number:08}" + "x" * (SIZE - 8) for number in range(calls)]
    batches = Batches(seconds=1.0, validating=0.0)
    with Provider.process(reply="a short reply", batches=batches) as provider:
        client = AsyncOpenAI(api_key="k", base_url=provider.base_url, limits=afnio.Limits())
        _ask(client, ["warm up"] * 8)
        before = _resident()
        wall, cpu = timed(lambda: _ask(client, texts))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        paid = provider.stats()["batches"]["paid"]
    assert paid == calls + 8, paid
    return {"wall": wall, "cpu": cpu / calls, "bytes": (peak - before) / calls}


def _ask(client: AsyncOpenAI, texts: list[str]) -> None:
    content = [{"role": "user", "content": [afnio.Variable("{text}")]}]
    with (
        tempfile.TemporaryDirectory() as folder,
        afnio.journal(Path(folder) / "calls.journal"),
        afnio.batch_api(linger=0.5),
    ):
        replies = cog.functional.chat_completion(
            client, content, {"text": texts}, model="m", max_completion_tokens=8
        )
        assert replies.data == ["a short reply"] * len(texts)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    serve(measure)
