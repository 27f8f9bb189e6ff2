"""Metrics: sums over samples, whatever the batches were."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.trainer._options import Metric, Outcome, combined


def test_batches_of_33_33_and_2_give_the_mean_per_sample() -> None:
    """Two samples weigh as two, not as a third of everything."""
    batches = [[1] * 30 + [0] * 3, [1] * 15 + [0] * 18, [0, 0]]
    outcome = combined(Outcome({"loss": Metric.of(batch)}, samples=len(batch)) for batch in batches)
    assert (45 / 68, 45.0) == (outcome.flat()["loss"], outcome.flat()["loss_sum"])


def test_a_plain_number_weighs_by_its_samples() -> None:
    """A batch's mean counts for as many samples as the batch has."""
    outcome = Outcome({"f1": Metric(0.5 * 33, 33)}) + Outcome({"f1": Metric(1.0 * 2, 2)})
    assert pytest.approx(18.5 / 35) == outcome.flat()["f1"]


def test_missing_samples_are_in_no_mean() -> None:
    """None is left out, and a metric without samples has no mean."""
    assert 0.5 == Metric.of([1, None, 0]).mean
    assert Metric.of([None]).mean is None
    assert {"failed": 1.0} == Outcome({"loss": Metric.of([None])}, failed=1).flat()


@given(st.lists(st.integers(-1000, 1000), min_size=1), st.integers(1, 7))
def test_the_mean_does_not_depend_on_the_batches(values: list[int], size: int) -> None:
    """Any split gives the same sums, and JSON keeps them."""
    parts = [values[at : at + size] for at in range(0, len(values), size)]
    outcome = combined(Outcome({"loss": Metric.of(part)}, samples=len(part)) for part in parts)
    assert Metric.of(values) == outcome.metrics["loss"]
    assert outcome == Outcome.from_json(json.loads(json.dumps(outcome.to_json())))


def test_proportions_have_intervals_and_other_means_none() -> None:
    """Known zeros and ones do, one sample's 0.5 or a plain mean takes that away."""
    assert {"loss", "loss_sum", "loss_low", "loss_high", "failed"} == set(
        Outcome({"loss": Metric.of([1, 0, True])}).flat()
    )
    assert Metric.of([1, 0.5]).interval is None
    assert (Metric.of([1, 0]) + Metric(0.5, 1)).interval is None
