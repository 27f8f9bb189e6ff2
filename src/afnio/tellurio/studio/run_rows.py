"""Rows of runs: what lists and heads of pages say of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from afnio.tellurio.reader import Reader
from afnio.tellurio.records import RunRecord
from afnio.tellurio.studio.library import Shelf

SPARK: Final = 200
"""Values of a metric that a sparkline looks at."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run as its store has it; dates in seconds since 1970 UTC."""

    shelf: Shelf
    id: str
    name: str
    description: str
    namespace: str
    project: str
    status: str
    config: dict[str, Any]
    created: float
    updated: float
    git_commit: str | None
    versions: dict[str, Any]
    platform: dict[str, Any]
    in_flight: int
    waiting: int
    dropped: int

    @property
    def url(self) -> str:
        parts = (self.shelf.namespace, self.shelf.project, self.id)
        return "/runs/" + "/".join(quote(part, safe="") for part in parts)

    @property
    def key(self) -> str:
        """What names the run in a query: its store and its id."""
        return f"{self.shelf.namespace}/{self.shelf.project}/{self.id}"

    @property
    def seconds(self) -> float:
        return max(0.0, self.updated - self.created)

    @property
    def is_running(self) -> bool:
        return self.status == "RUNNING"


def list_runs(reader: Reader, shelf: Shelf) -> list[RunRow]:
    """Return a store's runs, newest first."""
    return [row_of(shelf, run) for run in reader.runs()]


def find_run(reader: Reader, shelf: Shelf, wanted: str) -> RunRow | None:
    """Return the run of this id, or of this name."""
    run = reader.run(wanted)
    return None if run is None else row_of(shelf, run)


def loaded(text: str | bytes | None, default: Any = None) -> Any:
    """Return what JSON holds, `default` where it holds nothing readable."""
    if text is None:
        return default
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return default


def row_of(shelf: Shelf, run: RunRecord) -> RunRow:
    """Return a run as the studio's pages have it."""
    return RunRow(
        shelf=shelf,
        id=run.id,
        name=run.name,
        description=run.description or "",
        namespace=run.namespace,
        project=run.project,
        status=run.status,
        config=_mapping(run.config),
        created=run.date_created,
        updated=run.date_updated,
        git_commit=run.git_commit,
        versions=_mapping(run.versions),
        platform=_mapping(run.platform),
        in_flight=run.in_flight,
        waiting=run.waiting,
        dropped=run.dropped,
    )


def _mapping(value: Any) -> dict[str, Any]:
    # What a redaction left may be no JSON any more.
    return value if isinstance(value, dict) else {}


def flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested settings with their dotted names.

    >>> list(flattened({"model": {"name": "m", "n": 1}}))
    [('model.name', 'm'), ('model.n', '1')]
    """
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from flattened(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
