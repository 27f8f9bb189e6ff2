"""The card: what a run found stands first, and is the same wherever the run is shown."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
import openai
import pytest
from optimize.task import agent_of, client, equal, rows
from studio.browser import Browser
from studio.made_store import MadeRun
from studio.real_runs import train
from studio.visitor import Studio, started

import afnio
from afnio import tellurio as te
from afnio.cli import main
from afnio.cognitive import Module
from afnio.runtime.events import CircuitClosed, CircuitOpened
from afnio.testing import Provider, ScriptedClient
from afnio.trainer import Callback, Trainer

if TYPE_CHECKING:
    from playwright.sync_api import Page

TRAINED = "No gain beyond noise: +50.0 points (95 %: -26.3 to 93.0) on 4 test rows."


class Recorded(NamedTuple):
    """A folder with a run of `optimize` and one of a Trainer, and a studio of it."""

    home: Path
    result: afnio.Result
    studio: Studio

    @property
    def name(self) -> str:
        return self.result.run.rpartition("/")[2]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    home = tmp_path_factory.mktemp("cards")
    model = client()
    result = afnio.optimize(
        agent_of(model), rows(100), equal, prompts={"system": "level 2"}, critic=(model, "critic"),
        budget=afnio.budget(max_calls=400), dir=home,
    )  # fmt: skip
    train(home)
    with started(home) as studio:
        yield Recorded(home, result, studio)


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def shown(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> str:
    assert main([*arguments, "--dir", str(home)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("which", ["optimize", "trainer"])
def test_it_is_the_same_everywhere(
    recorded: Recorded, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verdict in a sentence: in the list, on the page, in the report, on the command line, in a notebook."""
    name, verdict = (
        (recorded.name, recorded.result.verdict) if which == "optimize" else ("best-second", TRAINED)
    )
    shown(capsys, recorded.home, "report", name, "-o", str(tmp_path / "page.html"))
    listed = json.loads(shown(capsys, recorded.home, "runs", "list", "--json"))
    places = [
        words(recorded.studio.page("/").text),
        words(recorded.studio.page(recorded.studio.run(name)).text),
        words((tmp_path / "page.html").read_text()),
        shown(capsys, recorded.home, "runs", "show", name),
        *(run["verdict"] for run in listed if run["name"] == name),
    ]
    if which == "optimize":
        recorded.result.report(tmp_path / "own.html")
        places += [words((tmp_path / "own.html").read_text()), words(recorded.result._repr_html_())]
    assert [verdict in place for place in places] == [True] * len(places)


@pytest.mark.slow
def test_the_answer_stands_above_800_pixels(recorded: Recorded, browser: Browser) -> None:
    """Verdict, interval and kept prompt, of a study and of a training, without scrolling."""

    def visit(page: Page) -> None:
        for name in (recorded.name, "best-second"):
            page.goto(recorded.studio.base + recorded.studio.run(name))
            for part in (".verdict", ".bars", ".prompts ins"):
                box = page.locator(part).first.bounding_box()
                assert box is not None
                assert box["y"] + box["height"] <= 800
            assert "95 %" in page.locator(".verdict").inner_text()

    browser.look(recorded.studio, visit)


@pytest.mark.slow
def test_the_prompt_is_taken_as_it_is(recorded: Recorded, browser: Browser, tmp_path: Path) -> None:
    """Copied and downloaded, from the studio and from a report's file."""
    report = recorded.result.report(tmp_path / "report.html")

    def visit(page: Page) -> None:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        for address in (recorded.studio.base + recorded.studio.run(recorded.name), report.as_uri()):
            page.goto(address)
            page.get_by_role("button", name="Copy").click()
            page.get_by_role("button", name="Copied").wait_for()
            assert page.evaluate("navigator.clipboard.readText()") == recorded.result.prompts["system"]
            with page.expect_download() as found:
                page.get_by_role("button", name="Download").click()
            assert found.value.suggested_filename == "system.txt"
            assert Path(found.value.path()).read_text() == recorded.result.prompts["system"]

    browser.look(recorded.studio, visit)


