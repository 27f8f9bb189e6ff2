"""Run export: all that is recorded of a run, one JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from afnio.cli.run_choice import Chosen
from afnio.tellurio._queries import loaded

TABLES: Final = (
    "metrics", "texts", "tables", "parameters", "steps", "changes", "evidence", "candidates", "nodes",
    "samples", "calls", "retries", "events",
)  # fmt: skip
JSON_COLUMNS: Final = frozenset({"columns", "rows", "parents", "vals", "scores", "payload"})


def lines(chosen: Chosen) -> Iterator[str]:
    """Yield the run, then the rows of its tables: {"table": …, …}; calls have their texts in them."""
    reader, run = chosen
    yield _line({"table": "runs", **asdict(run), "store": str(run.store)})
    for table in TABLES:
        for row in reader.rows(table, run.id):
            found = {name: loaded(value) if name in JSON_COLUMNS else value for name, value in row.items()}
            if table == "calls":
                found |= asdict(reader.call_texts(row["id"]))
            elif (table, "value" in row) == ("metrics", True):
                found["value"] = loaded(row["value"])
            elif table == "evidence":
                found["samples"] = loaded(row["samples"])
            yield _line({"table": table, **found})


def _line(row: dict[str, Any]) -> str:
    # Escaped, so that no character of a prompt can end a line or harm a terminal.
    return json.dumps(row)
