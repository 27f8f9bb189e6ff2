"""Orders that a run's page gives, and those that nobody may give."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from studio.browser import Browser
from studio.visitor import Answer, Studio

import afnio.tellurio as te
from afnio.cli import main
from afnio.errors import RunStoppedError
from afnio.testing import ScriptedClient

if TYPE_CHECKING:
    from playwright.sync_api import Page

ASK = [{"role": "user", "content": "Hi"}]


@pytest.fixture(name="run")
def live_run(tmp_path: Path) -> Iterator[te.Run]:
    with te.init("me", "p", name="steered", dir=tmp_path) as run:
        run.flush()
        yield run


@pytest.fixture(name="studio")
def own_studio(start: Callable[..., Studio], tmp_path: Path) -> Studio:
    return start(tmp_path)


def order(
    studio: Studio, run: te.Run, command: str, headers: dict[str, str] | None = None, **limits: str
) -> Answer:
    """Send what the form of the run's page sends, with other headers if they are given."""
    studio.page("/")
    assert studio.cookie is not None
    body = urlencode({"command": command, **limits})
    given = {"Origin": studio.base, "Cookie": studio.cookie} if headers is None else headers
    return studio.get(f"/runs/me/p/{run.id}/control", "POST", body, **given)


def orders(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["runs", "show", "steered", "--json", "--dir", str(folder)]) == 0
    return [one["text"] for one in json.loads(capsys.readouterr().out)["orders"]]


def test_an_order_is_given_and_shown(
    studio: Studio, run: te.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer leads back to the page, which has it with its time and origin; then it is in force."""
    answer = order(studio, run, "pause")
    assert (answer.status, answer.headers["location"]) == (303, f"/runs/me/p/{run.id}")
    page = studio.page(f"/runs/me/p/{run.id}").text
    assert "<li>paused by the page, " in page
    assert "Paused by the page " in page
    assert "Last reply" not in page
    assert "No reply yet" not in page
    assert order(studio, run, "resume").status == 303
    assert order(studio, run, "limit", max_calls="9", max_cost="0.5", tokens_per_minute="").status == 303
    assert order(studio, run, "limit", max_calls="8").status == 303
    page = studio.page(f"/runs/me/p/{run.id}").text
    assert 'placeholder="now 8"' in page
    assert 'placeholder="now 0.5"' in page
    assert orders(tmp_path, capsys) == [
        "paused by the page",
        "resumed by the page",
        "max_calls set to 9, max_cost set to 0.5 by the page",
        "max_calls set to 8 by the page",
    ]


def test_a_stop_from_the_page_ends_the_run(studio: Studio, run: te.Run) -> None:
    """Of the process that runs it."""
    assert order(studio, run, "stop").status == 303
    client = ScriptedClient("hi")
    with pytest.raises(RunStoppedError, match="the run steered was stopped by the page"):
        while True:
            client.chat(messages=ASK, model="m")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Cookie": ""}, 401),
        ({"Cookie": "afnio_studio_1=nothing"}, 401),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
def test_nobody_else_gives_an_order(
    headers: dict[str, str], status: int, studio: Studio, run: te.Run, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without the cookie, from another origin or host: a sentence, and nothing is changed."""
    studio.page("/")
    assert studio.cookie is not None
    given = {"Origin": studio.base, "Cookie": studio.cookie} | headers
    answer = order(studio, run, "pause", given)
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (status, "text/plain")
    assert len(answer.text.splitlines()) == 1
    assert orders(tmp_path, capsys) == []


def test_the_token_alone_gives_no_order(
    studio: Studio, run: te.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither in the address without the cookie, nor without an origin, nor by a link."""
    path = f"/runs/me/p/{run.id}/control?token={studio.token}"
    assert studio.get(path, "POST", "command=pause", Origin=studio.base).status == 401
    studio.page("/")
    assert studio.cookie is not None
    assert studio.get(path, "POST", "command=pause", Cookie=studio.cookie).status == 403
    assert studio.page(f"/runs/me/p/{run.id}/control?command=pause").status == 405
    assert orders(tmp_path, capsys) == []


@pytest.mark.parametrize(
    ("command", "limits", "status", "said"),
    [
        (
            "limit",
            {"max_calls": "10"},
            409,
            "max_calls must be at most 9 (got 10); only the command line and code",
        ),
        ("limit", {"max_calls": "none"}, 409, "max_calls must be at most 9 (got none)"),
        ("limit", {"max_tokens": "none"}, 409, "the page only lowers limits"),
        ("limit", {"max_calls": "many"}, 400, "a limit must be a number or none (got &#39;many&#39;)"),
        ("limit", {"max_calls": "-1"}, 400, "max_calls must be a whole number of 1 or more (got -1.0)"),
        ("limit", {"max_cost": "inf"}, 400, "max_cost must be a number of dollars, 0 or more (got inf)"),
        ("limit", {"max_in_flight": "9" * 400}, 400, "max_in_flight must be a whole number of 1 or more"),
        ("limit", {"max_calls": "9" * 5000}, 413, "an order has at most 4,096 bytes"),
        ("limit", {"name": "1"}, 400, "a limit must be one of"),
        ("limit", {}, 400, "a limit must be given"),
        (
            "delete",
            {},
            400,
            "an order must be one of pause, resume, limit, stop, stop now (got &#39;delete&#39;)",
        ),
        ("<script>", {}, 400, "(got &#39;&lt;script&gt;&#39;)"),
    ],
)
def test_an_order_that_is_none(
    command: str, limits: dict[str, str], status: int, said: str, studio: Studio, run: te.Run, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A raise, or junk: a page with a sentence, and nothing is changed."""
    run.limit(max_calls=9)
    run.flush()
    answer = order(studio, run, command, **limits)
    assert answer.status == status
    assert said in answer.text
    assert orders(tmp_path, capsys) == ["max_calls set to 9 by its program"]


def test_a_run_whose_process_died(studio: Studio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sentence says so. A run that isn't there is not found."""
    program = f"""
import os
import afnio.tellurio as te
run = te.init("me", "p", name="steered", dir={str(tmp_path)!r})
run.flush()
print(run.id, flush=True)
os._exit(9)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    dead: Any = type("Dead", (), {"id": found.stdout.strip()})
    answer = order(studio, dead, "pause")
    assert answer.status == 409
    assert "me/p/steered must be running (it was killed); start its program again first" in answer.text
    dead.id = "nothing"
    assert order(studio, dead, "pause").status == 404
    assert orders(tmp_path, capsys) == []
    assert "Stop now" not in studio.page("/").text


@pytest.mark.slow
def test_the_buttons_of_a_page(browser: Browser, studio: Studio, run: te.Run) -> None:
    """They work without a script of ours, and the page follows what others order."""
    from playwright.sync_api import expect

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("steered"))
        page.get_by_role("button", name="Pause").click()
        expect(page.get_by_text("Paused: nothing is sent.")).to_be_visible()
        expect(page.get_by_role("list", name="Orders")).to_contain_text("paused by the page")
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("button", name="Pause")).to_be_visible()
        page.get_by_text("Limit it").click()
        page.get_by_label("In flight", exact=True).fill("4")
        page.get_by_role("button", name="Lower").click()
        expect(page.get_by_role("list", name="Orders")).to_contain_text("max_in_flight set to 4 by the page")
        pulse = page.locator("[data-n=pulse]")
        expect(pulse).not_to_have_text(pulse.inner_text())  # the page listens to the run
        run.pause()
        run.flush()
        expect(page.get_by_role("list", name="Orders")).to_contain_text("paused by its program")

    browser.look(studio, visit)
