"""The report: one run as one HTML file that needs neither a server nor a network.

It has the studio's pages one after the other: what the run found, metrics, steps with their diffs and feedback, the
lineage, and the samples and calls that went wrong, the newest of each. Styles and scripts are in the file itself. Its
policy names their hashes, so nothing else in the file can run as a script, whatever a prompt contains.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from afnio import __version__
from afnio.errors import StoreProblemError
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import RunRecord
from afnio.tellurio._store import choose, stores
from afnio.tellurio.studio._runs import STEPS, Tallies, run_page, step_rows
from afnio.tellurio.studio._sample import call_page
from afnio.tellurio.studio._step import lineage_page, step_page
from afnio.tellurio.studio._text import FOLDER, render

# Samples that went wrong, the newest ones.
SAMPLES: Final = 100
# Calls that failed, the newest ones.
FAILURES: Final = 20

STYLES: Final = ("vendor/uplot.min.css", "studio.css")
SCRIPTS: Final = ("theme.js", "vendor/uplot.min.js", "charts.js", "studio.js")


def write_report(home: Path, wanted: str, path: Path | None = None) -> Path:
    """Write the report of a run and return its file.

    Only the current user can read the file: it contains prompts and replies. It is replaced atomically.

    Args:
        home: the folder of stores.
        wanted: a name, an id, `namespace/project/name`, or the beginning of one.
        path: the file to write; by default a file named after the run, in the working directory.

    Raises:
        ChoiceError: if there isn't exactly one such run.
        StoreProblemError: if its store can't be read.
    """
    run = find(home, wanted)
    with StoreReader(run.store) as reader, reader.moment():
        text = report(reader, run)
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


def find(home: Path, wanted: str) -> RunRecord:
    """Return the run that a user means, by the rules of `afnio runs`."""
    return choose(wanted, list(_runs(home)), home)


def _runs(home: Path) -> Iterator[RunRecord]:
    for store in stores(home):
        try:
            with StoreReader(store) as reader:
                runs = reader.runs()
        except StoreProblemError:
            continue  # the damaged store may be another project's; keep looking
        yield from runs


def report(reader: StoreReader, run: RunRecord) -> str:
    """Return the report's HTML."""
    page = run_page(reader, run, Tallies())
    page["steps"] = step_rows(reader, run.id, max(0, page["step_count"] - STEPS))
    styles = [Markup((FOLDER / "static" / name).read_text(encoding="utf-8")) for name in STYLES]  # noqa: S704
    scripts = [Markup((FOLDER / "static" / name).read_text(encoding="utf-8")) for name in SCRIPTS]  # noqa: S704
    return render(
        "report.html",
        **page,
        policy=policy(styles, scripts),
        styles=styles,
        scripts=scripts,
        written=time.time(),
        version=__version__,
        step_pages=[found for step in page["steps"] if (found := step_page(reader, run, step.number))],
        # Open the last step that changed a text: a reader wants to see first what the run has achieved.
        opened=max((step.number for step in page["steps"] if step.changed), default=None),
        tree=lineage_page(reader, run) if reader.newest("candidates", run.id) else None,
        samples=reader.samples(run.id, newest=True, success=False, limit=SAMPLES),
        failures=_failures(reader, run),
    )


def policy(styles: list[Markup], scripts: list[Markup]) -> str:
    """Return a content security policy that allows exactly these styles and scripts."""

    def hashes(texts: list[Markup]) -> str:
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; style-src {hashes(styles)}; script-src {hashes(scripts)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _failures(reader: StoreReader, run: RunRecord) -> list[dict[str, Any]]:
    calls = reader.calls(run.id, newest=True, status="failed", limit=FAILURES)
    return [page for call in calls if (page := call_page(reader, run, call.id))]
