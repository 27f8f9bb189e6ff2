"""Ten questions that people ask of their runs: each is answered by a page that is at most one click from the list."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from optimize.task import client, optimized
from studio.browser import Browser
from studio.made_store import MadeRun
from studio.real_runs import levels, train
from studio.visitor import Studio, started

import afnio
from afnio import tellurio as te
from afnio.errors import TransientModelError
from afnio.models import ChatRequest
from afnio.testing import ScriptedClient

if TYPE_CHECKING:
    from playwright.sync_api import Page


Asked = tuple[Studio, Path, str]
"""A studio, its folder, and the name of the run of optimize."""


@contextmanager
def going(home: Path) -> Iterator[None]:
    """A live run whose calls wait for a limit that the user gave: two are on the wire and get no reply."""

    async def never(request: ChatRequest) -> str:
        await afnio.runtime.to_thread(lambda: released.wait(60))
        return "yes"

    released = threading.Event()
    model = ScriptedClient(never, limits=afnio.Limits(max_in_flight=2))
    with te.init("me", "emails", name="live-tern", dir=home, resume=False) as run:
        messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]
        texts = {"text": [f"mail {number}" for number in range(9)]}
        answers = afnio.cognitive.functional.chat_completion(model, messages, inputs=texts, model="m")
        while [one.waiting for one in afnio.runtime.places().queues] != [7]:
            released.wait(0.01)
        run.log("accuracy", 0.5)  # with each group of rows goes what waits
        run.flush()
        try:
            yield
        finally:
            released.set()
            assert len(answers.data) == 9


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """A studio of runs of optimize, of a Trainer, of one whose model fails now and then, and a killed one."""
    home = tmp_path_factory.mktemp("questions")
    result = optimized(client(), dir=home)
    train(home)
    train(home, "stormy-crane", client=ScriptedClient(stormy()))
    with MadeRun(home / "me" / "emails.db", "lost-crane", namespace="me", status="CRASHED") as run:
        run.db.execute("UPDATE runs SET identity = ?", ('["/home/me", "/home/me/go.py", []]',))
        run.evaluation("epoch 1/val", "Be brief.", [("a", "neutral"), ("b", "neutral")], [1.0, 0.0])
        run.step(1, "a", "b", [])
    journal = home / "me" / "emails" / f"{run.id}.journal"
    journal.parent.mkdir(exist_ok=True)
    journal.touch()
    with started(home) as studio:
        yield studio, home, result.run.rpartition("/")[2]


def stormy() -> Callable[[ChatRequest], object]:
    """Play `levels`, but fail each fifth time."""
    times = iter(range(10_000))

    def reply(request: ChatRequest) -> object:
        if next(times) % 5 == 3:
            raise TransientModelError("503 overloaded", status=503)
        return levels(request)

    return reply


def click(studio: Studio, page: Page, name: str) -> str:
    """Open a run from the list, by one click, and return what can be seen then."""
    page.goto(studio.base)
    page.locator(".row-link", has_text=name).first.click()
    page.wait_for_url("**/runs/**")
    return " ".join(page.locator("main").inner_text().split())


ANSWERS = {
    "a which prompt won, is the gain real?": {
        "optimize": r"Better: \+[\d.]+ points \(95 %: [\d.]+ to [\d.]+\) on \d+ held-out rows.*system .*level \d+",
        "best-second": r"No gain beyond noise: \+50.0 points \(95 %: -26.3 to 93.0\).*Level 03\. The",
        "stormy-crane": r"(No gain beyond noise|Better): \+[\d.]+ points \(95 %.*system prompt",
    },
    "b what is still wrong, what was answered?": {
        "best-second": r"\d wrong now Row Input Expected Before After .* yes no no",
    },
    "c which samples flipped, both ways?": {
        "optimize": r"\d+ better .*Row Input Expected Before After \d+ row \d+ yes no yes",
        "best-second": r"\d better .*Row Input Expected Before After \d+ .*yes no yes",
    },
    "d what changed, by which mistake?": {
        "optimize": r"step \d+ .* row.*The feedback of step \d+, which wrote it: equal: predicted .no., expected .yes.",
        "best-second": r"The feedback of step 3, which wrote it: one level higher",
    },
    "e stuck, limited or finished; when?": {
        "lost-crane": r"Killed\. 1 optimizer step done, last in epoch 1/val\. Nothing that was paid for is lost",
        "best-second": r"completed",
    },
    "f what did it cost, by whom?": {
        "optimize": r"forward student unpriced, [\d,]+ tokens",
        "stormy-crane": r"Calls of .* Cost .*forward m",
    },
    "g how do I take the prompt out?": {
        "optimize": r"Copy Download.*afnio prompts export .*load_prompts\(",
        "best-second": r"Copy Download.*afnio prompts export .*load_prompts\(",
    },
    "i what would a stop leave, how does it go on?": {
        "lost-crane": r"Start the same program again; .* python go\.py",
    },
    "j where did the time go?": {
        "optimize": r"Where the time went Calls of Model Calls Share of time p50 p95 Waited Retries .*forward student",
        "stormy-crane": r"Where the time went .* forward m \d+ [\d.]+ % \S+ m?s \S+ m?s [\d.]+ m?s [1-9]",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("question", ANSWERS)
def test_one_click_answers(asked: Asked, browser: Browser, question: str) -> None:
    """What stands on a run's page without another click."""
    studio, _, name = asked

    def visit(page: Page) -> None:
        for run, want in ANSWERS[question].items():
            seen = click(studio, page, name if run == "optimize" else run)
            assert re.search(want, seen, re.IGNORECASE), f"{run}: {want!r} isn't in {seen}"

    browser.look(studio, visit)


