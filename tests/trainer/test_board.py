"""What a display shows: counts, rates, time left, cost; nothing that isn't known is shown as a number."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any

import pytest
from trainer.show import PLAN, state

import afnio
from afnio.runtime import Ledger, Price
from afnio.runtime._spending import Item, Spent
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    CircuitClosed,
    CircuitOpened,
    Usage,
)  # fmt: skip
from afnio.trainer import _progress as module
from afnio.trainer._checkpoints import Plan
from afnio.trainer._progress import Board, Pace, Traffic

CALL = ("epoch 1/forward", "https://host", "m", "forward")
PRICE = Price(Decimal(1000), Decimal(1000), Decimal(1000))


def board(plan: Plan = PLAN, **changes: Any) -> Board:
    return Board(dataclasses.replace(plan, **changes), Traffic())


def spent(price: Price | None, tokens: int = 10, model: str = "m") -> Ledger:
    return Ledger(
        {Item("forward", "https://host", model): Spent.of(price, Usage(tokens, 0), calls=1, attempts=1)}
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_traffic_tells_apart_what_calls_end_with() -> None:
    """Replays are no calls, and what nobody wanted any more is no failure."""
    traffic = Traffic()
    for error in (None, None, "CancelledError: ", "FinalModelError: no such model"):
        traffic(CallEnded(*CALL, 1, 0.5, 0.0, Usage(20, 4) if error is None else Usage(), error))
    traffic(CallRetried(*CALL, 1, "429", 2.0))
    traffic(CallReplayed(*CALL))
    assert (2, 1, 1, 1, 1, 48) == (
        traffic.calls, traffic.failed, traffic.cancelled, traffic.retried, traffic.replayed, traffic.tokens,
    )  # fmt: skip


def test_trouble_is_shown_while_it_lasts(clock: list[float]) -> None:
    """A failed attempt for some seconds, an account that doesn't answer until it does."""
    traffic = Traffic()
    assert traffic.trouble is None
    traffic(CallRetried(*CALL, 1, "429\n  slow down", 2.5))
    assert "a call is tried again in 2.5 s: 429 slow down" == traffic.trouble
    traffic(CircuitOpened("https://host", 20, "refused"))
    clock[0] = 1000.0
    assert "https://host does not answer, calls wait: refused" == traffic.trouble
    traffic(CircuitClosed("https://host", 900.0))
    assert traffic.trouble is None


def test_a_pace_forgets_and_starts_anew() -> None:
    """It is that of the last readings; a count that falls back starts again; nothing done is no rate."""
    pace = Pace()
    assert pace.rate is None
    for second in range(100):
        pace.read(second, second if second < 50 else 50 + 10 * (second - 50))
    assert 10 == pace.rate
    pace.read(100, 0)
    assert pace.rate is None
    pace.read(101, 0)
    assert pace.rate is None


def test_time_left_is_that_of_the_nearest_end(clock: list[float]) -> None:
    """Samples of all epochs and validations, steps, or the clock."""
    clock[0] = 20.0
    halfway = state("train", "batch", 3, 33, 20.0, started=0.0)
    for changes, left in (
        ({}, 20.0 * (660 - 165) / 165),
        ({"max_steps": 6}, 20.0 * 1 / 5),
        ({"max_time": 25.0}, 5.0),
        ({"max_time": 5.0}, 0.0),
        ({"samples": None}, None),
        ({"epochs": None}, None),
        ({"epochs": None, "max_time": 100.0}, 80.0),
    ):
        one = board(**changes)
        one.take(halfway)
        assert left == pytest.approx(one.left()) if left is not None else one.left() is None, changes


def test_a_resumed_run_is_timed_from_where_it_goes_on(clock: list[float]) -> None:
    """What was done before took no time here."""
    one = board(resumed="last")
    one.take(state("train", "batch", 4, 33, 10.0, started=0.0))
    assert one.left() is None
    clock[0] = 20.0
    one.take(state("train", "batch", 4, 66, 20.0, started=0.0))
    assert (660 - 264) / 3.3 == pytest.approx(one.left())


def test_samples_are_counted_once() -> None:
    """Batch, epoch and validation tell of the same samples; the next epoch goes on from there."""
    one = board()
    for told, done in (
        (state("train", "batch", 1, 66, 10.0), 66),
        (state("train", "epoch", 1, 66, 10.0), 66),
        (state("val", "batch", 1, 33, 20.0), 99),
        (state("train", "batch", 2, 33, 25.0), 132),
        (state("val", "batch", 1, 66, 26.0), 165),
        (state("val", "validation", 2, 33, 26.0, val={"loss": 0.5}), 165),
        (state("train", "end", 2, 0, 27.0), 165),
    ):
        one.take(told)
        assert done == one._done()
    train, val = one.frame().rows
    assert ("33/66", "66/66", ["loss 0.5000"]) == (train.count, val.count, val.facts)


