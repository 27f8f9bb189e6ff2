"""Lanes: CPU of training steps, and memory of lanes that wait in the queue, with a model in the process."""

from __future__ import annotations

import gc
import json
import os
import time
from typing import Any

import anyio

import afnio
import afnio.cognitive as cog
from afnio.models import ChatRequest
from afnio.testing import ScriptedClient
from benchmarks.child import serve
from benchmarks.children.collecting import Collecting
from benchmarks.children.texts import MODEL, message
from benchmarks.report import timed

CRITIQUE = json.dumps({"feedback": [{"variable": "v1", "text": "Say which words count."}]})
IN_FLIGHT = 8
IDLE = 0.005
"""Share of a processor below which the engine is taken to have nothing to do."""


def measure(samples: int, steps: int = 0) -> dict[str, Any]:
    """Return the CPU seconds of `steps` steps, or without steps the bytes of a batch in the queue."""
    return _cpu(samples, steps) if steps else _queued(samples)


def _cpu(samples: int, steps: int) -> dict[str, Any]:
    client = ScriptedClient(_reply, limits=afnio.Limits(max_in_flight=64))
    prompt = cog.Parameter("Sort the message.", role="system prompt")
    optimizer = afnio.optim.TGD([prompt], client, model=MODEL)
    texts = [message(number) for number in range(samples)]

    def step(texts: list[str]) -> None:
        reply = _ask(client, prompt, texts)
        _, explanation = cog.functional.exact_match_evaluator(reply, ["never"] * len(texts))
        explanation.backward()
        optimizer.step().wait()
        optimizer.clear_grad()
        client.requests.clear()

    with afnio.set_backward_model_client(client, completion_args={"model": MODEL}):
        step(texts[:1])  # imports, thread
        with Collecting() as collecting:
            wall, cpu = timed(lambda: [step(texts) for _ in range(steps)])
    return {"wall": wall / steps, "cpu": cpu / steps, "gc": collecting.seconds / steps}


def _queued(samples: int) -> dict[str, Any]:
    opened = False

    async def gated(request: ChatRequest) -> str:
        while not opened:  # noqa: ASYNC110 - it is opened by another thread, which an Event can't be
            await anyio.sleep(0.05)
        return "wrong"

    client = ScriptedClient(gated, limits=afnio.Limits(max_in_flight=IN_FLIGHT))
    prompt = cog.Parameter("Sort the message.", role="system prompt")
    texts = [message(number) for number in range(samples)]
    opened = True
    assert _ask(client, prompt, texts[:IN_FLIGHT]).data
    opened = False
    before = _resident()
    reply = _ask(client, prompt, texts)
    _settle()
    assert client.peak == IN_FLIGHT
    bytes_a_lane = (_resident() - before) / (samples - IN_FLIGHT)
    opened = True
    assert reply.data == ["wrong"] * samples
    return {"bytes": bytes_a_lane}


def _ask(client: ScriptedClient, prompt: cog.Parameter, texts: list[str]) -> afnio.Variable:
    asked = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [asked]}]
    return cog.functional.chat_completion(client, messages, {"message": texts}, model=MODEL)


def _reply(request: ChatRequest) -> str:
    form = request.params.get("response_format")
    if form is None:
        return "wrong"
    return CRITIQUE if form["json_schema"]["name"] == "afnio_feedback" else json.dumps({"value": "Sort it."})


def _settle() -> None:
    """Wait until every lane is in the queue: until this process has been idle for a while."""
    while True:
        cpu = time.process_time()
        time.sleep(0.3)
        if time.process_time() - cpu < 0.3 * IDLE:
            return


def _resident() -> int:
    """Return the bytes of this process that are in memory."""
    gc.collect()
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import psutil

        resident: int = psutil.Process().memory_info().rss
        return resident


if __name__ == "__main__":
    serve(measure)
