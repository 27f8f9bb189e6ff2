"""`afnio runs`: list, show, compare, control, delete and export runs.

Each command makes its answer as plain data first (`summary`, `details`, `compared`). `--json` prints the data;
otherwise `list_text`, `show_text` or `compare_text` lays it out for reading. So both always show the same figures.

Names, prompts and errors come from others and may contain terminal escapes. Everything printed for reading goes through
`printable`; JSON escapes them itself.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from afnio.cli._parser import Parser, fitted, say, say_next, shell_width
from afnio.errors import StoreProblemError
from afnio.tellurio._card import Card, card_of
from afnio.tellurio._compare import Scores, compare
from afnio.tellurio._control import LIMITS, Order, give, number_of
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import RunRecord, Spending, loaded, ranked
from afnio.tellurio._store import MISSING, as_stored, choose, home_folder, stores

EXAMPLES: Final = """\
examples:
  afnio runs list --project me/emails      the runs of a project, newest first
  afnio runs list --json | jq '.[0].id'    the same, as JSON
  afnio runs show calm-heron               a run's metrics, calls, costs, steps and prompts
  afnio runs compare calm-heron keen-lynx  compare two runs on the samples that both evaluated
  afnio runs export calm-heron > run.jsonl
                                           everything recorded, one JSON object per line
  afnio runs stop calm-heron               end a running run after its step; --now cuts it off
  afnio runs pause calm-heron              send nothing more until `resume`, also if it is started again
  afnio runs limit calm-heron --requests-per-minute 60 --max-cost 2
                                           slow it down, and end it at $2; "none" lifts a limit
  afnio runs rm calm-heron --yes           delete a run and its journal

