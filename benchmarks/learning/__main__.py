"""Measure learning: `python -m benchmarks.learning [--task …] [--method …] [--lm simulated|local]`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console

from afnio.demo._endpoint import Endpoint
from benchmarks import report
from benchmarks.learning.curve import SAMPLES, SIZES, curve
from benchmarks.learning.endpoints import local, remote, simulated
from benchmarks.learning.methods import BATCH, CONTROL, METHODS, OTHERS, WAYS
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.peer import PEERS, run_peer
from benchmarks.learning.report import credit, save, table
from benchmarks.learning.tasks import NAMES, Task, load
from benchmarks.learning.training import Trial
from benchmarks.peers.environment import PeerError

CALLS = 600
CREDIT = ["at fault", "method", "runs that blamed it most", "share of all feedback"]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = _parser()
    given = parser.parse_args(argv)
    if given.control and (given.base_url or given.lm != "simulated"):
        parser.error("--control is for the simulated LM, whose wall can be taken away")
    console, began = Console(width=max(110, Console().width)), time.monotonic()
    with _endpoint(given) as endpoint:
        for note in endpoint.notes:
            console.print(note, highlight=False, markup=False)
        document: dict[str, Any] = {
            "machine": report.machine(),
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
            outcomes: list[Outcome] = []
            for outcome in _compare(task, endpoint, given, began):
                outcomes.append(outcome)
                console.print(_told(outcome), style="dim", highlight=False, markup=False)
                # What was paid for is kept, whatever becomes of the rest.
                document["tasks"][name] = {"runs": [o.as_dict() for o in outcomes]}
                save(given.results or endpoint.kind, document)
            rows = table(endpoint.kind, name, outcomes, endpoint.notes)
            document["tasks"][name]["rows"] = rows
            if task.at_fault is not None:
                blamed += credit(outcomes, task.at_fault)
        if blamed:
            report.show(f"learning-{endpoint.kind}-credit", CREDIT, blamed, endpoint.notes)
            document["credit"] = blamed
        if given.curve:
            task = load(given.curve).subset(given.subset)
            ways = {**WAYS, **CONTROL} if given.control else WAYS
            sizes = [size for size in given.sizes if size <= given.samples]
            document["curve"] = curve(
                task, endpoint, ways, seeds=given.seeds, sizes=sizes, samples=given.samples
            )
    document["seconds"] = round(time.monotonic() - began, 1)
    console.print(
        f"{document['seconds']:.0f} s; everything is in {save(given.results or endpoint.kind, document)}",
        highlight=False,
    )
    return document


def _compare(task: Task, endpoint: Endpoint, given: argparse.Namespace, began: float) -> Iterator[Outcome]:
    """Yield the runs of all methods; a peer that can't be run has one without scores, which says why."""

    def trials(name: str, seeds: int) -> list[Trial]:
        return [Trial(name, task, endpoint, seed, given.calls, given.batch) for seed in range(seeds)]

    def late() -> bool:
        return given.minutes is not None and time.monotonic() - began > 60 * given.minutes

    wanted = given.method or [*METHODS, *PEERS]
    # The first prompt at temperature 0 says the same for every seed.
    yield trials("baseline", 1)[0].run(None)
    ours = {**METHODS, **OTHERS}
    for name in wanted:
        for trial in trials(name, given.seeds) if ours.get(name) is not None else ():
            if late():
                yield Outcome(name, task.name, trial.seed, note=f"not begun within {given.minutes:g} minutes")
            else:
                yield trial.run(ours[name])
    yield from _peers({name: trials(name, given.seeds) for name in wanted if name in PEERS})


def _peers(runs: Mapping[str, Sequence[Trial]]) -> Iterator[Outcome]:
    # Each waits for its calls one by one, so they may wait side by side.
    with ThreadPoolExecutor(max(1, len(runs))) as pool:
        running = {name: pool.submit(run_peer, PEERS[name], trials) for name, trials in runs.items()}
    for name, future in running.items():
        try:
            yield from future.result()
        except PeerError as error:
            yield Outcome(name, runs[name][0].task.name, 0, note=f"it was not run: {error}")


def _told(outcome: Outcome) -> str:
    """Return a run in a line."""
    done = f"{outcome.task}, {outcome.method}, seed {outcome.seed}: {outcome.correct:g}/{outcome.answered}"
    return f"{done}, {outcome.calls} calls, {outcome.seconds:.1f} s"


def _endpoint(given: argparse.Namespace) -> AbstractContextManager[Endpoint]:
    if given.base_url:
        return remote(given.base_url, given.model, given.critic)
    return local(given.weights) if given.lm == "local" else simulated()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    add = parser.add_argument
    add("--task", action="append", choices=NAMES, help="repeat for several; all by default")
    add("--method", action="append", choices=[*METHODS, *OTHERS, *PEERS], help="repeat for several")
    add("--seeds", type=int, default=5, help="default: %(default)s")
    add(
        "--subset", type=_sizes, metavar="N[,N,N]", help="at most so many items of training, validation, test"
    )
    add("--calls", type=int, default=CALLS, help="LM calls of one training (default: %(default)s)")
    add("--minutes", type=float, metavar="M", help="after so many begin no further run")
    add("--batch", type=int, default=BATCH, help="samples of one step (default: %(default)s)")
    add("--curve", choices=NAMES, nargs="?", const="sentiment", help="the batch curve as well, on that task")
    add(
        "--samples",
        type=int,
        default=SAMPLES,
        help="of the curve, for each batch size (default: %(default)s)",
    )
    add("--sizes", type=int, nargs="+", default=SIZES, help="of the curve's batches (default: %(default)s)")
    add(
        "--control",
        action="store_true",
        help="the curve also with a simulated proposer that reads everything",
    )
    add("--lm", choices=("simulated", "local"), default="simulated", help="default: %(default)s")
    add("--weights", type=Path, help="another GGUF file for the local model")
    add("--results", metavar="NAME", help="results/learning-NAME.json instead of the endpoint's kind")
    add("--base-url", help="any OpenAI-compatible endpoint instead; its key in OPENAI_API_KEY")
    add("--model", default="gpt-4.1-nano", help="the student there (default: %(default)s)")
    add("--critic", help="critic and optimizer there (default: the student)")
    return parser


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"one number or three, from 1 upwards (got {text!r})")
    return sizes


if __name__ == "__main__":
    main()
