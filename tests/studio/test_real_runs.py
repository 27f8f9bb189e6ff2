"""Runs of real programs: pages, reports and the command line tell the same, and what happened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from studio.browser import Browser
from studio.real_runs import gated, give_up, search, train
from studio.visitor import Studio, started

from afnio.cli import main
from afnio.runtime.events import StepEnded

if TYPE_CHECKING:
    from playwright.sync_api import Page


class Recorded(NamedTuple):
    """A folder with three runs, what their steps told, and a studio of it."""

    home: Path
    searched: list[StepEnded]
    studio: Studio


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    home = tmp_path_factory.mktemp("real")
    train(home)
    give_up(home)
    searched = search(home)
    with started(home) as studio:
        yield Recorded(home, searched, studio)


def said(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> str:
    assert main([*arguments, "--dir", str(home)]) == 0
    return capsys.readouterr().out


def report_of(recorded: Recorded, run: str) -> str:
    path = recorded.home / f"{run}.html"
    assert main(["report", run, "-o", str(path), "--dir", str(recorded.home)]) == 0
    return path.read_text()


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_monitored_metric_is_the_score(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """With its best value and that one's epoch, in the list, on the page, in the report and on the command line."""
    (run,) = [
        one for one in json.loads(said(capsys, recorded.home, "runs", "list", "--json")) if one["headline"]
    ]
    assert run["headline"] == {
        "metric": "val_score", "value": 0.75, "mode": "max", "best": 1.0, "step": 2, "unit": "epoch",
    }  # fmt: skip
    listed = said(capsys, recorded.home, "runs", "list")
    assert "No gain beyond no" in listed, "the card's verdict comes first"
    shown = said(capsys, recorded.home, "runs", "show", "best-second")
    assert "val_score                      0.75 (best 1 at epoch 2)  95 %: " in shown
    page = recorded.studio.page(recorded.studio.run("best-second")).text
    curves = json.loads(page.partition('id="curves">')[2].partition("</script>")[0])
    assert [line["name"] for line in curves["metrics"][:3]] == ["val_score", "test_score", "train_score"]
    report = report_of(recorded, "best-second")
    for html in (page, report):
        assert "val_score 0.750 best 1 at epoch 2" in words(html)
        # First and last value: the test before and after the training.
        assert re.search(r"test_score 0\.250 0\.750 0\.\d+ to 0\.\d+ –", words(html))
    assert "0.750 val_score best 1 at epoch 2" in words(recorded.studio.page("/").text)
    for text in (listed, shown, words(page), words(report)):
        assert not re.search(r"_(failed|sum|low|high)\b", text.replace("val step", ""))


def changed(step: StepEnded) -> bool:
    return any(change.before != change.after for change in step.changes)


def counts(before: Sequence[float | None], after: Sequence[float | None]) -> tuple[int, int, int]:
    pairs = [
        (one, other)
        for one, other in zip(before, after, strict=False)
        if one is not None and other is not None
    ]
    won, lost = (sum(sign * (other - one) > 0 for one, other in pairs) for sign in (1, -1))
    return won, lost, len(pairs)


CHOICE = re.compile(
    r"(\d+) won (\d+) lost \d+ unchanged of (\d+) held-out samples\. On these, candidate (\d+), which the step chose"
)


def told(recorded: Recorded, run: str, step: int) -> tuple[int, ...] | None:
    found = CHOICE.search(words(recorded.studio.page(f"{recorded.studio.run(run)}/steps/{step}").text))
    return None if found is None else tuple(map(int, found.groups()))


def test_a_search_wins_and_loses_by_its_candidates_own_scores(recorded: Recorded) -> None:
    """Of the text that the last race of the step began with, and the one that went on."""
    changes = 0
    for number, step in enumerate(recorded.searched, 1):
        last = max(place for place, one in enumerate(step.candidates) if one.name == "incumbent")
        before, *others = step.candidates[last:]
        after = next((one for one in others if one.verdict.startswith("accepted")), None)
        expected = None if after is None else (*counts(before.scores, after.scores), after.number)
        assert told(recorded, "wide-race", number) == expected
        changes += after is not None
        page = words(recorded.studio.page(f"{recorded.studio.run('wide-race')}/steps/{number}").text)
        assert ("so no sample was won or lost" in page) is (after is None)
    assert 2 <= changes < len(recorded.searched)


@pytest.mark.slow
def test_the_lineage_marks_the_candidate_in_the_parameters(browser: Browser, recorded: Recorded) -> None:
    """It was accepted, so it is green; later steps weigh others against it, some on fewer samples."""

    def visit(page: Page) -> None:
        page.goto(recorded.studio.base + recorded.studio.run("wide-race") + "/lineage")
        *_, winner = (
            one.number
            for step in recorded.searched
            for one in step.candidates
            if one.verdict.startswith("accepted")
        )
        marked = page.locator(".tree .accepted.best text:not(.value)")
        assert marked.all_text_contents() == [str(winner)]
        assert page.locator(".tree .best").count() == 1
        row = page.locator(f"tbody tr:nth-child({winner + 1})")
        assert re.search(r"kept\s+\d+\s+accepted: ", row.inner_text())

    browser.look(recorded.studio, visit)