def test_an_epoch_is_kept_once_it_is_validated() -> None:
    """Validation goes on beside the next epoch; its numbers stand with the prompt that they are of."""
    one, kept = board(), []
    for told in (
        state("train", "batch", 1, 66, 10.0, failed=2, train={"loss": 0.1}),
        state("train", "epoch", 1, 66, 10.0, failed=2, train={"loss": 0.1}),
        state("train", "batch", 2, 33, 15.0, train={"loss": 0.2}),
        state("val", "batch", 1, 66, 20.0, val={"loss": 0.3}, failed=1),
        state("val", "validation", 2, 33, 20.0, val={"loss": 0.3}),
        state("train", "epoch", 2, 66, 30.0, train={"loss": 0.4}),
        state("train", "end", 2, 0, 40.0),
    ):
        one.take(told)
        kept.append(one.ended(told))
    assert [None] * 4 == kept[:4]
    cost = "unknown of $1.00"
    assert {
        "epoch": "1/5", "train loss": "0.1000", "val loss": "0.3000", "samples failed": "3", "time": "0:20",
        "cost": cost,
    } == kept[4]  # fmt: skip
    # One that was never validated has no numbers of another one.
    assert [None, {"epoch": "2/5", "train loss": "0.4000", "time": "0:30", "cost": cost}] == kept[5:]
    assert one.rest() is None


def test_without_validation_an_epoch_is_kept_at_its_end() -> None:
    """At once."""
    one = board(val_batches=None, val_samples=None)
    told = state("train", "epoch", 1, 66, 10.0)
    one.take(told)
    assert "0:10" == (one.ended(told) or {})["time"]


@pytest.mark.parametrize(
    ("plan", "budgets", "shown"),
    [
        ({"max_cost": None}, [], "unknown"),
        ({"max_cost": 0.5}, [], "unknown of $0.5000"),
        ({"max_cost": None}, [({}, Ledger())], "$0.00"),
        ({"max_cost": None}, [({}, spent(None))], "unknown"),
        ({"max_cost": 0.5}, [({"max_cost": 9}, spent(PRICE)), ({}, spent(None))], "unknown of $0.5000"),
        ({"max_cost": None}, [({}, spent(PRICE))], "$0.0100"),
        (
            {"max_cost": None},
            [({}, spent(PRICE) + spent(None, model="n"))],
            "$0.0100 and 1 calls of unknown cost",
        ),
        ({"max_cost": None}, [({"max_cost": 9}, spent(PRICE)), ({}, spent(PRICE, 3))], "$0.0100 of $9.00"),
    ],
)
def test_cost_and_ceiling(plan: dict[str, Any], budgets: list[Any], shown: str) -> None:
    """Of the budget that limits dollars; an unknown price is said, never 0."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for limits, ledger in budgets:
            stack.enter_context(afnio.budget(**limits, spent_before=ledger))
        assert shown == board(**plan).cost()


def test_a_test_pass_has_its_own_words() -> None:
    """No epochs, no steps."""
    one = board(Plan("test", "Agent", samples=68))
    assert ("Agent", "test") == tuple(one.frame().title[:2])
    assert [("test", "0/68")] == [(row.name, row.count) for row in one.frame().rows]
    ended = state("test", "end", 0, 68, 9.0, epochs=None, total=68, val={"accuracy": 0.5}, train={}, failed=2)
    one.take(ended)
    assert [("test", "68/68", ["accuracy 0.5000", "2 failed"])] == [
        (row.name, row.count, row.facts) for row in one.frame().rows
    ]
    assert one.ended(ended) is None
    assert ["test of Agent", "68 samples", "accuracy 0.5000", "2 failed", "0:09"] == one.ending()[:5]


def test_a_loader_without_a_length_has_no_total() -> None:
    """Only what has ended is counted."""
    one = board(samples=None, val_samples=None, epochs=None)
    one.take(state("train", "batch", 1, 33, 9.0, total=None, epochs=None))
    assert "33" == one.frame().rows[0].count
    assert ["fit SentimentAnalyzer", "checkpoints in runs/checkpoints"] == one.beginning()
