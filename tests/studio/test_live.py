"""A run that goes on, watched in a browser."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from studio.browser import Browser
from studio.made_store import PROMPTS
from studio.visitor import Studio

import afnio
from afnio import tellurio as te
from afnio.models import ChatRequest
from afnio.models.openai import AsyncOpenAI
from afnio.optim import Change
from afnio.runtime import to_thread
from afnio.runtime.events import StepEnded
from afnio.testing import Provider, ScriptedClient

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHIFTS = """() => { window.shifts = []; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (!entry.hadRecentInput) for (const source of entry.sources)
    window.shifts.push((source.node?.outerHTML ?? source.node?.data ?? "").slice(0, 80));
}).observe({type: "layout-shift"}); }"""


@pytest.mark.slow
def test_a_live_run(browser: Browser, start: Callable[..., Studio], tmp_path: Path) -> None:
    """Figures, curves and steps follow what the run records, nothing jumps, and the end is seen."""
    from playwright.sync_api import expect

    studio = start(tmp_path)
    client = ScriptedClient("good")
    # A plain start records what other threads do, as the browser's is one.
    run = te.init("me", "live", name="live-otter", dir=tmp_path, resume=False)

    def work(number: int) -> None:
        for word in range(3):
            message = {"role": "user", "content": f"mail {number} {word}"}
            client.chat(messages=[message], model="m")
        run.log("accuracy", 0.5 + number / 10, step=number)
        change = Change("system prompt", PROMPTS[number], PROMPTS[number + 1], gradients=2)
        afnio.runtime.events.emit(StepEnded(f"run/step {number}/1", "TGD", (change,), None))
        run.flush()

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("live-otter"))
        assert page.locator("[data-status=RUNNING]").is_visible()
        assert "No optimizer step" in page.locator("[data-steps]").inner_text()
        page.evaluate(SHIFTS)
        worker.submit(work, 0).result()
        expect(page.locator("[data-n=calls]")).to_have_text("3")
        worker.submit(work, 1).result()
        expect(page.locator("[data-n=calls]")).to_have_text("6")
        page.locator("[data-steps] tbody tr").nth(1).wait_for()
        assert page.locator("[data-n=metric]").inner_text() == "0.600"
        page.locator("[data-chart=metrics] canvas").wait_for()
        assert "accuracy" in page.locator("[data-chart=metrics] .u-legend").inner_text()
        assert page.evaluate("window.shifts") == []
        run.finish()
        page.locator("[data-status=COMPLETED]").wait_for()
        assert page.locator("[data-n=problem]").is_hidden()

    try:
        with ThreadPoolExecutor(1) as worker:
            browser.look(studio, visit)
    finally:
        run.finish()


@pytest.mark.slow
def test_what_waits_is_not_in_flight(browser: Browser, start: Callable[..., Studio], tmp_path: Path) -> None:
    """Calls that the account has no room for are told apart; the tables below and the time follow, too."""
    from playwright.sync_api import expect

    studio = start(tmp_path)
    gate = threading.Event()

    async def answer(request: ChatRequest) -> str:
        await to_thread(gate.wait, 60)
        return "yes"

    client = ScriptedClient(answer, limits=afnio.Limits(max_in_flight=2))
    run = te.init("me", "live", name="queued-crane", dir=tmp_path, resume=False)

    def launch() -> afnio.Variable:
        inputs = {"text": afnio.Variable([f"mail {number}" for number in range(9)], role="mail")}
        messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]
        answers = afnio.cognitive.functional.chat_completion(client, messages, inputs=inputs, model="m")
        return afnio.cognitive.functional.exact_match_evaluator(answers, ["yes"] * 9)[0]

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("queued-crane"))
        scores = worker.submit(launch).result()
        expect(page.locator("[data-n=in_flight]")).to_have_text("2")
        expect(page.locator("[data-n=waiting]")).to_have_text("7 waiting")
        assert "Where the time went" not in page.locator("#about").inner_text()
        gate.set()
        assert worker.submit(lambda: scores.data / 9).result() == 1.0
        worker.submit(run.flush).result()
        expect(page.locator("#about")).to_contain_text("Where the time went")
        expect(page.locator("h2:has-text('Evaluations') + .scroll tbody td:nth-child(2)")).to_have_text("9")
        expect(page.locator("[data-n=in_flight]")).to_have_text("0")
        expect(page.locator("[data-n=waiting]")).to_have_text("")
        run.finish()
        page.locator("[data-status=COMPLETED]").wait_for()
        head, took = page.locator("[data-n=seconds]").all_inner_texts()
        assert head == took

    try:
        with ThreadPoolExecutor(1) as worker:
            browser.look(studio, visit)
    finally:
        gate.set()
        run.finish()


@pytest.mark.nightly
def test_what_runs_where(browser: Browser, start: Callable[..., Studio], tmp_path: Path) -> None:
    """Each replica with its state and what it does at this moment."""
    from playwright.sync_api import expect

    studio = start(tmp_path)
    nobody = "http://127.0.0.1:9/v1"
    run = te.init("me", "live", name="wide-crane", dir=tmp_path, resume=False)

    def launch(client: AsyncOpenAI) -> afnio.Variable:
        inputs = {"text": [f"mail {number}" for number in range(5)]}
        messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]
        return afnio.cognitive.functional.chat_completion(client, messages, inputs=inputs, model="m")

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("wide-crane"))
        assert "Replicas" not in page.locator("#about").inner_text()
        replies = worker.submit(launch, client).result()
        cells = page.locator("h2:has-text('Replicas') + .scroll tbody tr").nth(0).locator("td")
        expect(cells.nth(0)).to_have_text(f"{nobody} qwen")
        expect(cells.nth(1)).to_have_text("out")
        cells = page.locator("h2:has-text('Replicas') + .scroll tbody tr").nth(1).locator("td")
        expect(cells.nth(1)).to_have_text("in")
        expect(cells.nth(3)).to_have_text("5")
        worker.submit(lambda: replies.data).result()
        expect(cells.nth(2)).to_have_text("5")
        expect(cells.nth(3)).to_have_text("0")

    try:
        with ThreadPoolExecutor(1) as worker, Provider.process(latency=8.0) as provider:
            client = AsyncOpenAI(base_url=[nobody, provider.base_url], name="qwen", api_key="any")
            browser.look(studio, visit)
    finally:
        run.finish()
