"""`afnio runs`: list, show, compare, remove and export the runs of the local stores."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

EXAMPLES: Final = """\
examples:
  afnio runs list --project me/emails     what there is, newest first
  afnio runs list --json | jq '.[0].id'   the same for programs
  afnio runs show calm-heron              one run: metrics, calls and costs, prompts, steps
  afnio runs compare calm-heron keen-lynx paired differences on the samples that both evaluated
  afnio runs export calm-heron > run.jsonl
                                          all that is recorded, one JSON object on each line
  afnio runs rm calm-heron --yes          delete it, with its journal

A RUN is a name, an id, namespace/project/name, or the beginning of one if no other run begins so. `rm` wants names in
full.
"""

RUN: Final = "a name, an id, namespace/project/name, or the beginning of one"


def main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code: 0 done, 1 failed, 2 wrong arguments."""
    options = _parser().parse_args(argv)
    from afnio.cli.run_choice import Runs
    from afnio.errors import AfnioError

    commands: dict[str, Callable[[Any, argparse.Namespace], int]] = {
        "list": _list,
        "show": _show,
        "compare": _compare,
        "rm": _remove,
        "export": _export,
    }
    try:
        with Runs(options.dir) as runs:
            return commands[options.command](runs, options)
    except (AfnioError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        sys.stderr.write(f"afnio: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="afnio runs",
        description="Look at the runs of the local stores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir", metavar="FOLDER", help="the stores' folder (default: AFNIO_HOME, else .afnio)"
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", parents=[common, as_json], help="the runs, newest first")
    listing.add_argument("--project", metavar="NAMESPACE/PROJECT", help="only those of one project")
    listing.add_argument(
        "--status", type=str.upper, help="only those that are RUNNING, COMPLETED, FAILED, CRASHED"
    )
    show = commands.add_parser("show", parents=[common, as_json], help="one run")
    show.add_argument("run", metavar="RUN", help=RUN)
    compare = commands.add_parser("compare", parents=[common, as_json], help="two runs, sample by sample")
    compare.add_argument("first", metavar="RUN", help="the baseline")
    compare.add_argument("second", metavar="RUN", help="what is compared with it")
    remove = commands.add_parser("rm", parents=[common], help="delete runs and their journals")
    remove.add_argument(
        "runs", metavar="RUN", nargs="+", help="a name in full, an id, or namespace/project/name"
    )
    remove.add_argument("--yes", action="store_true", help="don't ask")
    export = commands.add_parser("export", parents=[common], help="all of a run as JSON lines")
    export.add_argument("run", metavar="RUN", help=RUN)
    export.add_argument("--out", metavar="FILE", help="where to, with mode 0600 (default: standard output)")
    return parser


def _list(runs: Any, options: argparse.Namespace) -> int:
    from afnio.cli.run_text import list_text, summary

    wanted = [
        one
        for one in runs.all()
        if options.project in (None, f"{one.run.namespace}/{one.run.project}")
        and options.status in (None, one.run.status)
    ]
    wanted.sort(key=lambda one: -one.run.date_created)
    found = [summary(one) for one in wanted]
    _print(_json(found) if options.json else list_text(found, runs.home))
    return 1 if runs.unreadable else 0


def _show(runs: Any, options: argparse.Namespace) -> int:
    from afnio.cli.run_text import details, show_text

    found = details(runs.choose(options.run))
    _print(_json(found) if options.json else show_text(found))
    return 0


def _compare(runs: Any, options: argparse.Namespace) -> int:
    from afnio.cli.run_text import compare_text, compared

    found = compared(runs.choose(options.first), runs.choose(options.second))
    _print(_json(found) if options.json else compare_text(found))
    return 0


def _remove(runs: Any, options: argparse.Namespace) -> int:
    import sqlite3

    from afnio.tellurio._store import remove_run

    chosen = [runs.choose(word, whole=True) for word in options.runs]
    going_on = [one.run.path for one in chosen if one.run.status == "RUNNING"]
    if going_on:
        sys.stderr.write(f"afnio: [{going_on[0]}] is under way; end its program first.\n")
        return 1
    names = ", ".join(one.run.path for one in chosen)
    if not options.yes:
        if not sys.stdin.isatty():
            sys.stderr.write(f"afnio: this would delete {names}; add --yes.\n")
            return 2
        if input(f"Delete {names}? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    for reader, run in chosen:
        reader.close()
        try:
            remove_run(run.store, run.id)
        except sqlite3.Error as error:
            sys.stderr.write(f"afnio: [{run.path}] can't be deleted ({error}).\n")
            return 1
        _print(f"deleted {run.path}")
    return 0


def _export(runs: Any, options: argparse.Namespace) -> int:
    import os
    import stat

    from afnio.cli.run_export import lines

    chosen = runs.choose(options.run)
    if options.out is None:
        for line in lines(chosen):
            _print(line)
        return 0
    descriptor = os.open(options.out, os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):  # one that was there before has the mode it had
            os.fchmod(descriptor, 0o600)
            file.truncate()
        file.writelines(f"{line}\n" for line in lines(chosen))
    return 0


def _json(found: Any) -> str:
    """The data as JSON that every reader takes: it has no NaN, and nothing that a terminal would obey."""
    return json.dumps(_finite(found), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
