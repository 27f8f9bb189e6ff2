"""Samples as samples: what each was given, what was expected and answered, and how it did over the run."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optimize.task import optimized
from studio.browser import Browser
from studio.made_store import MadeRun
from studio.real_runs import train
from studio.visitor import Studio, started

if TYPE_CHECKING:
    from playwright.sync_api import Page

PAST = {
    "always right": (1, 1, 1),
    "wins": (0, 0, 1),
    "loses": (1, 1, 0),
    "never": (0, 0, 0),
    "there and back": (1, 0, 1),
    "back to wrong": (0, 1, 0),
}
"""How samples did in three evaluations, by their inputs."""


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("samples")
    with MadeRun(home / "acme" / "one.db", "calm-lynx") as run:
        for number, text in enumerate(PAST):
            run.insert("inputs", key=text, text=f"100 % {text} <b>&")
            for epoch in range(3):
                right = PAST[text][epoch]
                run.insert(
                    "samples", node=f"run/epoch {epoch}/1", lane=number, phase=f"epoch {epoch}/val", key=text,
                    prediction="yes" if right else "=no()", target="yes", score=right, success=right,
                    explanation=f"about {text}", time=run.time + epoch,
                )  # fmt: skip
    train(home)
    with started(home) as found:
        yield found


def listed(studio: Studio, query: str) -> list[str]:
    """Return the inputs of the samples that a list shows."""
    page = studio.page(studio.run("calm-lynx") + "/samples" + query).text
    rows = re.findall(r'<a class="row-link clip"[^>]*>100 % (.*?) &lt;b&gt;&amp;</a>', page)
    assert page.count('<tr class="row">') == len(rows)
    return rows


@pytest.mark.parametrize(
    ("query", "inputs"),
    [
        ("", list(PAST)),
        ("?show=wrong", ["loses", "never", "back to wrong"]),
        ("?show=gained", ["wins"]),
        ("?show=lost", ["loses"]),
        ("?show=never", ["never"]),
        ("?show=unstable", ["there and back", "back to wrong"]),
        ("?phase=epoch+1/val&show=wrong", ["wins", "never", "there and back"]),
        ("?q=BACK+to", ["back to wrong"]),
        ("?q=about+wins", ["wins"]),
        ("?q=%25+always", ["always right"]),
        ("?q=_lways", []),
        ("?q=no()&show=wrong", ["loses", "never", "back to wrong"]),
        ("?show=failed&phase=epoch+0/val", ["wins", "never", "back to wrong"]),
        ("?show=every&q=about+wins", ["wins"] * 3),
        ("?show=nonsense", list(PAST)),
    ],
)
def test_the_list_has_what_is_asked_for(studio: Studio, query: str, inputs: list[str]) -> None:
    """Searched in inputs, answers and feedback, whatever signs a pattern would have; filtered by how samples did."""
    assert listed(studio, query) == inputs[::-1]


def test_each_filter_says_how_many_it_has(studio: Studio) -> None:
    page = studio.page(studio.run("calm-lynx") + "/samples").text
    counts = dict(re.findall(r'<option value="(\w*)"[^>]*>[\w ,]+ \((\d+)\)', page))
    assert counts == {"": "6", "wrong": "3", "gained": "1", "lost": "1", "never": "1", "unstable": "2"}


def test_the_list_shows_how_each_sample_did_so_far(studio: Studio) -> None:
    """A filled dot for each right evaluation and an empty one for each wrong one, the oldest first."""
    page = studio.page(studio.run("calm-lynx") + "/samples").text
    cells = re.findall(r'<span class="past"[^>]*>(.*?)</span></td>', page)
    dots = [re.sub(r"<[^>]+>", "", cell) for cell in cells]
    assert dots == ["".join("○●"[right] for right in past) for past in reversed(PAST.values())]


def test_the_outcomes_stand_in_columns_of_steps(studio: Studio) -> None:
    """A heat map: the steps by name, in order, each a link to its samples alone, and a dot where a sample wasn't."""
    page = studio.page(studio.run("best-second") + "/samples").text
    head = page.partition('<span class="past"')[2].partition("</th>")[0]
    steps = re.findall(r'<a href="\?([^"]*)"[^>]*><span>([^<]*)</span>', head)
    assert [name for _, name in steps] == [
        "test", "epoch 1/step 1", "epoch 2/step 2", "val step 1", "epoch 3/step 3", "val step 2", "val step 3",
        "test#2",
    ]  # fmt: skip
    rows = re.findall(
        r'row-link clip" href="[^"]*">([^<]*)</a>.*?<span class="past"(.*?)</td>', page, re.DOTALL
    )
    circles = {name: "".join(re.findall("[○●·]", cells)) for name, cells in rows}
    assert (circles["m9"], circles["m0"]) == ("·○○·○···", "●··●·●●●")
    only = studio.page(studio.run("best-second") + "/samples?" + steps[3][0].replace("&amp;", "&")).text
    assert only.count('<tr class="row">') == 4


