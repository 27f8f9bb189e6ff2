"""What `optimize` claims by its rules, on scores that are drawn: false claims, power, coverage."""

from __future__ import annotations

from pathlib import Path

import pytest

from afnio.stats import wilson
from benchmarks.learning import claims, worlds

NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize("losing", [0.05, 0.1])
@pytest.mark.parametrize("rows", [50, *(pytest.param(rows, marks=NIGHTLY) for rows in (95, 96, 200, 400))])
def test_a_gain_that_is_not_there_is_claimed_in_one_run_of_forty_at_most(rows: int, losing: float) -> None:
    """One-sided 2.5 %, with the chance of 2,000 runs."""
    found = claims.simulated(rows, 0.0, losing, runs=2000)
    low, _ = wilson(found.better, found.runs)
    assert low < 0.025
    assert found.better / found.runs < 0.03


@pytest.mark.parametrize(
    ("rows", "gain", "least"),
    [
        (50, 0.2, 0.3),
        pytest.param(96, 0.2, 0.55, marks=NIGHTLY),
        pytest.param(200, 0.1, 0.4, marks=NIGHTLY),
        pytest.param(200, 0.2, 0.85, marks=NIGHTLY),
    ],
)
def test_a_gain_that_is_there_is_claimed(rows: int, gain: float, least: float) -> None:
    """With one row in ten getting worse; with one in twenty more is seen."""
    for losing in (0.05, 0.1):
        found = claims.simulated(rows, gain, losing, runs=2000)
        assert found.better / found.runs >= least


@pytest.mark.parametrize("rows", [50, *(pytest.param(rows, marks=NIGHTLY) for rows in (95, 96, 200, 400))])
def test_intervals_contain_the_true_gain(rows: int) -> None:
    """In all runs, and in those whose result is kept."""
    for gain in (0.0, 0.05, 0.1, 0.2):
        found = claims.simulated(rows, gain, 0.1, runs=2000)
        assert found.covered / found.runs >= 0.94
        assert found.covered_kept / found.kept >= 0.9


def test_harm_is_stopped_or_refused() -> None:
    """Of results that are ten points worse a few pass; with 400 rows most are stopped early."""
    few, many = (claims.simulated(rows, -0.1, 0.2, runs=1000) for rows in (96, 400))
    assert (few.kept / few.runs < 0.14, many.kept / many.runs < 0.02) == (True, True)
    assert many.stopped > 2 * few.stopped > 0


@pytest.mark.parametrize("rows", [20, pytest.param(50, marks=NIGHTLY), pytest.param(95, marks=NIGHTLY)])
def test_two_trainings_claim_no_gain_that_is_not_there_either(rows: int) -> None:
    """And one that is there about twice as often as a half of so many rows does."""
    found = claims.simulated(rows, 0.0, 0.1, runs=2000, cross_fit=True)
    assert found.better / found.runs < 0.03
    crossed, halved = (claims.simulated(rows, 0.2, 0.1, runs=1000, cross_fit=one) for one in (True, False))
    assert crossed.better > 1.4 * halved.better


def test_worlds_keep_each_run_and_do_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence that is worth 40 points is found and claimed; where all do harm, none is kept."""
    path = tmp_path / "worlds.jsonl"
    (found,) = worlds.runs_of(path, "known", 0.4, 60, 300, cross_fit=False, seeds=[1])
    assert (found.found, found.kept) == (pytest.approx(0.4), pytest.approx(0.4))
    (harmed,) = worlds.runs_of(path, "harmful", 0.0, 60, 300, cross_fit=True, seeds=[1])
    assert (harmed.better, harmed.kept) == (False, 0.0)
    monkeypatch.setattr(worlds, "run", lambda *args: pytest.fail("it is in the file"))
    assert worlds.runs_of(path, "known", 0.4, 60, 300, cross_fit=False, seeds=[1]) == [found]
    said = worlds.line("known edit", [found, harmed])
    assert said.startswith(f"| known edit | 2 | {found.better:d} (")
