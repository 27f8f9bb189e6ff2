"""The learning benchmark, tiny: what it counts, what it writes, and that the test split decides nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.learning import __main__ as command
from benchmarks.learning import curve, intervals, tasks, training
from benchmarks.learning.endpoints import simulated
from benchmarks.learning.methods import METHODS, WAYS
from benchmarks.peers import environment

needs_data = pytest.mark.skipif("AFNIO_DATA" not in os.environ, reason="AFNIO_DATA is not set")


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send the files to a folder of the test."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


def run(*arguments: str) -> dict[str, Any]:
    return command.main(["--subset", "8", "--seeds", "2", "--calls", "60", "--batch", "4", *arguments])


def test_a_run_says_what_it_reached_and_what_it_took(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run("--task", "notes-draft", "--method", "TGD")
    runs = found["tasks"]["notes-draft"]["runs"]
    assert [run["method"] for run in runs] == ["baseline", "TGD", "TGD"]
    assert all(len(run["scores"]) == 8 for run in runs)
    assert all(0 < run["calls"] <= 60 + 20 for run in runs[1:])
    assert all(run["cost"] is None for run in runs)
    saved = json.loads((results / "learning-simulated.json").read_text())
    assert saved["simulated"] is True
    assert {"commit", "versions", "python"} <= set(saved["machine"])
    assert "SIMULATED" in capsys.readouterr().out


def test_a_peer_that_cannot_be_run_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gepa").mkdir()
    (tmp_path / "gepa" / ".installed").touch()
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    found = run("--task", "notes-judge", "--method", "GEPA")
    assert [row[0] for row in found["tasks"]["notes-judge"]["rows"]] == ["baseline"]
    assert "GEPA, seed 0: it was not run: its step failed" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["TGD + Improves", "ParetoTGD"])
def test_accepted_prompts_do_not_get_long(method: str) -> None:
    task = tasks.load("notes-judge")
    with simulated() as endpoint:
        found = training.Trial(method, task, endpoint, 0, 400, 16).run(METHODS[method])
    assert found.correct >= 95
    assert found.lengths[-1] < 1500


def test_the_curve_takes_each_batch_size_over_the_same_samples(results: Path) -> None:
    with simulated() as endpoint:
        runs = curve.curve(tasks.load("notes-draft"), endpoint, WAYS, seeds=1, sizes=(4, 16), samples=16)
    assert [run["steps"] for run in runs] == [4, 1, 4, 1]
    rows = json.loads((results / "learning-simulated-curve.json").read_text())["rows"]
    assert [(row["how"], row["batch"]) for row in rows][2:] == [("reduction", 4), ("reduction", 16)]


@needs_data
def test_descent_raises_the_score_and_lengthens_the_prompt() -> None:
    task = tasks.load("sentiment")
    with simulated() as endpoint:
        before, after = (
            training.Trial(name, task, endpoint, 0, 400, 16).run(METHODS[name])
            for name in ("baseline", "TGD")
        )
    assert after.correct > before.correct
    assert after.lengths[-1] > 10 * len(task.prompt)
    assert after.gradients["prompt"] > 0


@pytest.mark.parametrize("at_fault", ["retrieve", "draft", "judge"])
def test_the_prompt_at_fault_is_blamed_most(at_fault: str) -> None:
    task = tasks.load(f"notes-{at_fault}")
    with simulated() as endpoint:
        found = training.Trial("TGD", task, endpoint, 0, 200, 16).run(METHODS["TGD"])
    assert max(found.gradients, key=lambda name: found.gradients[name]) == at_fault


def test_training_never_sees_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.load("notes-judge")
    seen: list[str] = []
    judged = training.Trial.judged

    def watch(trial: training.Trial, items: Any) -> Any:
        seen.append("test" if items is trial.task.test else "other")
        assert items is trial.task.test or not any(item in trial.task.test for item in items)
        return judged(trial, items)

    monkeypatch.setattr(training.Trial, "judged", watch)
    with simulated() as endpoint:
        training.Trial("TGD", task, endpoint, 0, 100, 16).run(METHODS["TGD"])
    assert seen.count("test") == 1
    assert seen[-1] == "test"


def test_batches_go_through_all_items_before_any_comes_again() -> None:
    drawn = training.batches(list(range(10)), 4, seed=3)  # type: ignore[arg-type]
    numbers = [number for _ in range(5) for number in next(drawn)]
    assert sorted(numbers[:10]) == list(range(10)) == sorted(numbers[10:20])


def test_the_interval_of_no_difference_holds_zero_and_of_a_sure_one_does_not() -> None:
    same = [[1.0, 0.0, None, 1.0] * 10] * 3
    assert intervals.difference(same, same) == (0.0, 0.0, 0.0)
    better = [[1.0] * 40] * 3
    gain, low, high = intervals.difference(better, [[0.0, 1.0] * 20] * 3)
    assert low < gain == 0.5 < high
    assert low > 0.2


def test_the_control_of_the_curve_is_refused_with_a_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--control", "--base-url", "http://127.0.0.1:1/v1")
    assert "--control is for the simulated LM" in capsys.readouterr().err


def test_splits_may_have_sizes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--subset 8,4,6 --task notes-judge --method Demos --seeds 1"
    found = command.main(f"{given} --curve notes-judge --samples 8 --sizes 4 8 16 --control".split())
    runs = found["tasks"]["notes-judge"]["runs"]
    assert [(run["method"], len(run["scores"]), run["calls"]) for run in runs] == [
        ("baseline", 6, 0),
        ("Demos", 6, 0),
    ]
    assert runs[1]["prompts"]["judge"].endswith("</examples>")
    assert [run["method"] for run in found["curve"]] == [
        f"{how}, batch {size}" for how in ("concatenation", "reduction", "no wall") for size in (4, 8)
    ]
    with pytest.raises(SystemExit):
        run("--subset", "8,4")
    assert "one number or three" in capsys.readouterr().err