def test_older_leads_to_each_sample_once(tmp_path: Path) -> None:
    with MadeRun(tmp_path / "acme" / "one.db", "calm-wren") as run:
        for number in range(250):
            run.insert(
                "samples", node="run/1", lane=number, phase="val", key=str(number), prediction="a", target="a",
                score=1, success=1, time=run.time,
            )  # fmt: skip
    seen: list[int] = []
    with started(tmp_path) as studio:
        path = studio.run("calm-wren") + "/samples"
        query: str | None = ""
        while query is not None and len(seen) <= 250:
            text = studio.page(path + query).text
            seen += [int(n) for n in re.findall(r'class="row-link clip" href="[^"]*/samples/(\d+)"', text)]
            older = re.search(r'rel="next" href="(\?before=[^"]+)"', text)
            query = older and older.group(1).replace("&amp;", "&")
    assert seen == list(range(250, 0, -1))


def test_answers_by_target(tmp_path: Path) -> None:
    """Counted by what was expected, the last time."""
    with MadeRun(tmp_path / "acme" / "one.db", "calm-tern") as run:
        for number, (target, said) in enumerate([("a", "a"), ("a", "b"), ("a", "b"), ("b", "b"), ("b", "c")]):
            run.insert(
                "samples", node="run/1", lane=number, phase="val", key=str(number), prediction=said, target=target,
                score=0, success=0, time=run.time,
            )  # fmt: skip
    with started(tmp_path) as studio:
        page = studio.page(studio.run("calm-tern") + "/samples").text
    table = page.partition('class="confusion">')[2].partition("</table>")[0]
    cells = re.sub(r"<[^>]+>", " ", table).split()
    assert cells == ["Expected", "a", "b", "c", "a", "1", "2", "0", "b", "0", "1", "1"]


def test_the_table_as_csv(studio: Studio) -> None:
    """What the filters let through, with the past of each; a reply that is a formula is a text to a spreadsheet."""
    answer = studio.page(studio.run("calm-lynx") + "/samples.csv?show=lost")
    (row,) = csv.DictReader(io.StringIO(answer.text))
    del row["sample"]
    assert row == {
        "phase": "epoch 2/val", "input": "100 % loses <b>&", "expected": "yes", "answer": "'=no()", "score": "0.0",
        "feedback": "about loses", "evaluations": "3", "right": "2",
    }  # fmt: skip
    assert answer.headers["content-disposition"] == 'attachment; filename="calm-lynx.csv"'
    everything = studio.page(studio.run("calm-lynx") + "/samples.csv?show=every").text
    assert len(everything.splitlines()) == 19


def test_an_agents_calls_stand_with_their_sample(tmp_path: Path) -> None:
    """Those that its function made for this row, and no other row's; each leads back to the sample."""
    optimized(dir=tmp_path)
    with started(tmp_path) as studio:
        (run,) = re.findall(r'<a class="row-link[^"]*" href="(/runs/[^"]+)">', studio.page("/").text)
        found = re.findall(rf'href="({run}/samples/\d+)"', studio.page(f"{run}/samples").text)
        assert len(found) > 20
        for sample in found[:20]:
            page = studio.page(sample).text
            (row,) = re.findall(r'<div class="text">(row \d+)</div>', page)
            (call,) = re.findall(rf'href="({run}/calls/\d+)"', page.partition("<h2>Backward</h2>")[0])
            page = studio.page(call).text
            assert f'href="{sample}"' in page
            assert re.findall(r"row \d+", page) == [row]


@pytest.mark.slow
def test_a_samples_page_begins_with_its_input(studio: Studio, browser: Browser) -> None:
    """A real training's: from the list to a sample that got better, and its answers in each epoch."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("best-second") + "/samples")
        page.get_by_label("Show").select_option("gained")
        page.wait_for_url("**show=gained*")
        page.locator(".row-link").first.click()
        page.wait_for_url("**/samples/*")
        assert page.locator("main h2").first.inner_text() == "Input"
        assert page.locator("main .well").first.inner_text() in ("m1", "m2")
        answers = page.locator(
            "h2:has-text('Its answers') + .scroll tbody tr td:nth-child(3)"
        ).all_inner_texts()
        assert answers[0] == "no"
        assert answers[-1] == "yes"

    browser.look(studio, visit)
