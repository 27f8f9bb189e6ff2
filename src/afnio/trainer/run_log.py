"""Run log: what the Trainer records in the active run of `te.init`, if there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final
from weakref import WeakKeyDictionary

from afnio.tellurio import Run, RunStatus, get_active_run
from afnio.tellurio.metrics import MONITOR
from afnio.trainer.metric import Outcome


@final
class RunLog:
    """Logs entries of the history: steps at their number, epochs and validation at the epoch's."""

    def __init__(self) -> None:
        self._logged: WeakKeyDictionary[Run, int] = WeakKeyDictionary()

    def entry(self, entry: Mapping[str, Any], cost: float | None = None) -> None:
        """Log one entry; `cost` in dollars so far, None where it isn't known."""
        run = active_run()
        if run is None:
            return
        outcome, kind = Outcome.from_json(entry), entry["kind"]
        prefix = "val" if kind == "val" else "train"
        suffix = "_step" if kind == "step" else ""
        found = {**outcome.flat(), **outcome.values}
        step = entry["epoch"] if kind != "step" else entry["step"]
        run.log({f"{prefix}_{name}{suffix}": value for name, value in found.items()}, step=step)
        if kind == "epoch" and cost is not None:
            run.log("total_cost($)", cost, step=step)
        self._logged[run] = self._logged.get(run, 0) + 1

    def monitor(self, metric: str, mode: str) -> None:
        """Record which metric says how well the training goes; readers show it first, with its best value."""
        run = active_run()
        if run is not None:
            run.record(MONITOR, {"metric": metric, "mode": mode, "unit": "epoch"})

    def history(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Log what a checkpoint brought along, unless this run has it: a continued one begins empty."""
        run = active_run()
        for entry in entries[0 if run is None else self._logged.get(run, 0) :]:
            self.entry(entry)

    def result(self, prefix: str, outcome: Outcome, cost: float | None) -> None:
        """Log what a pass of its own found."""
        run = active_run()
        if run is not None:
            found = {**outcome.flat(), **outcome.values}
            run.log({f"{prefix}_{name}": value for name, value in found.items()})
            if cost is not None:
                run.log("total_cost($)", cost)


def active_run() -> Run | None:
    """Return the run that takes metrics here, None if there is none."""
    try:
        run = get_active_run()
    except ValueError:
        return None
    return run if run.status is RunStatus.RUNNING else None