@pytest.mark.parametrize("which", ["optimize", "trainer"])
def test_the_page_says_how_to_load_the_prompt(
    recorded: Recorded, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In Python and in the shell; the line gives the prompt that the page shows."""
    name = recorded.name if which == "optimize" else "best-second"
    page = unescape(recorded.studio.page(recorded.studio.run(name)).text)
    (address,) = re.findall(r'prompts = afnio.load_prompts\("(run:[^"]+)"\)', page)
    assert f"afnio prompts export {address.removeprefix('run:')}" in page
    monkeypatch.setenv("AFNIO_HOME", str(recorded.home))
    shown_prompts = json.loads(page.partition('id="prompts">')[2].partition("</script>")[0])
    assert list(afnio.load_prompts(address).values()) == [text for _, text in shown_prompts]


def test_the_prompt_has_each_blocks_record(recorded: Recorded) -> None:
    """The step that wrote it, and the samples that it won and lost."""
    page = recorded.studio.page(recorded.studio.run(recorded.name)).text
    prompt = words(page.partition('class="text well lines">')[2].partition("</div></div>")[0])
    assert re.fullmatch(r"level 10 step \d+ · \d+ won, \d+ lost · rows? [\d, ]+ level 2", prompt)


def test_wrong_rows_come_first(tmp_path: Path) -> None:
    """Then those that got worse, then the better ones; a row that crashed is in none."""
    model = client()
    result = afnio.optimize(
        agent_of(model), rows(100), lambda output, expected, inputs: odd(output, inputs),
        prompts={"system": "level 2"}, critic=(model, "critic"), budget=afnio.budget(max_calls=400), dir=tmp_path,
    )  # fmt: skip
    page = result.report(tmp_path / "page.html").read_text()
    groups = [(title.lower(), len(found)) for title, found in result.card.groups]
    found = re.findall(r"<summary><strong>(\d+)</strong> (wrong now|worse|better)", page)
    assert [(title, int(count)) for count, title in found] == groups
    assert groups[0][0] == "wrong now"


def odd(output: str, inputs: str) -> bool:
    """Rows 0, 10, 20, … can't be answered."""
    return output == "yes" and not inputs.endswith("0")


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    """Says what there is of it, and how it goes on."""
    with MadeRun(tmp_path / "acme" / "one.db", "lost-crane", status="CRASHED") as run:
        run.db.execute(
            "UPDATE runs SET identity = ?", (json.dumps(["/home/me", "/home/me/go.py", ["--all"]]),)
        )
        run.evaluation("epoch 1/val", "Be brief.", [("a", "neutral"), ("b", "neutral")], [1.0, 1.0])
        run.step(1, "a", "b", [])
    journal = tmp_path / "acme" / "one" / f"{run.id}.journal"
    with started(tmp_path) as studio:
        found = words(studio.page(studio.run("lost-crane")).text)
        assert "Killed. 1 optimizer step done, last in epoch 1/val. It has no journal" in found
        journal.parent.mkdir()
        journal.touch()
        found = words(studio.page(studio.run("lost-crane")).text)
    assert (
        "Nothing that was paid for is lost: 2 replies are in its journal. Start the same program again"
        in found
    )
    assert "python go.py --all" in found


def test_a_run_that_runs(tmp_path: Path) -> None:
    """Says so, and what a stop would leave."""
    with (
        started(tmp_path) as studio,
        te.init("me", "emails", name="live-tern", dir=tmp_path, resume=False) as run,
    ):
        run.flush()
        found = words(studio.page(studio.run("live-tern")).text)
    assert "Running. 0 optimizer steps done. If it is stopped now, every reply stays in its journal" in found


def test_what_a_live_run_waits_for(tmp_path: Path) -> None:
    """A limit is named where it slows a run down, and a provider that doesn't answer; silence has a length."""
    path = tmp_path / "me" / "emails.db"
    with (
        started(tmp_path) as studio,
        te.init("me", "emails", name="slow-tern", dir=tmp_path, resume=False) as run,
    ):

        def pulse(waiting: int, *events: object) -> str:
            for event in events:
                run.observe(event)
            run.flush()
            with sqlite3.connect(path) as db:
                db.execute("UPDATE runs SET waiting = ?", (waiting,))
            page = studio.page(studio.run("slow-tern")).text
            return words(page.partition('data-n="pulse">')[2].partition("</p>")[0])

        assert re.fullmatch(r"No reply yet, after \d+\.?\d* m?s\.", pulse(0))
        assert pulse(12).startswith("12 calls wait, for a budget or to be tried again.")
        down = CircuitOpened("https://host/v1", 5, "refused")
        assert "Calls wait for https://host/v1, which doesn't answer: refused." in pulse(0, down)
        assert "doesn't answer" not in pulse(0, CircuitClosed("https://host/v1", 3.0))


def test_how_far_a_live_run_is(tmp_path: Path) -> None:
    """The page of a Trainer's run says what its display would: k of n, and the best so far."""
    pages: list[str] = []

    class Reader(Callback):
        def on_validation_end(self, trainer: Trainer, agent: Module) -> None:
            run = te.get_active_run()
            assert run is not None
            run.log("seen", len(pages))  # with each group of rows goes how far the run is
            run.flush()
            pages.append(words(studio.page(studio.run("best-second")).text))

    with started(tmp_path) as studio:
        train(tmp_path, callbacks=[Reader()])
    assert re.search(
        r"Levels, epoch 2/3, step 2, 0:\d\d.*, best val score 0.5000\. train 1/1, score 0.0000 .*\. val 4/4,",
        pages[-2],
    )


async def test_a_quota_is_named_with_its_use_and_the_next_call(tmp_path: Path) -> None:
    """A limit that the user gave is named where it slows a run down, on its page as in `places()`."""
    client = ScriptedClient("yes", limits=afnio.Limits(requests_per_minute=1))
    said = r"1 of 1 requests a minute used \(your limit\), the next goes in [\d.]+ s, 3 calls wait"

    async def ask(number: int) -> None:
        await client.achat(messages=[{"role": "user", "content": f"mail {number}"}], model="m")

    with started(tmp_path) as studio:
        async with (
            te.init("me", "emails", name="slow-tern", dir=tmp_path, resume=False) as run,
            anyio.create_task_group() as tasks,
        ):
            for number in range(4):
                tasks.start_soon(ask, number)
            while [queue.waiting for queue in afnio.runtime.places().queues] != [3]:
                await anyio.sleep(0.01)
            (queue,) = afnio.runtime.places().queues
            run.log("asked", 4)  # with each group of rows goes what waits
            run.flush()
            page = words((await anyio.to_thread.run_sync(studio.page, studio.run("slow-tern"))).text)
            tasks.cancel_scope.cancel()
    assert re.fullmatch(f"\\S+: {said}", str(queue))
    assert re.search(f"Limited, not stuck. .*: {said}.", page)


def test_a_model_that_is_played_is_named(tmp_path: Path) -> None:
    """Replies of `afnio provider` are no model's: the page, and the file that a colleague gets, say so."""
    with Provider.process() as provider, afnio.bridge.installed():
        asked = openai.OpenAI(base_url=provider.base_url, api_key="any")
        with te.init("me", "emails", name="played", dir=tmp_path, resume=False) as run:
            asked.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "hello"}])
            run.log("accuracy", 0.5)
    assert main(["report", "played", "-o", str(tmp_path / "page.html"), "--dir", str(tmp_path)]) == 0
    assert "simulated by afnio provider" in words((tmp_path / "page.html").read_text())


