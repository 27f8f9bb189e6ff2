"""An agent of three calls under latencies with a long tail: lanes, against a barrier after each node.

Reading a node's data waits for its slowest sample; with lanes a sample waits for its own calls alone. Both
programs send the same requests to providers with the same seed, so both meet the same latencies.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Latency, Provider
from benchmarks.children.texts import MODEL, REPLY, message
from benchmarks.report import Claim, median, show, timed

REACH = 1.5
NODES = 3
SIGMA = 1.0
COLUMNS = ["seed", "lanes s", "barriers s", "x faster", "CPU s lanes", "CPU s barriers"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    return compare(samples=256, middle=0.2 if full else 0.1, seeds=7 if full else 2)


def compare(*, samples: int, middle: float, seeds: int) -> list[Claim]:
    """Measure both programs, in turns, once for each seed; `middle` is the latencies' median."""
    _run(samples=1, middle=middle, seed=0, barrier=False)  # imports, thread
    rows: list[list[Any]] = []
    for seed in range(1, seeds + 1):
        lanes, cpu = _run(samples=samples, middle=middle, seed=seed, barrier=False)
        barriers, more = _run(samples=samples, middle=middle, seed=seed, barrier=True)
        rows.append([seed, lanes, barriers, barriers / lanes, cpu, more])
    faster = median([row[3] for row in rows])
    ours = median([row[4] / row[1] for row in rows])
    notes = [
        f"{samples} samples, {NODES} calls each, lognormal latency: median {middle:g} s, sigma {SIGMA:g}",
        f"median {faster:.3g} x faster; without any CPU it would be {ideal(samples):.3g}",
    ]
    why = f"the engine was busy for {100 * ours:.0f} % of the lanes' time; a longer latency hides that"
    claims = [Claim("lanes against barriers, x faster", faster, REACH, at_least=True, why=why)]
    show("tail", COLUMNS, rows, notes, claims)
    return claims


def ideal(samples: int, rounds: int = 100) -> float:
    """Return how many times faster lanes are where only latencies count, the median of many draws."""
    chance, found = random.Random(0), []
    for _ in range(rounds):
        lanes = [[chance.lognormvariate(0, SIGMA) for _ in range(NODES)] for _ in range(samples)]
        found.append(sum(map(max, zip(*lanes, strict=True))) / max(map(sum, lanes)))
    return median(found)


def _run(*, samples: int, middle: float, seed: int, barrier: bool) -> tuple[float, float]:
    """Return the wall and CPU seconds of one pass of the agent over a batch."""
    with Provider.process(latency=Latency.lognormal(middle, SIGMA), reply=REPLY, seed=seed) as provider:
        limits = afnio.Limits(max_in_flight=samples)
        client = AsyncOpenAI(base_url=provider.base_url, api_key="any", limits=limits)
        prompt = cog.Parameter("Go on.", role="system prompt")
        # The message is in each request, so that a sample meets the same latencies whenever it comes.
        texts = {"message": [message(number) for number in range(samples)]}

        def agent() -> None:
            reply: Any = "start"
            for node in range(NODES):
                asked = afnio.Variable(f"Step {node}: {{message}} {{before}}", role="template")
                messages = [
                    {"role": "system", "content": [prompt]},
                    {"role": "user", "content": [asked]},
                ]
                inputs = {**texts, "before": reply}
                reply = cog.functional.chat_completion(client, messages, inputs, model=MODEL)
                if barrier:
                    assert reply.data
            assert reply.data == [REPLY] * samples

        return timed(agent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--median", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    compare(samples=given.samples, middle=given.median, seeds=given.seeds)
