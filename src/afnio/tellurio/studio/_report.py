"""Report: one run as one HTML file that needs nothing else, neither a server nor a network."""

from __future__ import annotations

import base64
import hashlib
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from afnio.errors import StoreProblemError
from afnio.tellurio._queries import RunRecord, StoreReader, choose
from afnio.tellurio.studio._run import run_page, step_rows
from afnio.tellurio.studio._runs import RunRow, Shelf, Tallies, row_of, shelves
from afnio.tellurio.studio._sample import call_page
from afnio.tellurio.studio._step import lineage_page, step_page
from afnio.tellurio.studio._text import FOLDER, render

STEPS: Final = 50
"""Steps that are told, the last."""
SAMPLES: Final = 100
FAILURES: Final = 20

STYLES: Final = ("vendor/uplot.min.css", "studio.css")
SCRIPTS: Final = ("theme.js", "vendor/uplot.min.js", "charts.js", "studio.js")


def write_report(home: Path, wanted: str, path: Path | None = None) -> Path:
    """Write the report of a run and return the file: `path`, else one named after the run, here.

    The file holds prompts and replies, so it is this user's alone; a reader sees the whole or what was
    there before.

    Args:
        home: the folder with the stores.
        wanted: the run's id or the beginning of it, its name, or `namespace/project/name`.

    Raises:
        ChoiceError: if there isn't exactly one such run.
        StoreProblemError: if its store can't be read.
    """
    shelf, run = find(home, wanted)
    with StoreReader(shelf.path) as reader, reader.moment() as db:
        text = report(db, run)
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in run.name).strip("-.")
    target = path or Path(f"{safe[:60] or 'run'}.html")
    descriptor, name = tempfile.mkstemp(prefix=".report-", suffix=".html", dir=target.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def find(home: Path, wanted: str) -> tuple[Shelf, RunRow]:
    """Return the one run that is meant, by the rules of `afnio runs`."""
    found = list(_runs(home))
    run = choose(wanted, [one for _, one in found], home)
    return next((shelf, row_of(shelf, one)) for shelf, one in found if one is run)


def report(db: sqlite3.Connection, run: RunRow) -> str:
    """Return the report's HTML."""
    page = run_page(db, run, Tallies())
    page["steps"] = step_rows(db, run.id, max(0, page["step_count"] - STEPS))
    styles = [Markup((FOLDER / "static" / name).read_text(encoding="utf-8")) for name in STYLES]  # noqa: S704
    scripts = [Markup((FOLDER / "static" / name).read_text(encoding="utf-8")) for name in SCRIPTS]  # noqa: S704
    return render(
        "report.html",
        **page,
        policy=policy(styles, scripts),
        styles=styles,
        scripts=scripts,
        written=time.time(),
        version=metadata.version("afnio"),
        step_pages=[found for step in page["steps"] if (found := step_page(db, run, step.number))],
        # What the reader wants to see first is what a step did, so the last one that did something is open.
        opened=max((step.number for step in page["steps"] if step.changed), default=None),
        tree=lineage_page(db, run) if page["has_candidates"] else None,
        samples=_samples(db, run.id),
        failures=_failures(db, run),
    )


def policy(styles: list[Markup], scripts: list[Markup]) -> str:
    """Return the policy under which these styles and scripts run, and nothing that a text may smuggle in."""

    def hashes(texts: list[Markup]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {hashes(styles)}; script-src {hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _runs(home: Path) -> Iterator[tuple[Shelf, RunRecord]]:
    for shelf in shelves(home):
        try:
            with StoreReader(shelf.path) as reader:
                runs = reader.runs()
        except StoreProblemError:
            continue  # it may be another one's store that is damaged
        yield from ((shelf, run) for run in runs)


def _samples(db: sqlite3.Connection, run: str) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT * FROM samples WHERE run_id = ? AND success = 0 ORDER BY id DESC LIMIT ?", (run, SAMPLES)
    )
    return [dict(row) for row in rows.fetchall()]


def _failures(db: sqlite3.Connection, run: RunRow) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT id FROM calls WHERE run_id = ? AND status = 'failed' ORDER BY id DESC LIMIT ?",
        (run.id, FAILURES),
    ).fetchall()
    return [found for row in rows if (found := call_page(db, run, row["id"]))]
