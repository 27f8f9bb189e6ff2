"""Headroom: is the test right? Tasks that were made with headroom, and tasks that were made without any.

python -m benchmarks.learning.headroom [--seeds 20]

With headroom: the start prompts of all tasks. Without: four kinds in which no prompt can gain.

* `ignored`: the agent doesn't use its prompt; its answers are right as often as at the start of the task.
* `coin`: the expected answers are drawn at random, so nothing in a message tells them.
* `solved`: a prompt with which every answer is right.
* `trained`: the best prompt of 20 trainings with 600 calls, from the runs. They may have a point or two left.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import afnio
from afnio import cognitive as cog
from benchmarks import report
from benchmarks.learning.endpoints import Endpoint, drawn_for, simulated
from benchmarks.learning.report import rows_of
from benchmarks.learning.runs import read
from benchmarks.learning.tasks import LABELS, Item, Task, load

WITH = (
    "sentiment",
    "urgency",
    "counting",
    "sorting",
    "notes-retrieve",
    "notes-draft",
    "notes-judge",
)
SOLVED = {
    "counting": "Add up the quantities, so that a number word counts as so many. Leave out things that are not of the "
    "kind asked for. End with the number.",
    "sorting": "Compare words letter by letter. Check that every word of the list is in the answer.",
}


@dataclass(frozen=True, slots=True)
class Trial:
    """A task, with an answer to whether it has headroom."""

    kind: str
    task: Task
    has: bool
    prompts: Mapping[str, str] | None = None
    ignores: bool = False


def trials(runs: Path) -> Iterator[Trial]:
    for name in WITH:
        yield Trial("start", load(name), True)
    for name in ("sentiment", "urgency", "conflict"):
        task = load(name)
        yield Trial("ignored", task, False, ignores=True)
        yield Trial("coin", _coin(task), False)
    for name, prompt in SOLVED.items():
        yield Trial("solved", load(name), False, {"prompt": prompt})
    best: dict[str, Any] = {}
    for run in read([runs]):
        if (
            run.budget >= 600
            and run.method == "TGD 4, 1,000 characters"
            and run.task in LABELS
            and not run.critic
        ):
            best[run.task] = max(best.get(run.task, run), run, key=lambda one: one.share)
    for name, run in best.items():
        yield Trial("trained", load(name), False, run.prompts)


def _coin(task: Task) -> Task:
    draw = random.Random(0)
    labels = sorted({item.target for item in task.train})
    parts = {
        part: [Item(item.inputs, draw.choice(labels)) for item in getattr(task, part)]
        for part in ("train", "val", "test")
    }
    return replace(task, **parts)


class Asked(cog.Module):
    """A task's agent with its client, as `headroom` wants it: inputs in, answers out."""

    def __init__(self, trial: Trial, endpoint: Endpoint) -> None:
        super().__init__()
        self.agent = trial.task.agent()
        for name, parameter in self.agent.named_parameters():
            if trial.prompts is not None:
                parameter.data = trial.prompts[name]
        self.start = {name: str(parameter.data) for name, parameter in self.agent.named_parameters()}
        self.trial, self.endpoint = trial, endpoint

    def __deepcopy__(self, memo: Any) -> Asked:
        copied = Asked(self.trial, self.endpoint)
        for one, other in zip(copied.parameters(), self.parameters(), strict=True):
            one.data = other.data
        return copied

    def forward(self, **inputs: Any) -> afnio.Variable:
        if self.trial.ignores:
            with afnio.bind({p: self.start[name] for name, p in self.agent.named_parameters()}):
                return self._answers(inputs)
        return self._answers(inputs)

    def _answers(self, inputs: Mapping[str, Any]) -> afnio.Variable:
        reply = self.agent(self.endpoint.client, inputs, **self.endpoint.forward)
        return reply.map(self.trial.task.read)


def tested(trial: Trial, endpoint: Endpoint, seed: int) -> Any:
    """Return what the test finds on training and validation rows."""
    task = trial.task
    rows = [{"inputs": dict(item.inputs), "expected": item.target} for item in (*task.train, *task.val)]
    endpoint = drawn_for(endpoint, f"headroom/{trial.kind}/{task.name}/{seed}")
    return afnio.headroom(
        Asked(trial, endpoint),
        rows,
        task.score,
        critic=(endpoint.client, dict(endpoint.step)),
        budget=afnio.budget(max_calls=400),
        seed=seed,
    )


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Test each task with each seed; print how often the test is right, and keep what it found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning.headroom", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="kinds or tasks; all by default")
    parser.add_argument("--runs", type=Path, default=report.RESULTS / "learning" / "equal.jsonl")
    parser.add_argument("--results", type=Path, default=report.RESULTS / "learning" / "headroom.jsonl")
    given = parser.parse_args(argv)
    done = (
        [json.loads(line) for line in given.results.read_text().splitlines()]
        if given.results.exists()
        else []
    )
    known = {(one["kind"], one["task"], one["seed"]) for one in done}
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with simulated() as endpoint, given.results.open("a") as file:
        for trial in trials(given.runs):
            if given.only and not {trial.kind, trial.task.name} & set(given.only):
                continue
            for seed in range(given.seeds):
                if (trial.kind, trial.task.name, seed) in known:
                    continue
                found = tested(trial, endpoint, seed)
                done.append(
                    {
                        "kind": trial.kind, "task": trial.task.name, "seed": seed, "has": trial.has,
                        "found": found.found, "gain": None if found.gain is None else round(found.gain.difference, 4),
                        "calls": found.calls, "noise": round(found.noise, 4), "wrong": found.wrong, "form": found.form,
                        "start": round(found.start, 4), "verdict": found.verdict,
                    }
                )  # fmt: skip
                file.write(json.dumps(done[-1], ensure_ascii=False) + "\n")
                file.flush()
    for line in tables(done):
        print(line)
    return done


def tables(done: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table: for each kind and task how often the test was right, and what it took."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in done:
        groups.setdefault((one["kind"], one["task"]), []).append(one)
    cells = [[kind, task, *_cells(some)] for (kind, task), some in groups.items()]
    for has, name in ((True, "all with headroom"), (False, "all without")):
        some = [one for one in done if one["has"] is has]
        cells += [[name, "", *_cells(some)]] if some else []
    yield from rows_of(["made as", "task", "has headroom", "right", "mean gain found", "calls, most"], cells)


def _cells(some: Sequence[Mapping[str, Any]]) -> list[str]:
    right = sum(one["found"] == one["has"] for one in some)
    gains = [one["gain"] for one in some if one["gain"] is not None]
    mean = f"{100 * sum(gains) / len(gains):+.1f}" if gains else ""
    return [
        "yes" if some[0]["has"] else "no",
        f"{right}/{len(some)} ({right / len(some):.0%})",
        mean,
        str(max(one["calls"] for one in some)),
    ]


if __name__ == "__main__":
    main()
