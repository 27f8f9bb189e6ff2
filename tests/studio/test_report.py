"""A run as one file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from studio.browser import Browser
from studio.made_store import MadeRun, make_training

from afnio.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Page, Request


def afnio(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "afnio.cli", "report", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_command(home: Path, tmp_path: Path) -> None:
    """Writes the file, names it, keeps it for this user; says what there is where there is no such run."""
    done = afnio("calm-heron", "--dir", str(home), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "calm-heron.html\n", "")
    assert (tmp_path / "calm-heron.html").stat().st_mode & 0o777 == 0o600
    missing = afnio("alm-heron", "--dir", str(home), "-o", "x.html", folder=tmp_path)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "calm-heron" in missing.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["calm-heron.html"]


def written(home: Path, wanted: str, path: Path) -> str:
    """Write a report by the command and return its text."""
    assert main(["report", wanted, "-o", str(path), "--dir", str(home)]) == 0
    return path.read_text()


def test_a_name_of_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists their full names, and a full name works."""
    for project in ("one", "two"):
        make_training(tmp_path / "acme" / f"{project}.db")
    assert main(["report", "calm-heron", "--dir", str(tmp_path)]) == 1
    assert "acme/one/calm-heron, acme/two/calm-heron" in capsys.readouterr().err
    assert "acme / two" in written(tmp_path, "acme/two/calm-heron", tmp_path / "report.html")


def test_the_beginning_of_an_id_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A word means the same run in `afnio report` and `afnio runs`, also as the studio writes it."""
    run = make_training(tmp_path / "acme" / "one.db")
    assert run.id in written(tmp_path, run.id[:6], tmp_path / "report.html")
    capsys.readouterr()
    for word in (run.id[:6], f"acme/one/{run.id}"):
        assert main(["runs", "show", word, "--dir", str(tmp_path)]) == 0
        assert run.id in capsys.readouterr().out


@pytest.mark.slow
def test_it_needs_nothing_else(browser: Browser, home: Path, tmp_path: Path) -> None:
    """Opened from the disk it draws its curves and asks for nothing; hostile texts are texts there, too."""
    for name in ("calm-heron", "<img src=x onerror=alert(1)>"):
        path = tmp_path / "report.html"
        text = written(home, name, path)
        assert not re.search(r'(src|href)="(?!#)', text)
        asked: list[str] = []

        def visit(page: Page, path: Path = path, asked: list[str] = asked) -> None:
            page.on("request", lambda request: note(request, asked))
            page.goto(path.as_uri())
            page.locator("[data-chart=metrics] canvas").wait_for()
            assert page.evaluate("window.owned ?? null") is None
            assert page.locator("img").count() == 0
            page.locator("#steps + .scroll .row-link, #steps ~ .scroll .row-link").first.click()
            assert page.locator("#step-1 summary").first.is_visible()
            page.locator("#step-1 summary").first.click()
            assert page.locator("#step-1 .diff").first.is_visible()
            page.keyboard.press("t")
            assert page.evaluate("document.documentElement.dataset.theme") == "dark"
            page.set_viewport_size({"width": 400, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= 400

        browser.look(None, visit)
        assert asked == [path.as_uri()]


def test_it_opens_with_what_happened(tmp_path: Path) -> None:
    """The metrics come first; of the steps the last one is open that changed something."""
    path = tmp_path / "acme" / "one.db"
    with MadeRun(path, "slow-crane") as run:
        for name, value in (("baseline", 0.25), ("final", 0.75), ("val_failed", 0.0)):
            run.metric(name, 0, value)
        for number, (before, after) in enumerate([("a", "b"), ("b", "c"), ("c", "c"), ("c", "c")], 1):
            run.step(number, before, after, [])
    text = written(tmp_path, "slow-crane", tmp_path / "report.html")
    assert re.findall(r'id="step-(\d)" class="step">\s*<details open>', text) == ["2"]
    body = " ".join(re.sub(r"<[^>]+>", " ", text.partition("<main")[2]).split())
    assert "baseline – 0.250" in body
    assert body.index("final – 0.750") < body.index("Tokens in") < body.index("Step 1")
    assert "val_failed" not in body.partition("Steps")[0]


def note(request: Request, asked: list[str]) -> None:
    asked.append(request.url.partition("#")[0])