RUN is a name, an id, namespace/project/name, or the beginning of one if only one run begins like that. `rm` doesn't
accept the beginning of a name.
"""

RUN: Final = "a name, an id, namespace/project/name, or the beginning of one"


def runs_main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code: 0 done, 1 failed, 2 wrong arguments."""
    options = _parser().parse_args(argv)
    from afnio.errors import AfnioError

    commands: dict[str, Callable[[Runs, argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "compare": _compare,
        "rm": _remove,
        "export": _export,
        **dict.fromkeys(("stop", "pause", "resume", "limit"), _order),
    }
    try:
        with Runs(options.dir) as runs:
            return commands[options.command](runs, options)
    except (AfnioError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        sys.stderr.write(f"afnio: {error}\n")
        return 1


def _parser() -> Parser:
    parser = Parser(
        prog="afnio runs",
        description="List, show, compare, control, delete and export the runs recorded on this machine.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = Parser(add_help=False)
    common.add_argument("--dir", metavar="FOLDER", help="the folder of runs (default: AFNIO_HOME, or .afnio)")
    as_json = Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", parents=[common, as_json], help="list runs, newest first")
    listing.add_argument("--project", metavar="NAMESPACE/PROJECT", help="only runs of this project")
    listing.add_argument(
        "--status",
        type=str.upper,
        metavar="STATUS",
        help="only runs with this status: RUNNING, COMPLETED, FAILED or CRASHED",
    )
    show = commands.add_parser("show", parents=[common, as_json], help="show one run")
    _complete(show.add_argument("run", metavar="RUN", help=RUN))
    compare = commands.add_parser(
        "compare", parents=[common, as_json], help="compare two runs, sample by sample"
    )
    _complete(compare.add_argument("first", metavar="RUN", help="the baseline"))
    _complete(compare.add_argument("second", metavar="RUN", help="the run to compare with it"))
    stop = commands.add_parser("stop", parents=[common], help="end a run after its step, with a result")
    stop.add_argument("--now", action="store_true", help="cut off what is in flight")
    pause = commands.add_parser("pause", parents=[common], help="send nothing more; what is in flight ends")
    resume = commands.add_parser("resume", parents=[common], help="let a paused run go on")
    limit = commands.add_parser("limit", parents=[common], help="limit all calls of a run together")
    for name in LIMITS:
        about = "dollars of the run" if name == "max_cost" else name.removeprefix("max_").replace("_", " ")
        limit.add_argument(
            f"--{name.replace('_', '-')}", metavar="N", help=f'the most {about}; "none" lifts it'
        )
    for order in (stop, pause, resume, limit):
        _complete(order.add_argument("run", metavar="RUN", help=RUN))
    remove = commands.add_parser("rm", parents=[common], help="delete runs and their journals")
    remove.add_argument(
        "runs", metavar="RUN", nargs="+", help="a full name, an id, or namespace/project/name"
    )
    remove.add_argument("--yes", action="store_true", help="don't ask for confirmation")
    export = commands.add_parser(
        "export", parents=[common], help="print everything recorded of a run, as JSON lines"
    )
    _complete(export.add_argument("run", metavar="RUN", help=RUN))
    export.add_argument(
        "--out", metavar="FILE", help="a file that only you can read (default: standard output)"
    )
    return parser


def _complete(argument: argparse.Action) -> None:
    """Let a shell complete an argument by the names of runs, as argcomplete asks for them."""

    def names(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        with Runs(parsed_args.dir) as runs:
            return [one.run.name for one in runs.all()]

    argument.completer = names  # type: ignore[attr-defined]


def _list(runs: Runs, options: argparse.Namespace) -> int:
    project = None if options.project is None else as_stored(options.project)
    wanted = [
        one
        for one in runs.all()
        if project in (None, f"{one.run.namespace}/{one.run.project}")
        and options.status in (None, one.run.status)
    ]
    wanted.sort(key=lambda one: -one.run.date_created)
    summaries = [summary(one) for one in wanted]
    say(_json(summaries) if options.json else list_text(summaries, runs.home))
    if summaries and not options.json:
        name = summaries[0]["name"]
        say_next(
            {
                f"afnio runs show {name}": "its result, calls and prompts",
                "afnio studio": "all runs in a browser",
            }
        )
    return 1 if runs.unreadable else 0


def _show(runs: Runs, options: argparse.Namespace) -> int:
    facts = details(runs.choose(options.run))
    say(_json(facts) if options.json else show_text(facts))
    if not options.json:
        name = facts["name"]
        say_next({f"afnio report {name}": "the run as a page", f"afnio prompts export {name}": "its prompts"})
    return 0


def _compare(runs: Runs, options: argparse.Namespace) -> int:
    comparison = compared(runs.choose(options.first), runs.choose(options.second))
    say(_json(comparison) if options.json else compare_text(comparison))
    if not options.json:
        say_next({"afnio studio": "the samples that differ, in a browser"})
    return 0


def _order(runs: Runs, options: argparse.Namespace) -> int:
    chosen = runs.choose(options.run)
    limits = {} if options.command != "limit" else {name: getattr(options, name) for name in LIMITS}
    command: Any = "stop now" if options.command == "stop" and options.now else options.command
    try:
        numbers = {name: number_of(text) for name, text in limits.items() if text is not None}
        order = Order(command, "command line", numbers)
    except ValueError as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 2
    say(printable(give(chosen.run, order)))
    return 0


def _remove(runs: Runs, options: argparse.Namespace) -> int:
    import sqlite3

    from afnio.tellurio._store import remove_run

    chosen = [runs.choose(word, whole=True) for word in options.runs]
    running = [one.run.path for one in chosen if one.run.is_running]
    if running:
        sys.stderr.write(f"afnio: {running[0]} is still running; end its program first\n")
        return 1
    names = ", ".join(one.run.path for one in chosen)
    if not options.yes:
        if not sys.stdin.isatty():
            sys.stderr.write(f"afnio: this would delete {names}; add --yes to confirm.\n")
            return 2
        if input(f"Delete {names}? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    for reader, run in chosen:
        reader.close()
        try:
            remove_run(run.store, run.id)
        except sqlite3.Error as error:
            sys.stderr.write(f"afnio: {run.path} can't be deleted ({error})\n")
            return 1
        say(f"deleted {run.path}")
    return 0


def _export(runs: Runs, options: argparse.Namespace) -> int:
    import os
    import stat

    chosen = runs.choose(options.run)
    if options.out is None:
        sys.stdout.writelines(f"{line}\n" for line in lines(chosen))
        return 0
    descriptor = os.open(options.out, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # an existing file keeps its old mode otherwise
            os.fchmod(descriptor, 0o600)
            file.truncate()
        file.writelines(f"{line}\n" for line in lines(chosen))
    return 0


def _json(value: Any) -> str:
    """Return JSON that every parser accepts. It is ASCII, and NaN and infinities, which JSON doesn't have, are null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


# Runs as data.


def summary(chosen: Chosen) -> dict[str, Any]:
    """Return a run as `list` shows it."""
    reader, run = chosen
    metrics = {one.name: one.value for one in reader.last_metrics(run.id)}
    headline = reader.headline(run.id)
    card = card_of(reader, run.id, rows=False)
    return {
        "id": run.id,
        "name": run.name,
        "namespace": run.namespace,
        "project": run.project,
        "status": run.status,
        "description": run.description,
        "date_created": run.date_created,
        "date_updated": run.date_updated,
        "seconds": run.seconds,
        "git_commit": run.git_commit,
        "config": run.config,
        "verdict": None if card is None else card.verdict,
        "headline": None if headline is None else asdict(headline),
        "metrics": metrics,
        **_totals(reader.spending(run.id)),
        "store": str(run.store),
    }


def details(chosen: Chosen) -> dict[str, Any]:
    """Return a run as `show` shows it."""
    reader, run = chosen
    evidence, candidates = reader.evidence_counts(run.id), reader.candidate_counts(run.id)
    card = card_of(reader, run.id)
    return {
        **summary(chosen),
        "card": None if card is None else card.to_json(),
        "versions": run.versions,
        "platform": run.platform,
        "identity": run.identity,
        "in_flight": run.in_flight,
        "waiting": run.waiting,
        "dropped": run.dropped,
        "places": run.places,
        "orders": [
            order.to_json() | {"text": str(order), "time": time} for order, time in reader.orders(run.id)
        ],
        "purposes": {purpose: asdict(spent) for purpose, spent in reader.spending(run.id).items()},
        "phases": {phase.phase: phase.samples for phase in reader.phases(run.id)},
        "parameters": [{**asdict(one), "since": one.since} for one in reader.parameters(run.id)],
        "steps": [
            {
                "number": step.number,
                "optimizer": step.optimizer,
                "error": step.error,
                "changed": step.changed,
                "rejected": {change.role: change.rejected for change in step.changes if change.rejected},
                "kept": [{"roles": roles, "reason": reason} for roles, reason in step.kept],
                "evidence": sum(evidence.get(change.id, 0) for change in step.changes),
                "candidates": candidates.get(step.id, 0),
            }
            for step in reader.steps(run.id)
        ],
    }


def compared(first: Chosen, second: Chosen) -> dict[str, Any]:
    """Return two runs, and the paired differences over the samples that both evaluated."""
    comparison = compare(*(Scores(one.reader.scores(one.run.id)) for one in (first, second)))
    return {
        "first": summary(first),
        "second": summary(second),
        "claim": comparison.claim(first.run.name, second.run.name),
        "last": comparison.last._asdict(),
        "phases": [{**asdict(one), "paired": one.paired._asdict()} for one in comparison.kinds],
    }


# Runs as text.

# Metrics of a run in a list.
SHOWN_METRICS: Final = 3
# Characters of a parameter's value.
SHOWN_TEXT: Final = 2_000


def list_text(runs: Sequence[Mapping[str, Any]], home: Path) -> str:
    if not runs:
        return f"No runs in {home}{'.' if home.exists() else f': {MISSING}'}"
    rows = [("RUN", "STATUS", "STARTED", "CALLS", "COST", "RESULT")]
    for run in runs:
        names = _shown(run)
        metrics = [f"{name} {_metric(run, name)}" for name in names[:SHOWN_METRICS]]
        more = len(names) - len(metrics)
        rows.append(
            (
                printable(f"{run['namespace']}/{run['project']}/{run['name']}"),
                run["status"],
                _date(run["date_created"]),
                f"{run['calls']:,}",
                _dollars(run["cost"]),
                printable(run["verdict"] or ", ".join(metrics) + (f", {more} more" if more else "")),
            )
        )
    return "\n".join(fitted(rows, shell_width()))


def show_text(run: Mapping[str, Any]) -> str:
    lines = [
        printable(f"{run['namespace']}/{run['project']}/{run['name']}  {run['status']}"),
        *_card_lines(run["card"]),
        f"  id        {run['id']}",
        f"  started   {_date(run['date_created'])}, last written {_date(run['date_updated'])}",
        f"  commit    {run['git_commit'] or '-'}",
        f"  store     {run['store']}",
    ]
    if run["description"]:
        lines.append(f"  about     {printable(run['description'])}")
    if run["config"]:
        config = run["config"] if isinstance(run["config"], dict) else {"(unreadable)": run["config"]}
        settings = ", ".join(f"{name}={value!r}" for name, value in config.items())
        lines.append(f"  config    {printable(settings)}")
    if run["dropped"]:
        lines.append(f"  missing   {run['dropped']:,} events, because the disk was too slow")
    lines += [f"  order     {printable(one['text'])}, {_date(one['time'])}" for one in run["orders"]]
    lines += [
        f"  {printable(name):<30} {_metric(run, name)}{_interval(run['metrics'], name)}"
        for name in _shown(run)
    ]
    for purpose, spent in run["purposes"].items():
        lines.append(
            f"  {purpose:<10} {spent['calls']:>8,} calls  {spent['failed']:>5,} failed  "
            f"{spent['replayed']:>6,} replayed  {spent['prompt_tokens']:>11,} in  "
            f"{spent['completion_tokens']:>10,} out  {_dollars(spent['cost'])}"
            + (f"  {spent['cancelled']:,} cancelled" if spent["cancelled"] else "")
        )
    for step in run["steps"]:
        changed = ", ".join(step["changed"]) or "nothing"
        parts = [f"  step {step['number']} ({step['optimizer']}) changed {changed}"]
        parts += [f"kept {', '.join(one['roles'])}: {one['reason']}" for one in step["kept"]]
        if step["error"]:
            parts.append(f"failed: {step['error']}")
        lines.append(printable("; ".join(parts)))
    last = {one["number"]: one for one in run["parameters"]}
    for one in last.values():
        text = one["value"] if len(one["value"]) <= SHOWN_TEXT else one["value"][:SHOWN_TEXT] + " …"
        indented = printable(text).replace("\n", "\n    ")
        lines += [printable(f"  {one['role']}, since {one['since']}:"), f"    {indented}"]
    return "\n".join(lines)


def _card_lines(data: Mapping[str, Any] | None) -> list[str]:
    """Return what the run found: the same as its page, without prompts, which follow below, and rows."""
    if data is None:
        return []
    card = Card.from_json(data)
    facts = [(bar.name, str(bar)) for bar in card.bars] + list(card.facts)
    facts += [(title.lower(), f"{len(rows):,} rows") for title, rows in card.groups]
    return [printable(line) for line in (card.verdict, *(f"  {name:<9} {text}" for name, text in facts), "")]


def compare_text(comparison: Mapping[str, Any]) -> str:
    first, second = comparison["first"], comparison["second"]
    lines = [
        printable(
            f"{first['name']} ({first['status']}, {first['calls']:,} calls, {_dollars(first['cost'])})"
        ),
        printable(
            f"{second['name']} ({second['status']}, {second['calls']:,} calls, {_dollars(second['cost'])})"
        ),
    ]
    lines.append(comparison["claim"])
    shared = [name for name in _shown(first) if name in second["metrics"]]
    lines += [
        f"  {printable(name):<30} {_value(first['metrics'][name]):>10}  {_value(second['metrics'][name]):>10}"
        for name in shared
    ]
    if not comparison["last"]["samples"]:
        lines.append("  no sample was evaluated in both runs, so their scores can't be paired")
    elif not comparison["phases"]:
        lines.append("  the runs have no kind of phase in common")
    for phase in comparison["phases"]:
        lines.append(
            printable(f"  {phase['first'] or 'no phase'} vs {phase['second'] or 'no phase'}")
            + f": {_mean(phase['means'][0])} → {_mean(phase['means'][1])}; {_paired(phase['paired'])}"
        )
    if comparison["last"]["samples"]:
        lines.append(f"  last evaluation of each sample: {_paired(comparison['last'])}")
    return "\n".join(lines)


def printable(text: str) -> str:
    """Return text with control and invisible characters as escapes, so that it can't control the terminal.

    >>> printable("a\\x1b[2Jb\\u202ec")
    'a\\\\x1b[2Jb\\\\u202ec'
    """
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text
    )


def _totals(spending: Mapping[str, Spending]) -> dict[str, Any]:
    total = sum(spending.values(), Spending())
    return {
        "calls": total.calls,
        "failed": total.failed,
        "cancelled": total.cancelled,
        "replayed": total.replayed,
        "tokens": total.prompt_tokens + total.completion_tokens,
        "cost": total.cost,
        "unpriced": total.unpriced,
    }


def _shown(run: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics to show, the headline first."""
    headline = run["headline"]
    return ranked(run["metrics"], None if headline is None else headline["metric"])


def _metric(run: Mapping[str, Any], name: str) -> str:
    text, headline = _value(run["metrics"][name]), run["headline"]
    if headline is None or headline["metric"] != name or headline["best"] is None:
        return text
    return f"{text} (best {_value(headline['best'])} at {headline['unit']} {headline['step']})"


def _interval(metrics: Mapping[str, Any], name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"  95 %: {_value(low)} to {_value(high)}"


def _paired(paired: Mapping[str, Any]) -> str:
    interval = "no interval"
    if paired["low"] is not None:
        interval = f"{paired['low']:+.3f} to {paired['high']:+.3f} (95 %)"
    return (
        f"{paired['samples']} samples in both: {paired['won']} won, {paired['lost']} lost, "
        f"{paired['difference']:+.3f}, {interval}"
    )


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return printable(text if len(text) <= 40 else text[:39] + "…")


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _dollars(cost: float | None) -> str:
    return "-" if cost is None else f"${cost:.4f}"


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


# Everything recorded of a run.

TABLES: Final = (
    "metrics", "texts", "tables", "parameters", "steps", "changes", "evidence", "blocks", "candidates",
    "nodes", "samples", "calls", "retries", "events",
)  # fmt: skip
JSON_COLUMNS: Final = frozenset(
    {"columns", "rows", "parents", "vals", "scores", "payload", "dropped", "samples"}
)


def lines(chosen: Chosen) -> Iterator[str]:
    """Yield JSON objects {"table": …, …}: the run, then the rows of its tables, calls with their texts."""
    reader, run = chosen
    yield _line({"table": "runs", **asdict(run), "store": str(run.store)})
    for table in TABLES:
        for row in reader.rows(table, run.id):
            record = {name: loaded(value) if name in JSON_COLUMNS else value for name, value in row.items()}
            if table == "calls":
                record |= asdict(reader.call_texts(row["id"]))
            elif (table, "value" in row) == ("metrics", True):
                record["value"] = loaded(row["value"])
            yield _line({"table": table, **record})


def _line(row: dict[str, Any]) -> str:
    # ASCII only, so no character of a prompt can end a line or control the terminal.
    return json.dumps(row)


# Finding runs.


class Chosen(NamedTuple):
    """A run, and the open store that it is in."""

    reader: StoreReader
    run: RunRecord


class Runs:
    """The runs under a folder of stores. A context manager, because it keeps the stores open.

    A store that can't be read is reported on standard error and skipped.
    """

    def __init__(self, folder: str | None) -> None:
        self.home: Path = home_folder(folder)
        self.unreadable = 0
        self._files = ExitStack()

    def all(self) -> Iterator[Chosen]:
        """Yield all runs, project by project, newest first."""
        for store in stores(self.home):
            try:
                reader = self._files.enter_context(StoreReader(store))
                runs = reader.runs()
            except StoreProblemError as error:
                self.unreadable += 1
                sys.stderr.write(f"afnio: {error}\n")
                continue
            for run in runs:
                yield Chosen(reader, run)

    def choose(self, word: str, *, whole: bool = False) -> Chosen:
        """Return the run that a word means, by the rules of `afnio.tellurio._queries.choose`.

        Raises:
            ChoiceError: if the word means no run, or several.
        """
        everything = list(self.all())
        run = choose(word, [one.run for one in everything], self.home, whole=whole)
        return next(one for one in everything if one.run is run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()
