"""Runs: one line of JSON for each in a file that only grows, so that a benchmark can be done in pieces.

A run that the file has isn't repeated. A run that was interrupted left no line, and is done anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from benchmarks import report
from benchmarks.learning.outcome import Key, Outcome


class RunFile:
    """The runs in `results/learning/<name>.jsonl`."""

    def __init__(self, name: str) -> None:
        self.path = report.RESULTS / "learning" / f"{name}.jsonl"
        self.found: dict[Key, Outcome] = {run.key: run for run in read([self.path])}

    def add(self, outcome: Outcome) -> None:
        """Write a run; one without scores isn't kept, so that it is tried again."""
        self.found[outcome.key] = outcome
        if not outcome.scores:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write in append mode: of two commands on one file none breaks the other's line.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, f"{outcome.line()}\n".encode())
        finally:
            os.close(handle)


def read(paths: Iterable[Path]) -> list[Outcome]:
    """Return the runs in these files; of files that don't exist, none."""
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    return [Outcome.of(line) for line in lines if line]