def test_cancelled_calls_did_not_fail(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    """A program gives calls up on purpose, as of a candidate that can't win any more; they are counted apart."""
    run = json.loads(said(capsys, recorded.home, "runs", "show", "given-up", "--json"))
    assert (run["calls"], run["failed"], run["cancelled"]) == (5, 1, 3)
    assert "1 failed" in (text := said(capsys, recorded.home, "runs", "show", "given-up"))
    assert "3 cancelled" in text
    address = recorded.studio.run("given-up")
    assert "Failed 1 3 cancelled" in words(recorded.studio.page(address).text)
    for outcome, count in (("failed", 1), ("cancelled", 3), ("ok", 1)):
        page = recorded.studio.page(f"{address}/calls?status={outcome}").text
        assert count == page.count('class="row-link"')
        assert "CancelledError" not in page
    report = words(report_of(recorded, "given-up"))
    assert "no luck" in report.partition("Calls that failed")[2]
    assert "CancelledError" not in report


def test_a_step_gives_its_reasons_for_what_it_kept(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not for what it changed, and each reason once; the command line and the page alike."""
    lines = said(capsys, recorded.home, "runs", "show", "wide-race").splitlines()
    page = words(recorded.studio.page(recorded.studio.run("wide-race")).text)
    reasons = 0
    for number, step in enumerate(recorded.searched, 1):
        (line,) = [one for one in lines if one.startswith(f"  step {number} (EditTGD)")]
        kept: dict[str, list[str]] = {}
        for change in step.changes:
            if change.rejected:
                kept.setdefault(change.rejected, []).append(change.role)
        roles = [change.role for change in step.changes if change.before != change.after]
        assert line.startswith(f"  step {number} (EditTGD) changed {', '.join(roles) or 'nothing'}")
        for reason, owners in kept.items():
            reasons += 1
            assert line.count(reason) == 1
            assert f"kept {', '.join(owners)}: {reason}" in line
            assert f"kept {', '.join(owners)}: {reason}" in page
    assert reasons


def test_parameters_without_feedback_are_listed(
    recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each parameter of the optimizer, whether or not anything ever changed it."""
    assert not any(change.role == "greeting" for step in recorded.searched for change in step.changes)
    shown = said(capsys, recorded.home, "runs", "show", "wide-race")
    assert "  greeting, since step 0:\n    Hello." in shown
    page = recorded.studio.page(recorded.studio.run("wide-race")).text
    curves: dict[str, Any] = json.loads(page.partition('id="curves">')[2].partition("</script>")[0])
    assert {"greeting", "prompt for even samples"} <= {line["name"] for line in curves["lengths"]}


def test_samples_of_an_evaluation_are_asked_for_together(recorded: Recorded) -> None:
    """An evaluation is one row, and its link leads to the samples of all of its batches."""
    address = recorded.studio.run("best-second")
    page = recorded.studio.page(address).text
    assert "/batch" not in page
    assert f'href="{address}/samples?phase=test"' in page
    found = recorded.studio.page(f"{address}/samples?phase=test").text
    assert found.count('class="row-link clip"') == 4
    # The two batches are one column.
    assert re.findall(r'title="only ([^"]*)"', found) == ["test"]
    assert recorded.studio.page(f"{address}/calls?phase=test").text.count('class="row-link"') == 4


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str, Studio]]:
    """Two runs of one program with a gate, the gate's verdict, and a studio of them."""
    home = tmp_path_factory.mktemp("twice")
    (verdict,) = {gated(home, name) for name in ("first", "second")}
    with started(home) as studio:
        yield home, verdict, studio


def test_a_gate_tells_what_it_chose(twice: tuple[Path, str, Studio]) -> None:
    """The result is the best candidate, not the start; the gate's page has both beside each other."""
    _, verdict, studio = twice
    run = studio.run("first")
    lineage = words(studio.page(f"{run}/lineage").text)
    assert re.findall(r"(\d) (?:–|\d) 2 0\.\d+(?: kept)? 12 ", lineage) == ["0", "1"]
    assert "1 0 2 0.167 kept 12 accepted: the result is kept" in lineage
    page = words(studio.page(f"{run}/steps/2").text)
    assert f"Accepted: {verdict}." in page
    assert "1 won 0 lost 11 unchanged of 12 held-out samples" in page
    assert "proposed nothing" not in page
    assert "kept candidate" not in page
    overview = words(studio.page(run).text)
    assert f"gate {verdict}" in overview
    assert "held/start 12 0.083 " in overview
    assert "held/result 12 0.167 " in overview


def test_equal_runs_with_a_gate_are_equal(
    twice: tuple[Path, str, Studio], capsys: pytest.CaptureFixture[str]
) -> None:
    """No run's start is paired with the other's result, in any phase and in the last evaluations."""
    home, _, _ = twice
    found = json.loads(said(capsys, home, "runs", "compare", "first", "second", "--json"))
    kinds = {one["kind"]: one["paired"] for one in found["phases"]}
    assert {"held/start", "held/result"} < set(kinds)
    assert {(one["won"], one["lost"]) for one in (*kinds.values(), found["last"])} == {(0, 0)}
