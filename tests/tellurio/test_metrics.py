"""The metric that sums a run up."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

import afnio.tellurio as te
from afnio.cli import main


def headline(
    capsys: pytest.CaptureFixture[str], *logged: dict[str, Any], monitor: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """Log metrics and return the headline that `afnio runs list` shows."""
    with te.init("me", "emails", resume=False) as run:
        if monitor is not None:
            run.record("monitor", monitor)
        for values in logged:
            run.log(values)
    assert main(["runs", "list", "--json"]) == 0
    found: dict[str, Any] | None = json.loads(capsys.readouterr().out)[0]["headline"]
    return found


def plain(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "mode": None, "best": None, "step": None, "unit": "step"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val_failed", "val_score", "val_score_sum", "val_score_low", "val_score_high"], "val_score"),
        (["test_failed", "test_accuracy", "train_accuracy"], "test_accuracy"),
        (["train_failed_step", "train_score_low_step", "train_score_step"], "train_score_step"),
        (["alpha", "final_score"], "final_score"),
        (["failed", "val_score_sum", "high"], None),
    ],
)
def test_what_only_accompanies_a_metric_is_never_it(
    capsys: pytest.CaptureFixture[str], names: list[str], expected: str | None
) -> None:
    """Counts of failures, sums and bounds; with nothing monitored the names decide, and nothing is the best."""
    found = headline(capsys, dict.fromkeys(names, 0.5))
    assert (None if expected is None else plain(expected, 0.5)) == found


def test_the_monitored_metric_has_a_best_value(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of equals, with its step, in the direction that was named."""
    logged = [{"val_score": 0.1, "cost": value} for value in (0.5, 0.2, 0.4, 0.2, math.nan)]
    least = headline(capsys, *logged, monitor={"metric": "cost", "mode": "min", "unit": "epoch"})
    assert least == {**plain("cost", 0.2), "mode": "min", "best": 0.2, "step": 1, "unit": "epoch"}
    most = headline(capsys, *logged, monitor={"metric": "cost", "mode": "max"})
    assert most == {**plain("cost", 0.2), "mode": "max", "best": 0.5, "step": 0}


def test_a_monitored_metric_without_a_number_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    """Like one that the run never logged; a run without metrics has no headline."""
    monitor = {"metric": "f1", "mode": "max"}
    assert plain("val_score", 0.1) == headline(capsys, {"val_score": 0.1}, monitor=monitor)
    assert plain("val_score", 0.1) == headline(capsys, {"val_score": 0.1, "f1": "?"}, monitor=monitor)
    assert headline(capsys) is None
