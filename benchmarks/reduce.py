"""Reduction of the gradients of a large batch: 1,024 of them, from a sentence to a whole prompt each."""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from afnio.autodiff import Variable
from afnio.cognitive import Parameter
from afnio.models import ChatModel, ChatRequest
from afnio.optim import Change, Optimizer, reduce
from afnio.runtime import Limits
from afnio.testing import ScriptedClient
from benchmarks.report import Claim, median, show

REACH = 3.0
"""Latencies for 1,024 gradients."""
LENGTHS = {"a sentence": 25, "a paragraph": 120, "half a page": 400, "a whole prompt": 3500}
"""Words of one gradient; the last, 6 million tokens in all, needs three levels and is for information."""
COLUMNS = ["gradients", "each", "tokens", "calls", "points", "wall s", "latencies", "CPU s"]
_WORDS = re.compile(r"points, (\d+) words in all")
_IDS = re.compile(r'<feedback id="(\d+)"')


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    return compare(1024, latency=1.0, repeats=3 if full else 1)


def compare(gradients: int, *, latency: float, repeats: int) -> list[Claim]:
    """Measure one reduction for each length of a gradient."""
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    for name, words in LENGTHS.items():
        texts = different(gradients, words)
        runs = [_measured(texts, latency) for _ in range(repeats)]
        wall, cpu = (median([run[index] for run in runs]) for index in (0, 1))
        found = runs[0][2]
        tokens = sum(-(-len(text) // 4) for text in texts)
        calls = found.reduction.calls
        rows.append([gradients, name, tokens, calls, len(found), wall, wall / latency, cpu])
        # What is beyond whole latencies is this process's own work.
        why = f"{cpu:.2g} s of CPU in one process, the scripted model's part among it"
        if words < max(LENGTHS.values()):
            what = f"reduction of {gradients}, {name} each, latencies"
            claims.append(Claim(what, wall / latency, REACH, why=why))
    notes = [
        f"a scripted model in the process answers after {latency:g} s with as much as it may",
        "a whole prompt each takes three latencies, and the rest to move 25 MB of text through one process",
    ]
    show("reduce", COLUMNS, rows, notes, claims)
    return claims


def different(count: int, words: int) -> list[str]:
    """Return texts that have no word in common, so that nothing is merged for being alike."""
    draw = random.Random(1)
    letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6 * words)) for _ in range(count)]
    return [" ".join(text[n : n + 6] for n in range(0, len(text), 6)) for text in letters]


def summary(request: ChatRequest) -> dict[str, Any]:
    """Return the longest summary that was allowed, with all sources."""
    asked = str(request.messages[-1]["content"])
    allowed = _WORDS.search(asked)
    assert allowed is not None
    first = asked.split("<feedback id", 1)[1].split("\n")[1].split(maxsplit=1)[0]
    point = " ".join([first, *["word"] * (int(allowed[1]) - 2)])
    return {"points": [{"point": point, "sources": [int(name) for name in _IDS.findall(asked)]}]}


class Reducing(Optimizer):
    """Reduces the feedback and keeps the result."""

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        self.found = await reduce(gradients, options["model"], role="prompt", value=value)
        return Change(parameter.role, value, value, len(gradients))


def _measured(texts: Sequence[str], latency: float) -> tuple[float, float, Any]:
    client = ScriptedClient(summary, latency=latency, limits=Limits(max_in_flight=len(texts)))
    prompt = Parameter("Answer.", role="prompt")
    prompt.grad = [Variable(text) for text in texts]
    optimizer = Reducing([prompt], {"model": ChatModel(client, {"model": "m"})})
    wall, cpu = time.perf_counter(), time.process_time()
    optimizer.step().wait()
    return time.perf_counter() - wall, time.process_time() - cpu, optimizer.found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gradients", type=int, default=1024)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=1)
    given = parser.parse_args()
    compare(given.gradients, latency=given.latency, repeats=given.repeats)
