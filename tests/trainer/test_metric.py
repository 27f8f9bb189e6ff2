"""Metrics: sums over samples, for any batches; proportions have Wilson's interval. Seen through `Trainer.test`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer.scenarios import trainer

import afnio
import afnio.cognitive as cog


class Given(cog.Module):
    """Returns each batch, a dict of lists or numbers, as its metrics."""

    async def test_step(self, batch: Any, batch_idx: int) -> Any:
        return {"score": 0.0, **batch}


def metrics(*batches: dict[str, Any]) -> dict[str, float]:
    return trainer(Path()).test(Given(), batches)


def interval(correct: int, total: int) -> tuple[float, float]:
    found = metrics({"right": [1] * correct + [0] * (total - correct)})
    return found["right_low"], found["right_high"]


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    total = draw(st.integers(1, 2_000))
    return draw(st.integers(0, total)), total


def test_batches_of_33_33_and_2_give_the_mean_per_sample() -> None:
    """Two samples weigh as two, not as a third of everything."""
    batches = [[1.0] * 30 + [0.0] * 3, [1.0] * 15 + [0.0] * 18, [0.0, 0.0]]
    found = metrics(*({"score": afnio.Variable(batch, role="score")} for batch in batches))
    assert (found["score"], found["score_sum"]) == (45 / 68, 45.0)


def test_a_plain_number_weighs_by_its_samples() -> None:
    """A batch's mean counts for as many samples as the batch has."""
    found = metrics({"texts": ["a"] * 33, "f1": 0.5}, {"texts": ["b"] * 2, "f1": 1.0})
    assert found["f1"] == pytest.approx(18.5 / 35)


def test_missing_samples_are_in_no_mean() -> None:
    """None is left out, and a metric without samples has no mean."""
    assert metrics({"right": [1, None, 0]})["right"] == 0.5
    assert "right" not in metrics({"right": [None]})


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=1), st.integers(1, 7))
def test_the_mean_does_not_depend_on_the_batches(values: list[int], size: int) -> None:
    """Any split gives the same."""
    parts = [{"value": values[at : at + size]} for at in range(0, len(values), size)]
    assert metrics({"value": values})["value"] == metrics(*parts)["value"]


def test_proportions_have_intervals_and_other_means_none() -> None:
    """Known zeros and ones do, one sample's 0.5 or a plain mean takes that away."""
    assert {"right_low", "right_high"} < set(metrics({"right": [1, 0, True]}))
    assert "right_low" not in metrics({"right": [1, 0.5]})
    assert "right_low" not in metrics({"right": [1, 0]}, {"right": 0.5})


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # From Newcombe, Statistics in Medicine 17 (1998), table I, method 4.
        (81, 263, 0.2535, 0.3682),
        (15, 148, 0.0598, 0.1644),
        (0, 20, 0.0, 0.2005),
        (1, 29, 0.0018, 0.1963),
    ],
)
def test_the_interval_has_the_published_values(correct: int, total: int, low: float, high: float) -> None:
    """To four digits."""
    assert interval(correct, total) == pytest.approx((low, high), abs=5e-5)


@settings(max_examples=20, deadline=None)
@given(counts())
def test_the_interval_holds_the_share(count: tuple[int, int]) -> None:
    """It stays in the unit interval, is symmetric, and narrows with more data."""
    correct, total = count
    low, high = interval(correct, total)
    assert 0.0 <= low <= correct / total <= high <= 1.0
    assert low < high
    assert interval(total - correct, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    narrow_low, narrow_high = interval(4 * correct, 4 * total)
    assert narrow_high - narrow_low < high - low
