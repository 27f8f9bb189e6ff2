"""Measure learning: `python -m benchmarks.learning [--part …] [--task …] [--method …] [--lm simulated|local]`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.learning.curve import SAMPLES, SIZES, curve
from benchmarks.learning.endpoints import Endpoint, local, remote, simulated
from benchmarks.learning.live import estimate, estimate_lines, page
from benchmarks.learning.methods import BATCH, CONTROL, METHODS, WAYS
from benchmarks.learning.outcome import Key, Outcome
from benchmarks.learning.peer import PEERS
from benchmarks.learning.plan import PARTS, Part, Runner
from benchmarks.learning.report import tables
from benchmarks.learning.runs import RunFile
from benchmarks.learning.tasks import FAULTY, HARD, LIVE, NAMES, load, named

CALLS = 600
METHOD_NAMES = [*METHODS, *PEERS]
DEFAULT = ("EditTGD", "TGD", "TextGrad", "GEPA")


def main(argv: Sequence[str] | None = None) -> list[Outcome]:
    """Do the runs that are missing, print the tables of all that were asked for, and return them."""
    parser = _parser()
    given = parser.parse_args(argv)
    for name in (*(given.task or ()), *(given.method or ())):
        if ":" in name:
            try:
                named(name)
            except ValueError as error:
                parser.error(str(error))
    given.live = given.live or given.base_url is not None
    if given.control and (given.base_url or given.lm != "simulated"):
        parser.error("--control is for the simulated LM, whose wall can be taken away")
    console, began = Console(width=max(110, Console().width)), time.monotonic()
    if given.live:
        given.part, given.base_url = "live", given.base_url or "https://api.openai.com/v1"
    part = _part(given)
    # Runs of other models are other runs.
    models = f"{given.model} {given.critic}" if given.critic else given.model
    live = f"live {models} at {given.base_url}" if given.base_url else ""
    file = RunFile(given.results or re.sub(r"[^\w.]+", "-", live) or given.part or given.lm)
    runner = Runner(
        file,
        lambda latency: _endpoint(given, latency),
        given.batch,
        given.subset,
        lambda: given.minutes is not None and time.monotonic() - began > 60 * given.minutes,
    )
    keys = list(dict.fromkeys(part.keys()))
    number, of = given.shard
    done = [key for index, key in enumerate(keys) if index % of == number]
    missing = [key for key in done if key not in file.found]
    if given.live and missing and not _agreed(missing, given):
        return []
    for outcome in runner.run(done):
        console.print(_told(outcome), style="dim", highlight=False, markup=False)
    found = [file.found[key] for key in keys if key in file.found]
    if of == 1:
        if given.live or given.lm == "local":
            lines = list(page(found, _models(given)))
            document = file.path.with_suffix(".md")
            document.write_text("\n".join(lines) + "\n")
            print("\n".join(lines))
            console.print(f"this page is in {document}", highlight=False)
        else:
            for line in tables(found):
                print(line)
    if given.curve:
        with _endpoint(given, 0.0) as endpoint:
            task = load(given.curve).subset(given.subset)
            ways = {**WAYS, **CONTROL} if given.control else WAYS
            sizes = [size for size in given.sizes if size <= given.samples]
            curve(task, endpoint, ways, seeds=part.seeds, sizes=sizes, samples=given.samples)
    console.print(f"{time.monotonic() - began:.0f} s; the runs are in {file.path}", highlight=False)
    return found


def _agreed(keys: Sequence[Key], given: argparse.Namespace) -> bool:
    """Show what the runs will take; return True if the user wants it."""
    models = {"student": given.model, "critic": given.critic or given.model}
    for line in estimate_lines(estimate(keys, models, given.base_url, given.subset)):
        print(line)
    if given.yes:
        return True
    try:
        return input("\nMake these calls? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _part(given: argparse.Namespace) -> Part:
    """Return the part that was named, or one of the command line's tasks, methods, calls and seeds."""
    part = PARTS[given.part] if given.part else Part(NAMES, DEFAULT, (CALLS,), 5)
    return replace(
        part,
        tasks=given.task or part.tasks,
        methods=given.method or part.methods,
        calls=given.calls or part.calls,
        seeds=given.seeds or part.seeds,
        latencies=given.latency or part.latencies,
    )


def _models(given: argparse.Namespace) -> str:
    """Return the sentence on which models were asked."""
    if not given.live:
        return "A small real model on this machine was student, critic and optimizer."
    return f"{given.model} was the student, {given.critic or given.model} critic and optimizer, at {given.base_url}."


def _told(outcome: Outcome) -> str:
    """Return a run in a line."""
    what = f"{outcome.task}, {outcome.method}, {outcome.budget} calls, seed {outcome.seed}"
    if not outcome.scores:
        return f"{what}: {outcome.note}"
    reached = f"{outcome.correct:g}/{outcome.answered}"
    return f"{what}: {reached}, {outcome.calls} calls, {outcome.seconds:.1f} s"


def _endpoint(given: argparse.Namespace, latency: float) -> AbstractContextManager[Endpoint]:
    if given.base_url:
        return remote(given.base_url, given.model, given.critic)
    return local(given.weights) if given.lm == "local" else simulated(latency=latency)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    add = parser.add_argument
    add("--part", choices=PARTS, help="a part of the published benchmark; what follows narrows it down")
    tasks, methods = _either(dict.fromkeys([*NAMES, *LIVE, *HARD, *FAULTY])), _either(METHOD_NAMES)
    add("--task", action="append", type=tasks, help="or module:task; repeat for several", metavar="TASK")
    add(
        "--method",
        action="append",
        type=methods,
        help="or module:Optimizer; repeat for several",
        metavar="METHOD",
    )
    add("--seeds", type=int, help="default: the part's, or 5")
    add("--latency", type=float, action="append", metavar="S", help="seconds that a simulated call takes")
    add("--shard", type=_shard, default=(0, 1), metavar="I/N", help="do every Nth run, from the Ith on")
    add(
        "--subset", type=_sizes, metavar="N[,N,N]", help="at most so many items of training, validation, test"
    )
    add("--calls", type=int, action="append", help="LM calls of one training; repeat for several (600)")
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
    add("--results", metavar="NAME", help="results/learning/NAME.jsonl instead of the part's or the LM's")
    add("--live", action="store_true", help="ask a real model, after an estimate of calls and dollars")
    add("--yes", action="store_true", help="don't ask before the calls of --live")
    add("--base-url", help="any OpenAI-compatible endpoint for --live (OpenAI's); its key in OPENAI_API_KEY")
    add("--model", default="gpt-4.1-nano", help="the student there (default: %(default)s)")
    add("--critic", help="critic and optimizer there (default: the student)")
    return parser


def _either(names: Iterable[str]) -> Callable[[str], str]:
    """Return what reads one of these names, or `module:name`."""
    known = list(names)

    def name(text: str) -> str:
        if ":" not in text and text not in known:
            raise argparse.ArgumentTypeError(f"one of {', '.join(known)}, or module:name (got {text!r})")
        return text

    return name


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"I/N with I below N (got {text!r})")
    return int(number), int(of)


def _sizes(text: str) -> list[int]:
    sizes = [int(part) for part in text.split(",")]
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"one number or three, from 1 upwards (got {text!r})")
    return sizes


if __name__ == "__main__":
    main()
