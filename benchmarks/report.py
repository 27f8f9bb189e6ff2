"""Report: tables for people and a JSON file with everything needed to compare it later."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("anyio", "aiohttp", "openai", "pydantic", "tenacity")


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure and how far it is to reach.

    Attributes:
        value: what was measured; None if it could not be.
        reach: the least that `value` should be, or the most.
        why: the reason found, shown where the reach is not met.
    """

    what: str
    value: float | None
    reach: float
    at_least: bool = False
    why: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.reach if self.at_least else self.value <= self.reach

    def cells(self) -> list[str]:
        """Return what a table shows of it."""
        met = {True: "yes", False: "NO", None: "not measured"}[self.met]
        return [self.what, shown(self.value), f"{'≥' if self.at_least else '≤'} {self.reach:g}", met]


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": _git("rev-parse", "--short", "HEAD")
        + ("+" if _git("status", "--porcelain", "src") else ""),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds of this process that `function` took."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def interval(values: Sequence[float]) -> str:
    """Return the lowest and the highest of some rounds."""
    return f"{shown(min(values))} to {shown(max(values))}"


def shown(value: Any) -> str:
    """Return a cell: three digits of a float, all digits of a large one."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value)


def show(
    name: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    notes: Sequence[str] = (),
    claims: Sequence[Claim] = (),
) -> None:
    """Print a table, what it says of the claims, and write `results/<name>.json`."""
    console = Console(width=max(100, Console().width))
    console.print(_table(name, columns, rows))
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    show_claims(console, f"{name}: reach", claims)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "machine": machine(),
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
        "claims": [
            {
                "what": c.what,
                "value": c.value,
                "reach": c.reach,
                "at_least": c.at_least,
                "met": c.met,
                "why": c.why,
            }
            for c in claims
        ],
        "notes": list(notes),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False))


def show_claims(console: Console, title: str, claims: Sequence[Claim]) -> None:
    """Print each claim with its reach, and the reason found for one that falls short."""
    if not claims:
        return
    console.print(_table(title, ["what", "measured", "reach", "met"], [claim.cells() for claim in claims]))
    for claim in claims:
        if not claim.met and claim.why:
            console.print(f"{claim.what}: {claim.why}", style="dim", highlight=False, markup=False)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(shown(value) for value in row))
    return table


def _git(*arguments: str) -> str:
    folder = Path(__file__).parents[1]
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
