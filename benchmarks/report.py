"""Report: a table for people and a JSON file with everything needed to compare it later."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("anyio", "aiohttp", "openai", "pydantic", "tenacity")


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in LIBRARIES},
        "commit": commit,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Return the wall seconds and the CPU seconds of this process that `function` took."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def show(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> None:
    """Print a table and write `results/<name>.json`."""
    table = Table(title=name, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    console = Console(width=max(80, Console().width))
    console.print(table)
    for note in notes:
        console.print(note, style="dim", highlight=False)
    RESULTS.mkdir(exist_ok=True)
    document = {
        "benchmark": name,
        "machine": machine(),
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
        "notes": list(notes),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=1))
