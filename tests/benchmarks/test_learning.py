"""The learning benchmark, tiny: what it counts, what it writes, and that the test split decides nothing."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

from afnio.errors import DownloadError
from afnio.testing import Provider
from benchmarks import report
from benchmarks.learning import __main__ as command
from benchmarks.learning import curve, intervals, quality, tasks, training
from benchmarks.learning.endpoints import simulated
from benchmarks.learning.methods import METHODS, WAYS
from benchmarks.learning.outcome import Outcome
from benchmarks.peers import environment

needs_data = pytest.mark.skipif(
    "AFNIO_DATA" not in os.environ,
    reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
)


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send the files to a folder of the test."""
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return tmp_path


SMALL = "--subset 8 --seeds 2 --calls 60 --batch 4 --results tiny"


def run(*arguments: str, size: str = SMALL) -> list[Outcome]:
    return command.main([*size.split(), *arguments])


def test_a_run_says_what_it_reached_and_what_it_took(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run is a line of the file; the table compares them."""
    found = run("--task", "notes-draft", "--method", "TGD")
    assert [run.method for run in found] == ["baseline", "TGD", "TGD"]
    assert all(len(run.scores) == 8 for run in found)
    assert all(0 < run.calls <= 60 + 20 for run in found[1:])
    lines = (results / "learning" / "tiny.jsonl").read_text().splitlines()
    kept = [Outcome.of(line) for line in lines]
    assert [(run.key, run.scores, run.prompts) for run in kept] == [
        (run.key, run.scores, run.prompts) for run in found
    ]
    assert "| TGD | 2 | " in capsys.readouterr().out


def test_a_benchmark_can_be_done_in_pieces(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file has isn't repeated, and a line that was cut off is done anew."""
    asked = ("--task", "notes-draft", "--method", "TGD")
    first = run(*asked, "--shard", "0/2")
    assert [(run.method, run.seed) for run in first] == [("baseline", 0), ("TGD", 1)]
    file = results / "learning" / "tiny.jsonl"
    kept = file.read_text()
    capsys.readouterr()
    again = run(*asked)
    assert [(run.method, run.seed) for run in again] == [("baseline", 0), ("TGD", 0), ("TGD", 1)]
    assert file.read_text().startswith(kept)
    assert "seed 1" not in capsys.readouterr().out


@pytest.mark.nightly
def test_a_run_alone_is_the_same_as_among_others(results: Path) -> None:
    """Its draws depend on its name, and on nothing that ran before."""
    size = SMALL.replace("subset 8", "subset 12").replace("calls 60", "calls 216")  # what a gate needs
    asked = ("--task", "notes-draft", "--method", "EditTGD")
    together = {run.key: run.prompts for run in run("--method", "TGD", *asked, size=size)}
    (results / "learning" / "tiny.jsonl").unlink()
    alone = run(*asked, "--shard", "2/3", size=size)
    assert [run.method for run in alone] == ["EditTGD"]
    assert {run.key: run.prompts for run in alone}.items() <= together.items()


def test_a_peer_that_cannot_be_run_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gepa").mkdir()
    (tmp_path / "gepa" / ".installed").touch()
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    found = run("--task", "notes-judge", "--method", "GEPA")
    assert [run.method for run in found] == ["baseline"]
    assert "GEPA, 60 calls, seed 0: it was not run: its step failed" in capsys.readouterr().out


@pytest.mark.nightly
def test_time_to_quality_is_read_from_the_prompts_of_each_step(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a latency: seconds, calls and rounds grow from step to step, and the last one has the run's score."""
    found = run("--task", "notes-draft", "--method", "TGD", "--latency", "0.01", "--seeds", "1")
    path = found[-1].path
    assert len(path) == found[-1].steps + 1
    assert path[0][1:3] == (0, 0)
    assert [list(column) for column in zip(*path, strict=True)][:3] == [
        sorted(column) for column in zip(*path, strict=True)
    ][:3]
    assert path[-1][3] == pytest.approx(found[-1].share, abs=1e-4)
    # A step here waits for three calls of the agent one after the other, for critics, and for the proposer.
    assert 4 * found[-1].steps <= found[-1].rounds <= found[-1].calls


def test_an_accuracy_is_held_once_three_looks_have_it() -> None:
    curve = [(0.0, 0.2), (3.0, 0.9), (4.0, 0.3), (7.0, 0.8)]
    assert quality.held([curve], 0.75, 1.0) == 9.0
    assert quality.held([curve], 0.85, 1.0) == math.inf
    assert quality.held_by_steps([curve], 0.6) == 7.0


@pytest.mark.nightly
@pytest.mark.parametrize("name", [*tasks.HARD, *tasks.FAULTY])
def test_hard_and_faulty_tasks_have_room_and_can_be_scored(name: str) -> None:
    """The start prompt is far from right; where a fault is a sentence, the prompt without it does better."""
    try:
        task = tasks.load(name).subset([20, 20, 40])
    except DownloadError as error:
        pytest.skip(str(error))
    with simulated() as endpoint:
        trial = training.Trial("baseline", task, endpoint, 0, 0, 4)
        start = trial.tested({"prompt": task.prompt})
        assert sum(map(float, start)) / len(start) < 0.6  # type: ignore[arg-type]
        if name.partition("/")[2] in ("harm-named", "harm-unnamed", "wrong-format"):
            healthy = trial.tested({"prompt": task.prompt.partition(". ")[0] + "."})
            assert sum(map(float, healthy)) > sum(map(float, start))  # type: ignore[arg-type]


def test_a_gate_is_paid_from_the_same_budget() -> None:
    task = tasks.load("notes-judge")
    with simulated() as endpoint:
        trial = training.Trial("TGD, gate", task, endpoint, 0, 300, 4, gated=True)
        found = trial.run(METHODS["TGD"].make)
    assert trial.reserve == 96
    assert found.calls <= 300 + 20
    assert "held-out rows" in found.gate


@pytest.mark.nightly
def test_edited_prompts_do_not_get_long() -> None:
    task = tasks.load("notes-judge")
    with simulated() as endpoint:
        found = training.Trial("EditTGD", task, endpoint, 0, 400, 16).run(METHODS["EditTGD"].make)
    assert found.correct >= 95
    assert found.lengths[-1] < 1500


def test_the_curve_takes_each_batch_size_over_the_same_samples(results: Path) -> None:
    with simulated() as endpoint:
        runs = curve.curve(tasks.load("notes-draft"), endpoint, WAYS, seeds=1, sizes=(4, 16), samples=16)
    assert [run["steps"] for run in runs] == [4, 1, 4, 1]
    rows = json.loads((results / "learning-simulated-curve.json").read_text())["rows"]
    assert [(row["how"], row["batch"]) for row in rows][2:] == [("reduction", 4), ("reduction", 16)]


@pytest.mark.nightly
@needs_data
def test_descent_raises_the_score_and_lengthens_the_prompt() -> None:
    task = tasks.load("sentiment")
    with simulated() as endpoint:
        before, after = (
            training.Trial(name, task, endpoint, 0, 400, 16).run(METHODS[name].make)
            for name in ("baseline", "TGD")
        )
    assert after.correct > before.correct
    assert after.lengths[-1] > 10 * len(task.prompt)
    assert after.gradients["prompt"] > 0


@pytest.mark.parametrize(
    "at_fault", ["draft", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("retrieve", "judge"))]
)
def test_the_prompt_at_fault_is_blamed_most(at_fault: str) -> None:
    task = tasks.load(f"notes-{at_fault}")
    with simulated() as endpoint:
        found = training.Trial("TGD", task, endpoint, 0, 200, 16).run(METHODS["TGD"].make)
    assert max(found.gradients, key=lambda name: found.gradients[name]) == at_fault


def test_training_never_sees_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tasks.load("notes-judge")
    seen: list[str] = []
    judged = training.Trial.judged

    def watch(trial: training.Trial, items: Any, *others: Any) -> Any:
        seen.append("test" if items is trial.task.test else "other")
        assert items is trial.task.test or not any(item in trial.task.test for item in items)
        return judged(trial, items, *others)

    monkeypatch.setattr(training.Trial, "judged", watch)
    with simulated() as endpoint:
        training.Trial("TGD", task, endpoint, 0, 100, 16).run(METHODS["TGD"].make)
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


def test_splits_may_have_sizes_of_their_own(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "--subset 8,4,6 --task notes-judge --method Demos --seeds 1"
    found = command.main(f"{given} --curve notes-judge --samples 8 --sizes 4 8 16 --control".split())
    assert [(run.method, len(run.scores), run.calls) for run in found] == [
        ("baseline", 6, 0),
        ("Demos", 6, 0),
    ]
    assert found[1].prompts["judge"].endswith("</examples>")
    rows = json.loads((results / "learning-simulated-curve.json").read_text())["rows"]
    assert [(row["how"], row["batch"]) for row in rows] == [
        (how, size) for how in ("concatenation", "reduction", "no wall") for size in (4, 8)
    ]
    with pytest.raises(SystemExit):
        run("--subset", "8,4")
    assert "one number or three" in capsys.readouterr().err


def test_a_live_benchmark_says_what_it_will_take_first(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And makes no call unless the user wants it. The estimate is no less than what was taken."""
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "simulated*"\ninput = 1.0\noutput = 2.0\n')
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr("builtins.input", lambda question: "n")
    with Provider.process(api_key="k") as process:
        asked = (
            f"--live --base-url {process.base_url} --model simulated --task notes-judge --subset 6 --calls 40 "
            "--seeds 1 --method TGD"
        ).split()
        assert command.main(asked) == []
        assert process.stats()["requests"] == 0
        said = capsys.readouterr().out
        found = command.main([*asked, "--yes"])
        calls = process.stats()["requests"]
    dollars = re.search(r"\| all \| (\d+) \| [\d,]+ \| (\d+\.\d\d) \|", said)
    assert dollars is not None, said
    assert calls <= int(dollars[1]) + 20
    assert [run.method for run in found] == ["baseline", "TGD"]
    assert "| TGD | 1 |" in capsys.readouterr().out


OWN = """
from afnio.optim import Optimizer, TGD
from benchmarks.learning.agents import Answerer
from benchmarks.learning.tasks import Item, Task, exact

ITEMS = [Item({"message": f"Say {number}."}, str(number)) for number in range(12)]

def numbers():
    return Task("mine", lambda: Answerer("Answer."), str.strip, exact, ITEMS, ITEMS[:4], ITEMS[:6], prompt="Answer.")

class Mine(TGD):
    pass

def short(trial):
    return Mine(trial.agent.parameters(), trial.endpoint.client, constraints=["Be brief."], **trial.endpoint.step)
"""


def test_a_task_and_a_method_of_ones_own(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Named by module; the runs are kept, and the page at the end is a file beside them."""
    (tmp_path / "own_learning.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with Provider.process(api_key="k") as process:
        asked = (
            f"--base-url {process.base_url} --model simulated --critic simulated-critic --calls 40 --seeds 2 --yes "
            "--task own_learning:numbers --method own_learning:Mine --method own_learning:short"
        ).split()
        found = command.main(asked)
        requests = process.stats()["requests"]
        assert [one.scores for one in command.main(asked)] == [one.scores for one in found]
        assert process.stats()["requests"] == requests
    assert [run.key[:4] for run in found[1:]] == [
        (f"own_learning:{method}", "own_learning:numbers", 40, seed)
        for method in ("Mine", "short")
        for seed in (0, 1)
    ]
    (page,) = (results / "learning").glob("live-simulated-simulated-critic-at-*.md")
    said = page.read_text()
    assert "## own_learning:numbers, 40 calls" in said
    assert re.search(r"\| own_learning:Mine \| 2 \| [\d.]+ % \([\d.]+ to [\d.]+\) \| [+-][\d.]+ \(", said)
    assert "simulated was the student, simulated-critic critic and optimizer" in said
    assert said.strip() in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nothing", "no_such_module:task", "benchmarks.learning.tasks:nothing"])
def test_a_name_that_is_none_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("--task", name)
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "reply", "answer"),
    [
        ("sums", "So it is 1,234 dollars.", "1234"),
        ("intents", '{"intent": "card_arrival"}', "card_arrival"),
        ("counting", "There are 7.", "7"),
    ],
)
def test_published_data_has_a_training_and_a_test_part(name: str, reply: str, answer: str) -> None:
    try:
        task = tasks.load(name)
    except DownloadError:
        pytest.skip("published data: a network, or the files of benchmarks/learning/public.py in AFNIO_DATA")
    texts = [{item.inputs["message"] for item in part} for part in (task.train, task.val, task.test)]
    assert [len(part) for part in texts] == [len(task.train), len(task.val), len(task.test)]
    assert not texts[0] & texts[2]
    assert task.read(reply) == answer
    assert all(item.target for item in task.test)