LIVE = (
    r"Running\. .*Limited, not stuck\. \S+: 2 of 2 requests in flight \(your limit\), 7 calls wait",
    r"If it is stopped now, every reply stays in its journal, and the same program continues it",
)


@pytest.mark.slow
def test_one_click_answers_of_a_live_run(asked: Asked, browser: Browser) -> None:
    """e. Stuck or limited? i. What would a stop leave? Above 800 pixels."""
    studio, home, _ = asked

    def visit(page: Page) -> tuple[str, float]:
        seen, box = click(studio, page, "live-tern"), page.locator(".state").bounding_box()
        assert box is not None
        return seen, box["y"] + box["height"]

    with going(home):
        seen, bottom = browser.look(studio, visit)
    assert [bool(re.search(want, seen)) for want in LIVE] == [True, True], seen
    assert bottom <= 800


@pytest.mark.slow
def test_one_click_compares(asked: Asked, browser: Browser) -> None:
    """h. Which of two runs is better, and is it real? The list offers the run before."""
    studio, _, _ = asked

    def visit(page: Page) -> str:
        page.goto(studio.base)
        page.get_by_role("link", name="Compare with best-second").click()
        page.wait_for_url("**/compare**")
        return page.locator(".verdict").first.inner_text()

    said = browser.look(studio, visit)
    assert re.match(
        r"best-second and .+ can't be told apart on 4 samples of test: .* \(95 %: -\d\.\d+ to \d\.\d+\)\.",
        said,
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_the_answer_stands_above_800_pixels(asked: Asked, browser: Browser, width: int) -> None:
    """Verdict with interval, and the kept prompt, or what a live or killed run leaves: on every run's page."""
    studio, _, name = asked

    def visit(page: Page) -> None:
        for run, parts in (
            (name, (".verdict", ".prompts .text")), ("best-second", (".verdict", ".prompts .text")),
            ("stormy-crane", (".verdict", ".prompts .text")), ("lost-crane", (".state",)),
        ):  # fmt: skip
            click(studio, page, run)
            for part in parts:
                box = page.locator(part).first.bounding_box()
                assert box is not None
                assert box["y"] + min(box["height"], 100) <= 800, (run, part)

    browser.look(studio, visit, width=width)
