"""`afnio journal`: look at a journal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afnio.runtime._journal_file import JournalStat


def main(argv: Sequence[str]) -> int:
    """Run the command and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="afnio journal", description="Look at a journal.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    stat = commands.add_parser("stat", help="what it holds and what was spent, also while it is written")
    stat.add_argument("path", help="the journal's file")
    stat.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    return _stat(options.path, as_json=options.json)


def _stat(path: str, *, as_json: bool) -> int:
    from afnio.errors import JournalError
    from afnio.runtime._journal import Journal

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
