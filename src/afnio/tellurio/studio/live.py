"""Live: what changes on a run's page while it goes on, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import anyio
from anyio import to_thread

from afnio.tellurio.opening import StoreProblemError
from afnio.tellurio.reader import Reader
from afnio.tellurio.studio.library import Shelf
from afnio.tellurio.studio.rendering import dollars, number, score, seconds
from afnio.tellurio.studio.run_page import figures
from afnio.tellurio.studio.run_rows import find_run
from afnio.tellurio.studio.tally import Tallies

PERIOD: Final = 0.5
"""Seconds between two looks at the store."""
BEAT: Final = 15.0
"""Seconds after which a stream without news says that it is still there."""


async def events(shelf: Shelf, run: str, tallies: Tallies) -> AsyncIterator[str]:
    """Yield an event whenever the run's figures differ from those before, until it has ended or is gone."""
    before, told = "", anyio.current_time()
    yield "retry: 2000\n\n"
    while True:
        found = await to_thread.run_sync(_look, shelf, run, tallies, abandon_on_cancel=True)
        text = json.dumps(found)
        if text != before:
            before, told = text, anyio.current_time()
            yield f"data: {text}\n\n"
        elif anyio.current_time() - told > BEAT:
            told = anyio.current_time()
            yield ": still here\n\n"
        if found.get("ended"):
            return
        await anyio.sleep(PERIOD)


def _look(shelf: Shelf, run: str, tallies: Tallies) -> dict[str, Any]:
    try:
        with Reader(shelf.path) as reader, reader.moment() as db:
            found = find_run(reader, shelf, run)
            if found is None:
                return {"problem": "This run has been removed.", "ended": True}
            fresh = figures(db, found, tallies)
    except StoreProblemError as error:
        # Another process may hold the store for a moment; what is damaged stays so.
        return {"problem": str(error), "ended": not error.passing}
    return {
        "numbers": shown(fresh["live"]),
        "curves": fresh["curves"],
        "steps": fresh["step_count"],
        "about": fresh["about"],
        "ended": not found.is_running,
    }


def shown(numbers: dict[str, Any]) -> dict[str, str]:
    """Return the live numbers as the page writes them; the same texts as in the templates.

    >>> shown({"calls": 1200, "cost": None, "metric": 0.5, "status": "RUNNING"})
    {'calls': '1,200', 'cost': 'unpriced', 'metric': '0.500', 'status': 'RUNNING'}
    """
    forms = {"cost": dollars, "metric": score, "rate": score, "seconds": seconds}
    found = {}
    for name, value in numbers.items():
        if name == "status":
            found[name] = value
        elif name == "metric_name":
            found[name] = value or "Score"
        elif isinstance(value, str):
            found[name] = value
        else:
            found[name] = forms.get(name, number)(value)
    return found
