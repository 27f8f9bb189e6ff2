"""`afnio.optimize` end to end in worlds whose every edit has a known worth: what it finds, keeps and claims.

    python -m benchmarks.learning.worlds known --gain 0.2 --seeds 40
    python -m benchmarks.learning.worlds harmful --seeds 100
    python -m benchmarks.learning.worlds known --gain 0 --rows 50 --cross-fit --seeds 400
    python -m benchmarks.learning.worlds known --first-seed 1000 --seeds 60 --sizes 3/2/12/20/20/2

A critic proposes one of twelve sentences at random, and a student is right as often as the worths of the sentences
in its prompt add up to, from a half of all rows on. Each new text also redraws the answers to one row in five, so that
two texts of the same worth win and lose one row in twenty of each other at least. The true accuracy of a text is the
sum itself; no rows are needed to measure it.

    known     one sentence is worth the gain, the others are worth nothing
    harmful   all sentences do harm, by two to eight points each

Each run is a line in benchmarks/results/learning/worlds.jsonl; a run that is there isn't done again.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import afnio
from afnio.models import ChatRequest
from afnio.stats import wilson
from afnio.testing import ScriptedClient
from benchmarks.learning.sizes import sized

START = "Answer yes or no."
POOL = [f"Mind rule {name}." for name in "ABCDEFGHIJKL"]
RESULTS = Path(__file__).parents[1] / "results" / "learning" / "worlds.jsonl"
RIGHT = 0.5
REDRAWN = 0.2
LOST = 0.005
"""A result that is worse by more has lost something: half a point."""


def worths(world: str, gain: float) -> dict[str, float]:
    if world == "known":
        return {sentence: gain if sentence == POOL[0] else 0.0 for sentence in POOL}
    return {sentence: -0.02 - 0.06 * place / (len(POOL) - 1) for place, sentence in enumerate(POOL)}


@dataclass(frozen=True, slots=True)
class World:
    """Rows, a student and a critic of one seed."""

    worth: Mapping[str, float]
    seed: int

    def level(self, text: str) -> float:
        """The true accuracy of a prompt."""
        return min(1.0, max(0.0, RIGHT + sum(worth for part, worth in self.worth.items() if part in text)))

    def answer(self, row: str, system: str) -> str:
        base, again = self._draw(row), self._draw(f"{row} {system}")
        # The same text says the same again; another one draws anew on a part of the rows.
        drawn = base if again >= REDRAWN else again / REDRAWN
        return "yes" if drawn < self.level(system) else "no"

    def reply(self, request: ChatRequest) -> Any:
        if request.model == "student":
            system, row = (str(message["content"]) for message in request.messages)
            return self.answer(row, system)
        said = "\n".join(str(message.get("content")) for message in request.messages)
        if "edited copies of one text" in said:
            parts = [part for part in POOL if part in said]
        else:
            parts = [random.Random(f"{self.seed} {said}").choice(POOL)]
        edits = [{"op": "add", "block": 1, "text": part, "samples": [1, 2]} for part in parts]
        return {"edits": edits}

    def _draw(self, what: str) -> float:
        return random.Random(f"{self.seed} {what}").random()


@dataclass(frozen=True, slots=True)
class Told:
    """One run: whether it claims a gain, what its training found and what it kept, as true gains over the start."""

    better: bool
    found: float
    kept: float
    stopped: bool
    calls: int


def run(world: World, rows: int, calls: int, options: Mapping[str, Any]) -> Told:
    client = ScriptedClient(world.reply)

    async def agent(row: str, system: str) -> str:
        messages = [{"role": "system", "content": system}, {"role": "user", "content": row}]
        return (await client.achat(messages=messages, model="student")).content

    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        result = afnio.optimize(
            agent, [(f"row {number}", "yes") for number in range(rows)], _equal, prompts={"system": START},
            critic=(client, "critic"), budget=afnio.budget(max_calls=calls), dir=folder, seed=world.seed,
            **options,
        )  # fmt: skip
    start = world.level(START)
    found, kept = (world.level(texts["system"]) - start for texts in (result.candidate, result.prompts))
    stopped = result.gate is not None and result.gate.stopped
    return Told(result.verdict.startswith("Better"), found, kept, stopped, result.calls)


def _equal(output: str, expected: str) -> bool:
    return output == expected


def runs_of(
    path: Path,
    world: str,
    gain: float,
    rows: int,
    calls: int,
    cross_fit: bool,
    seeds: Sequence[int],
    sizes: str = "",
) -> list[Told]:
    """Return the runs of one line of the table; those that the file doesn't have are done, and added to it."""
    kept = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    known = {json.dumps(one["of"]): Told(**one["told"]) for one in kept}
    runs = []
    for seed in seeds:
        of = [world, gain, rows, calls, cross_fit, seed, *filter(None, [sizes])]
        if json.dumps(of) not in known:
            with sized(sizes) if sizes else nullcontext():
                told = run(World(worths(world, gain), seed), rows, calls, {"cross_fit": cross_fit})
            known[json.dumps(of)] = told
            with path.open("a") as file:
                file.write(json.dumps({"of": of, "told": asdict(told)}) + "\n")
        runs.append(known[json.dumps(of)])
    return runs


def line(name: str, runs: Sequence[Told]) -> str:
    """Return the row of the table for runs of one world."""
    better = sum(one.better for one in runs)
    low, high = (100 * bound for bound in wilson(better, len(runs)))
    found, kept = (100 * fmean(getattr(one, part) for one in runs) for part in ("found", "kept"))
    error = 2 * 100 * stdev(one.kept for one in runs) / len(runs) ** 0.5
    lost = 100 * fmean(one.kept < -LOST for one in runs)
    changed = 100 * fmean(one.found < -LOST for one in runs)
    return (
        f"| {name} | {len(runs)} | {better} ({low:.1f} to {high:.1f} %) | {found:+.1f} | {kept:+.1f} ± {error:.1f} "
        f"| {changed:.0f} % | {lost:.0f} % | {sum(one.stopped for one in runs)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", choices=("known", "harmful"))
    parser.add_argument("--gain", type=float, default=0.2, help="of the known edit, as a share (0.2)")
    parser.add_argument("--rows", type=int, nargs="+", default=[200])
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cross-fit", action="store_true")
    parser.add_argument("--sizes", default="", help="of steps, as benchmarks.learning.sizes has them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    print("| world, rows | runs | Better (95 %) | found | kept | found worse | kept worse | stopped early |")
    print("|---|---|---|---|---|---|---|---|")
    gain = given.gain if given.world == "known" else 0.0
    world = f"known edit, {100 * gain:+.0f}" if given.world == "known" else "harmful"
    for rows in given.rows:
        seeds = range(given.first_seed, given.first_seed + given.seeds)
        runs = runs_of(
            given.results, given.world, gain, rows, given.calls, given.cross_fit, seeds, given.sizes
        )
        print(
            line(
                f"{world}, {rows}{', cross-fitted' if given.cross_fit else ''}{given.sizes and f', {given.sizes}'}",
                runs,
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
