"""One training step in which every sample is wrong: forward, backward, update; three latencies are ideal.

The provider runs in a process of its own, answers at once after a constant latency, and counts what it
was asked. Reach: at most 1.10 x 3 latencies for 256 samples at 1 s, with at most 2·256 + 2 calls.
"""

from __future__ import annotations

import argparse
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider
from benchmarks.report import median, show, timed


def agent_step(base_url: str, samples: int) -> tuple[float, float]:
    """Run one step over `samples` wrong samples; returns its wall and CPU seconds."""
    client = AsyncOpenAI(base_url=base_url, api_key="any", limits=afnio.Limits(max_in_flight=1024))
    prompt = cog.Parameter("Say whether the message is good.", role="system prompt")
    template = afnio.Variable("{message}", role="template")
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": [prompt]},
        {"role": "user", "content": [template]},
    ]
    optimizer = afnio.optim.TGD([prompt], client, model="simulated")
    inputs = {"message": [f"message {number}" for number in range(samples)]}

    def step() -> None:
        reply = cog.chat_completion(client, messages, inputs, model="simulated")
        _, explanation = cog.exact_match_evaluator(reply, ["never"] * samples)
        work = explanation.backward()
        work.wait()
        optimizer.step().wait()
        prompt.data  # noqa: B018 - the step ends when the new prompt is there

    with afnio.set_backward_model_client(client, completion_args={"model": "simulated"}):
        return timed(step)


def main(sizes: list[int], latency: float, repeats: int) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    columns = ["samples", "wall s", "latencies", "ratio to 3", "CPU ms/sample", "calls", "peak in flight"]
    rows: list[list[Any]] = []
    for size in sizes:
        walls, cpus, calls, peak = [], [], 0, 0
        for _ in range(repeats):
            with Provider.process(latency=latency, reply="wrong") as provider:
                agent_step(provider.base_url, 1)  # imports, connections, thread
                before = provider.stats()["requests"]
                wall, cpu = agent_step(provider.base_url, size)
                calls = provider.stats()["requests"] - before
                peak = provider.stats()["peak_in_flight"]
            walls.append(wall)
            cpus.append(cpu)
        wall = median(walls)
        ratio = wall / latency / 3
        rows.append([size, wall, wall / latency, ratio, median(cpus) / size * 1e3, calls, peak])
    show("step", columns, rows, [f"latency {latency:g} s, median of {repeats}"])
    return [dict(zip(columns, row, strict=True)) for row in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32, 256])
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    main(arguments.samples, arguments.latency, arguments.repeats)
