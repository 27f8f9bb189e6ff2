"""The metric that sums a run up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import afnio.tellurio as te
from afnio.tellurio._queries import MONITOR, StoreReader
from afnio.tellurio._records import Headline

FILE = Path(".afnio/me/emails.db")


def headline(*logged: dict[str, Any], monitor: dict[str, Any] | None = None) -> Headline | None:
    with te.init("me", "emails", resume=False) as run:
        if monitor is not None:
            run.record(MONITOR, monitor)
        for values in logged:
            run.log(values)
    with StoreReader(FILE) as reader:
        return reader.headline(run.id)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["val_failed", "val_loss", "val_loss_sum", "val_loss_low", "val_loss_high"], "val_loss"),
        (["test_failed", "test_accuracy", "train_accuracy"], "test_accuracy"),
        (["train_failed_step", "train_loss_low_step", "train_loss_step"], "train_loss_step"),
        (["alpha", "final_score"], "final_score"),
        (["failed", "val_loss_sum", "high"], None),
    ],
)
def test_what_only_accompanies_a_metric_is_never_it(names: list[str], expected: str | None) -> None:
    """Counts of failures, sums and bounds; with nothing monitored the names decide, and nothing is the best."""
    found = headline(dict.fromkeys(names, 0.5))
    assert (None if expected is None else Headline(expected, 0.5)) == found


def test_the_monitored_metric_has_a_best_value() -> None:
    """The first of equals, with its step, in the direction that was named."""
    logged = [{"val_loss": 0.1, "cost": value} for value in (0.5, 0.2, 0.4, 0.2, math.nan)]
    least = headline(*logged, monitor={"metric": "cost", "mode": "min", "unit": "epoch"})
    assert Headline("cost", 0.2, "min", 0.2, 1, "epoch") == least
    most = headline(*logged, monitor={"metric": "cost", "mode": "max"})
    assert Headline("cost", 0.2, "max", 0.5, 0, "step") == most


def test_a_monitored_metric_without_a_number_is_passed_over() -> None:
    """As one that a run never logged; a run without metrics has no headline."""
    assert Headline("val_loss", 0.1) == headline({"val_loss": 0.1}, monitor={"metric": "f1", "mode": "max"})
    assert Headline("val_loss", 0.1) == headline(
        {"val_loss": 0.1, "f1": "?"}, monitor={"metric": "f1", "mode": "max"}
    )
    assert headline() is None
