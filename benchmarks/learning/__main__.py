"""Measure learning: `python -m benchmarks.learning [--task …] [--method …] [--lm simulated|local]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console

from afnio.demo.endpoint import Endpoint
from benchmarks import report
from benchmarks.learning.curve import curve
from benchmarks.learning.endpoints import local, remote, simulated
from benchmarks.learning.methods import BATCH, METHODS, WAYS
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.peer import PEERS, run_peer
from benchmarks.learning.report import credit, save, table
from benchmarks.learning.tasks import NAMES, Task, load
from benchmarks.learning.training import Trial
from benchmarks.peers.environment import PeerError

CALLS = 600
CREDIT = ["at fault", "method", "runs that blamed it most", "share of all feedback"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    given = _parser().parse_args(argv)
    console, began = Console(width=max(110, Console().width)), time.monotonic()
    with _endpoint(given, console) as endpoint:
        for note in endpoint.notes:
            console.print(note, highlight=False, markup=False)
        document: dict[str, Any] = {
            "lm": endpoint.kind,
            "simulated": endpoint.kind == "simulated",
            "models": endpoint.models,
            "budget_calls": given.calls,
            "batch": given.batch,
            "seeds": given.seeds,
            "tasks": {},
        }
        blamed: list[list[Any]] = []
        for name in given.task or NAMES:
            task = load(name).subset(given.subset)
            outcomes = _compare(task, endpoint, given, console, began)
            rows = table(endpoint.kind, name, outcomes, endpoint.notes)
            document["tasks"][name] = {"rows": rows, "runs": [o.as_dict() for o in outcomes]}
            if task.at_fault is not None:
                blamed += credit(outcomes, task.at_fault)
        if blamed:
            report.show(f"learning-{endpoint.kind}-credit", CREDIT, blamed, endpoint.notes)
            document["credit"] = blamed
        if given.curve:
            task = load(given.curve).subset(given.subset)
            document["curve"] = curve(task, endpoint, WAYS, seeds=given.seeds)
    document["seconds"] = round(time.monotonic() - began, 1)
    console.print(
        f"{document['seconds']:.0f} s; everything is in {save(endpoint.kind, document)}", highlight=False
    )
    return document


def _compare(
    task: Task, endpoint: Endpoint, given: argparse.Namespace, console: Console, began: float
) -> list[Outcome]:
    """Return the runs of all methods; a peer that can't be run has one without scores, which says why."""

    def trials(name: str, seeds: int) -> list[Trial]:
        return [Trial(name, task, endpoint, seed, given.calls, given.batch) for seed in range(seeds)]

    def tell(outcome: Outcome) -> Outcome:
        done = f"{task.name}, {outcome.method}, seed {outcome.seed}: {outcome.correct:g}/{outcome.answered}"
        took = f"{outcome.calls} calls, {outcome.seconds:.1f} s"
        console.print(f"{done}, {took}", style="dim", highlight=False, markup=False)
        return outcome

    wanted = given.method or [*METHODS, *PEERS]
    # The first prompt at temperature 0 says the same for every seed.
    outcomes = [tell(trial.run(None)) for trial in trials("baseline", 1)]
    ours = {name: trials(name, given.seeds) for name in wanted if METHODS.get(name) is not None}
    for name, runs in ours.items():
        for trial in runs:
            if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
                outcomes[0].note = f"after {given.minutes:g} minutes no further run was begun"
            else:
                outcomes.append(tell(trial.run(METHODS[name])))
    peers = {name: PEERS[name] for name in wanted if name in PEERS}
    # Each waits for its calls one by one, so they may wait side by side.
    with ThreadPoolExecutor(max(1, len(peers))) as pool:
        running = {
            name: pool.submit(run_peer, peer, trials(name, given.seeds)) for name, peer in peers.items()
        }
    for name, future in running.items():
        try:
            outcomes += [tell(outcome) for outcome in future.result()]
        except PeerError as error:
            missing = Outcome(name, task.name, 0, note=f"it was not run: {error}")
            outcomes.append(missing)
    return outcomes


def _endpoint(given: argparse.Namespace, console: Console) -> AbstractContextManager[Endpoint]:
    if given.base_url:
        return remote(given.base_url, given.model, given.critic)
    return local(console) if given.lm == "local" else simulated()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    add = parser.add_argument
    add("--task", action="append", choices=NAMES, help="repeat for several; all by default")
    add("--method", action="append", choices=[*METHODS, *PEERS], help="repeat for several; all by default")
    add("--seeds", type=int, default=5, help="default: %(default)s")
    add("--subset", type=int, metavar="N", help="at most so many items of each split")
    add("--calls", type=int, default=CALLS, help="LM calls of one training (default: %(default)s)")
    add("--minutes", type=float, metavar="M", help="after so many begin no further run")
    add("--batch", type=int, default=BATCH, help="samples of one step (default: %(default)s)")
    add("--curve", choices=NAMES, nargs="?", const="sentiment", help="the batch curve as well, on that task")
    add("--lm", choices=("simulated", "local"), default="simulated", help="default: %(default)s")
    add("--base-url", help="any OpenAI-compatible endpoint instead; its key in OPENAI_API_KEY")
    add("--model", default="gpt-4.1-nano", help="the student there (default: %(default)s)")
    add("--critic", help="critic and optimizer there (default: the student)")
    return parser


if __name__ == "__main__":
    main()
