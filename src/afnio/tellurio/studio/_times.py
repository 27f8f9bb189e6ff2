"""Where the time went: the calls of a run by purpose and model, and those of one step as a waterfall.

A mean says little about calls: a few slow ones hold up a step. So the table has the time that half of the calls took
at most, and the time of 95 %. The waterfall has a row for each phase, purpose and model, in the order in which they
began, with a bar for each call: light while it waited in the queue or between attempts, dark on the wire.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import CallRecord, Spending

# The most rows of a waterfall.
ROWS: Final = 30
# The most bars of a waterfall; of more calls, evenly chosen ones have a bar.
BARS: Final = 600
# The most bars below one another in a row.
LANES: Final = 24
# Units of its time axis.
WIDTH: Final = 1000.0


class TimeShare(NamedTuple):
    """The time of the calls of one purpose to one model.

    Attributes:
        share: of the time on the wire of all calls.
        half, most: seconds on the wire within which half, and 95 %, of the calls ended.
        waited: seconds in the queue and between attempts, of a call on average.
    """

    purpose: str
    model: str
    spent: Spending
    share: float
    half: float
    most: float
    waited: float


def time_shares(
    models: Mapping[tuple[str, str], Spending], times: Mapping[tuple[str, str], array[int]]
) -> list[TimeShare]:
    """Return where the time went, the largest share first.

    Args:
        times: the milliseconds on the wire of each call.

    >>> spent = {("forward", "m"): Spending(calls=20, seconds=6.0), ("step", "m"): Spending(calls=1, seconds=2.0)}
    >>> taken = {("forward", "m"): array("Q", [100] * 18 + [2100] * 2), ("step", "m"): array("Q", [2000])}
    >>> [one[0::3] for one in time_shares(spent, taken)]
    [('forward', 0.75, 0.0), ('step', 0.25, 0.0)]
    >>> [one[4:6] for one in time_shares(spent, taken)]
    [(0.1, 2.1), (2.0, 2.0)]
    """
    whole = sum(spent.seconds for spent in models.values()) or 1.0
    found = []
    for key, spent in models.items():
        ordered = sorted(times[key])
        half, most = (ordered[math.ceil(part * len(ordered)) - 1] / 1000 for part in (0.5, 0.95))
        found.append(TimeShare(*key, spent, spent.seconds / whole, half, most, spent.waited / spent.calls))
    return sorted(found, key=lambda one: (-one.share, one.purpose, one.model))


class CallBar(NamedTuple):
    """One call: where its bar begins, where it went on the wire, and its length there, in units of the axis.

    Attributes:
        lane: its place below the first call of its row; the more calls, the more of them share one.
    """

    begin: float
    sent: float
    length: float
    failed: bool
    lane: int


class WaterfallRow(NamedTuple):
    """The calls of one phase, purpose and model in a step; times are seconds since the step's first call."""

    phase: str
    purpose: str
    model: str
    calls: int
    first: float
    last: float
    lanes: int
    bars: list[CallBar]


def waterfall(reader: StoreReader, run: str, number: int) -> dict[str, Any]:
    """Return the rows of a step's calls, those that ended between the step before and this one."""
    groups, calls = reader.calls_of_step(run, number, BARS)
    if not groups:
        return {"rows": [], "seconds": 0.0, "calls": 0, "bars": 0, "more": 0}
    begin, end = min(one.first for one in groups), max(one.last for one in groups)
    unit = WIDTH / max(end - begin, 1e-3)
    drawn: dict[tuple[str, str, str], list[CallRecord]] = {}
    for call in sorted(calls, key=lambda call: call.started):
        drawn.setdefault((call.phase, call.purpose, call.model), []).append(call)
    rows = []
    for one in sorted(groups, key=lambda one: one.first):
        some = drawn.get(one[:3], [])
        lanes = min(LANES, max(1, len(some)))
        bars = [
            CallBar(
                (call.started - begin) * unit,
                (call.started + call.waited - begin) * unit,
                max(1.0, call.seconds * unit),
                call.status == "failed",
                place * lanes // len(some),
            )
            for place, call in enumerate(some)
        ]
        rows.append(WaterfallRow(*one[:4], one.first - begin, one.last - begin, lanes, bars))
    return {
        "rows": rows[:ROWS],
        "seconds": end - begin,
        "calls": sum(one.calls for one in groups),
        "bars": len(calls),
        "more": len(rows[ROWS:]),
    }
