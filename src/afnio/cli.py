"""The command line: `afnio`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afnio.runtime.journal import JournalStat

EXAMPLES = """\
examples:
  afnio demo                              the tutorial's job against a simulated LM
  afnio provider --latency 0.2 --port 8000
                                          serve an OpenAI-compatible provider for tests
  afnio journal stat .afnio/me/project/RUN.journal
                                          what a run's journal holds, and what it cost
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code: 0 done, 1 failed, 2 wrong arguments."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # These have arguments of their own, and are imported only when they are asked for.
    if arguments[:1] == ["demo"]:
        from afnio.demo.__main__ import main as demo

        return demo(arguments[1:])
    if arguments[:1] == ["provider"]:
        from afnio.testing.command import main as provider

        provider(arguments[1:], prog="afnio provider")
        return 0
    options = _parser().parse_args(arguments)
    return _journal_stat(options.path, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="afnio",
        description="Optimize agents whose parameters are text.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("demo", help="the tutorial's job; see `afnio demo --help`")
    commands.add_parser("provider", help="a provider for tests; see `afnio provider --help`")
    journal = commands.add_parser("journal", help="look at a journal").add_subparsers(required=True)
    stat = journal.add_parser("stat", help="what it holds and what was spent, also while it is written")
    stat.add_argument("path", help="the journal's file")
    stat.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _journal_stat(path: str, *, as_json: bool) -> int:
    from afnio.errors import JournalError
    from afnio.runtime.journal import Journal

    try:
        stat = Journal.stat(path)
    except (JournalError, FileNotFoundError) as error:
        sys.stderr.write(f"afnio: {error}\n")
        return 1
    sys.stdout.write(json.dumps(_as_dict(stat), indent=1) if as_json else _as_text(stat))
    sys.stdout.write("\n")
    return 0


def _as_dict(stat: JournalStat) -> dict[str, object]:
    return {
        "path": str(stat.path),
        "version": stat.version,
        "records": stat.records,
        "bytes": stat.size,
        "first": stat.first,
        "last": stat.last,
        "spent": [{**item._asdict(), **asdict(spent)} for item, spent in sorted(stat.spent.items())],
    }


def _as_text(stat: JournalStat) -> str:
    lines = [
        f"{stat.path}",
        (
            f"  {stat.records:,} records, {stat.size:,} bytes, schema {stat.version}, "
            f"from {_date(stat.first)} to {_date(stat.last)}"
        ),
    ]
    for item, spent in sorted(stat.spent.items()):
        unknown = f", {spent.unknown} attempts that may have been paid" if spent.unknown else ""
        lines.append(
            f"  {item.purpose:<16} {item.model:<24} {spent.calls:>7,} calls "
            f"{spent.usage.prompt_tokens:>10,} in {spent.usage.completion_tokens:>9,} out{unknown}"
        )
    return "\n".join(lines)


def _date(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    sys.exit(main())