def test_a_text_that_is_restored_keeps_the_step_that_made_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint sets an older text: the page of the command line names that one's step, too."""
    model = client()
    prompt = afnio.Parameter("level 2", role="system prompt")
    with te.init("me", "emails", name="restored", dir=tmp_path, resume=False) as run:
        for before, after in (("level 2", "level 4"), ("level 4", "level 6"), ("level 4", "level 4")):
            prompt.data = before
            run.observe(stepped(before, after))
    del model
    said = shown(capsys, tmp_path, "runs", "show", "restored")
    assert "system prompt, since step 2, made in step 1:\n    level 4" in said


def stepped(before: str, after: str) -> object:
    from afnio.optim import Change
    from afnio.runtime.events import StepEnded

    changes = (Change("system prompt", before, after, 1, None),)
    return StepEnded("run/1", "TGD", changes, None, (), (("system prompt", after),))


def test_feedback_is_shown_without_the_calls_that_it_is_about(recorded: Recorded) -> None:
    """They have the whole prompt, once for each mistake: a click shows them."""
    page = recorded.studio.page(recorded.studio.run(recorded.name) + "/steps/1").text
    said = re.findall(r'<blockquote class="evidence">\s*<p>(.*?)</p>', page, re.DOTALL)
    assert said
    assert all("level 2" not in one and "&lt;trace&gt;" not in one for one in said)
    assert "level 2" in page.partition("the calls that it is about")[2].partition("</details>")[0]
