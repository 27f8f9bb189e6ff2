"""The pages of the studio and of the documentation have nothing that axe, the checker of accessibility, finds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import pytest
from optimize.task import client, optimized
from studio.browser import Browser
from studio.real_runs import train
from studio.visitor import Studio, started

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[2]
PER_KIND = 3
"""Pages of one kind, as of a call, that are checked."""

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checker's source, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm: apt-get install npm")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--prefix", folder, "axe-core@~4.14.1"],
        check=True, timeout=120,
    )  # fmt: skip
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio of a run of `optimize` and a training."""
    home = tmp_path_factory.mktemp("axe-runs")
    optimized(client(), dir=home)
    train(home)
    with started(home) as found:
        yield found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The documentation, built and served; its address."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder],
        check=True, timeout=300, cwd=ROOT,
    )  # fmt: skip
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def crawl(page: Page, start: str, source: str, kind: str) -> tuple[int, list[str]]:
    """Check the pages that links lead to, at most `PER_KIND` of each kind, and return their number and the findings.

    Args:
        kind: a pattern of what is left out of an address to tell its kind.
    """
    waiting, met, kinds = [start], {start}, dict[str, int]()
    checked, findings = 0, list[str]()
    while waiting:
        here = waiting.pop(0)
        kinds[sort] = kinds.get(sort := re.sub(kind, "_", urlsplit(here).path), 0) + 1
        if kinds[sort] > PER_KIND:
            continue
        page.goto(here)
        for opened in page.locator("details:not([open]) > summary").all():
            if opened.is_visible():
                opened.click()
        page.evaluate(source)
        checked += 1
        for one in page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]:
            places = [node["html"][:160] for node in one["nodes"][:3]]
            findings.append(f"{here}: {one['id']}, {one['help']}: {places}")
        for link in page.eval_on_selector_all("a[href]:not([download])", "all => all.map(a => a.href)"):
            there = urljoin(here, link).partition("#")[0]
            if there not in met and there.startswith(start):
                met.add(there)
                waiting.append(there)
    return checked, findings


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_studio(runs: Studio, browser: Browser, axe: str, scheme: str) -> None:
    def visit(page: Page) -> tuple[int, list[str]]:
        return crawl(page, f"{runs.base}/", axe, r"(?<=/)\d+(?=/|$)|(?<=/runs/)[^/]+/[^/]+/[^/]+")

    checked, findings = browser.look(runs, visit, scheme=scheme, seconds=600)
    assert not findings, "\n".join(findings)
    assert checked > 20


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation(site: str, browser: Browser, axe: str, scheme: str) -> None:
    def visit(page: Page) -> tuple[int, list[str]]:
        return crawl(page, site, axe, "^$")

    checked, findings = browser.look(None, visit, scheme=scheme, seconds=600)
    assert not findings, "\n".join(findings)
    assert checked > 50
