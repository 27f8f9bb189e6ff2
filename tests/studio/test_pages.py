"""The pages in a real browser: what they show, how they are used, and how they look."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from studio.browser import Browser
from studio.made_store import FEEDBACK
from studio.visitor import Studio

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

PAGES = ("", "/steps/3", "/samples", "/calls", "/lineage")


def texts(page: Page, selector: str) -> list[str]:
    return [" ".join(one.split()) for one in page.locator(selector).all_inner_texts()]


def test_the_list_filters_and_compares(browser: Browser, studio: Studio) -> None:
    """Runs with their course; a damaged store costs a notice, not the page; two marked runs are compared."""

    def visit(page: Page) -> None:
        assert {"calm-heron", "swift-tern", "keen-otter", "vast-crane"} < set(texts(page, ".row-link"))
        assert page.locator(".spark polyline").count() >= 3
        assert "broken.db is damaged" in page.locator(".notice").inner_text()
        page.select_option("#status", "FAILED")
        page.wait_for_url("**status=FAILED**")
        assert texts(page, ".row-link") == ["swift-tern"]
        page.goto(f"{studio.base}/?q=nothing+like+it")
        assert "No run matches" in page.locator(".empty").inner_text()
        page.goto(f"{studio.base}/?q=mails+sentiment&project=acme/mails")
        compare = page.locator("[data-compare]")
        assert compare.is_disabled()
        page.check("[aria-label='Compare calm-heron']")
        page.check("[aria-label='Compare swift-tern']")
        compare.click()
        page.wait_for_url("**/compare**")
        assert page.locator("main p").first.inner_text().startswith("The baseline is calm-heron.")
        # 24 validation and 8 training samples are in both runs.
        last = next(one for one in texts(page, "tbody tr") if one.startswith("Last evaluation"))
        assert re.search(r"Last evaluation of each sample 32 \d+ \d+ .* to ", last), last
        assert page.locator(".interval").count() >= 5
        assert page.locator(".chart canvas").count() == 2
        assert "swift-tern" in texts(page, ".u-legend")[0]

    browser.look(studio, visit)


def test_the_run_that_is_selected_first_is_the_baseline(browser: Browser, studio: Studio) -> None:
    """Wherever it is in the list; the comparison's page offers the others."""
    from playwright.sync_api import expect

    def baseline(page: Page) -> str:
        page.wait_for_url("**/compare**")
        return page.locator("main p a").first.inner_text()

    def visit(page: Page) -> None:
        page.goto(f"{studio.base}/?q=mails+sentiment&project=acme/mails")
        names = [name for name in texts(page, ".row-link") if name in ("calm-heron", "swift-tern")]
        assert len(names) == 2
        for first, second in (names, reversed(names)):
            page.goto(f"{studio.base}/?q=mails+sentiment&project=acme/mails")
            page.check(f"[aria-label='Compare {second}']")
            page.check(f"[aria-label='Compare {first}']")
            page.uncheck(f"[aria-label='Compare {second}']")
            page.check(f"[aria-label='Compare {second}']")
            page.click("[data-compare]")
            assert first == baseline(page)
            assert page.locator("h3").first.inner_text() == f"{second} minus {first}"
            page.locator("main p a").nth(1).click()
            expect(page.locator("main p a").first).to_have_text(second)
            assert page.locator("h3").first.inner_text() == f"{first} minus {second}"

    browser.look(studio, visit)


UNNAMED = """() => ({
  headings: [...document.querySelectorAll("h1, h2, h3")].filter((one) => one.checkVisibility())
    .map((one) => Number(one.tagName[1])),
  heads: [...document.querySelectorAll("th")].filter((one) => !one.textContent.trim()).length,
  nested: document.querySelectorAll("[role=img] a").length,
  unreachable: [...document.querySelectorAll(".scroll")]
    .filter((one) => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length,
  plain: [...document.querySelectorAll("main p a:not(.button), main dd a, main h3 a, .samples-behind a")]
    .filter((one) => !getComputedStyle(one).textDecorationLine.includes("underline")).length,
})"""


def test_pages_are_accessible(browser: Browser, studio: Studio) -> None:
    """One h1 and no level left out, no empty heads, no links within pictures or told by colour alone."""

    def visit(page: Page) -> None:
        calm, pool = studio.run("calm-heron"), studio.run("keen-otter")
        paths = ["/", f"/compare?run={calm[6:]}&run={studio.run('swift-tern')[6:]}"]
        paths += [calm + rest for rest in (*PAGES, "/samples/1", "/calls/1")]
        paths += [pool + rest for rest in ("/lineage", "/lineage/4", "/steps/2")]
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            for path in paths:
                page.goto(studio.base + path)
                found = page.evaluate(UNNAMED)
                levels = found.pop("headings")
                assert (levels[0], levels.count(1)) == (1, 1), path
                assert all(after <= before + 1 for before, after in pairwise(levels)), path
                assert found == {"heads": 0, "nested": 0, "unreachable": 0, "plain": 0}, (path, width)

    browser.look(studio, visit)


def test_a_part_by_its_own_address_is_a_page(browser: Browser, studio: Studio) -> None:
    """A call and a candidate have a heading of their own there, and nothing that can't be closed."""

    def visit(page: Page) -> None:
        for path, title in (
            (studio.run("calm-heron") + "/calls/1", "forward"),
            (studio.run("keen-otter") + "/lineage/4", "Candidate 4"),
        ):
            page.goto(studio.base + path)
            assert title == page.locator("h1").inner_text()
            assert page.locator("main [data-do=close]").count() == 0
        page.locator("dd a:has-text('candidate')").first.click()
        page.wait_for_url("**/lineage/*")

    browser.look(studio, visit)


def test_a_step_tells_what_changed_why_and_what_it_did(browser: Browser, studio: Studio) -> None:
    """The prompt's new words, the feedback that shares them and its samples, samples won and lost."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("calm-heron") + "/steps/3")
        assert texts(page, ".diff ins") == [
            "overall",
            "Words of thanks at the end don't make it positive.",
            "lower-case",
        ]
        assert page.locator(".diff del").count() == 0
        by_sentence = {
            " ".join(one.locator(".said").inner_text().split()): one.locator(".evidence p").all_inner_texts()
            for one in page.locator(".sentence").all()
        }
        thanks, capital, overall = FEEDBACK[2]
        assert by_sentence["Words of thanks at the end don't make it positive."] == [thanks]
        assert capital == by_sentence["Answer with one lower-case word."][0]
        assert overall == next(found for said, found in by_sentence.items() if "overall" in said)[0]
        assert "shared words" in page.locator(".evidence .by").first.inner_text()
        outcome = texts(page, "h2:has-text('won and lost') ~ p")[0]
        assert re.match(r"[1-9]\d* won [1-9]\d* lost \d+ unchanged of 24 samples", outcome), outcome
        # Sample 0 is wrong after the second step and right after the third, sample 1 the other way round.
        rows = texts(page, ".outcome tbody tr")
        assert any(re.match(r"epoch 3/val 0 0 → 1", row) for row in rows)
        assert any(re.match(r"epoch 3/val 1 1 → 0", row) for row in rows)
        page.locator(".samples-behind a").first.click()
        page.wait_for_url("**/samples/*")
        assert "training" not in page.title()
        became = page.locator("h2:has-text('Steps that used') ~ blockquote a").first
        became.click()
        page.wait_for_url("**/steps/*")

    browser.look(studio, visit)


def test_a_step_shows_where_each_block_comes_from_and_its_race(browser: Browser, studio: Studio) -> None:
    """The record in place of the guess: blocks with their samples and intervals, edits left out, the race."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("brisk-lynx") + "/steps/3")
        assert page.locator(".sentence").count() == 0
        assert "guess" not in page.locator("main").inner_text()
        clear = "+0.250 (+0.030 to +0.470)"
        assert texts(page, ".blocks tbody tr")[1:] == [
            f"Answer with one lower-case word. replaced: Answer with one word. step 2 31, 4 2 5 1 10 {clear}",
            "Thanks at the end don't make a message positive. step 3 17, 4, 52 1 2 2 4 ±0 (−0.400 to +0.400)",
            "Treat polite requests without complaint as neutral. step 3 8 0 0 0 0 not raced",
        ]
        assert page.locator(".blocks .interval .clear").count() == 1
        assert "isn't there" in texts(page, "h3:has-text('left out') + ul li")[0]
        heads = texts(page, ".race thead th")
        assert heads == ["Candidate", "Sum", "On", "5", "12", "19", "23", "40", "41", "58", "60"]
        rows = texts(page, ".race tbody tr")
        assert len(rows) == 6
        assert re.match(r"union goes on \d 8 ", rows[4]), rows[4]
        assert page.locator(".race td.none").count() == 4 * 4
        page.locator(".race tbody a").nth(4).click()
        page.wait_for_url("**/lineage/4")

    browser.look(studio, visit)


def test_a_sample_and_its_calls(browser: Browser, studio: Studio) -> None:
    """The way of a wrong sample there and back; a call opens beside it, with what was said and paid."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("calm-heron") + "/samples?show=failed")
        page.locator(".row-link").first.click()
        page.wait_for_url("**/samples/*")
        assert texts(page, ".way .name") == ["chat_completion", "exact_match_evaluator", "chat_completion"]
        assert page.locator("h2:has-text('Its answers') + .scroll tbody tr").count() == 4
        forward, back = page.locator(".calls-inline a").all()
        forward.click()
        drawer = page.locator("#drawer[open]")
        drawer.wait_for()
        assert [one.split()[0] for one in texts(page, "#drawer .who")] == ["system", "user", "reply"]
        assert "$0.0004" in drawer.inner_text()
        page.keyboard.press("Escape")
        page.locator("#drawer:not([open])").wait_for(state="attached")
        back.click()
        drawer.wait_for()
        assert "should be" in drawer.locator(".well").first.inner_text()
        drawer.get_by_text("its way through the graph").count()
        drawer.locator("[data-do=close]").click()
        page.goto(studio.base + studio.run("calm-heron") + "/calls?status=failed")
        page.locator(".row-link").click()
        drawer.wait_for()
        assert drawer.locator("p.warn").count() == 7
        assert "504 Gateway Timeout" in drawer.locator(".notice").inner_text()

    browser.look(studio, visit)


def test_a_pool_has_a_lineage(browser: Browser, studio: Studio) -> None:
    """Candidates under those that they were made from; each opens as a difference from its parent."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("keen-otter") + "/lineage")
        assert page.locator("tbody tr").count() == page.locator(".tree circle").count() == 13
        assert page.locator(".tree path").count() >= 12
        assert page.locator(".tree .best").count() == 1
        page.locator(".row-link").nth(4).click()
        drawer = page.locator("#drawer[open]")
        drawer.wait_for()
        assert "Candidate 4" in drawer.inner_text()
        assert texts(page, "#drawer .diff ins")[0] == "4"

    browser.look(studio, visit)


def test_keys(browser: Browser, studio: Studio) -> None:
    """All of it without a mouse."""

    def visit(page: Page) -> None:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        names = texts(page, ".row-link")
        for key in "jjk":
            page.keyboard.press(key)
        assert names[0] == page.evaluate("document.activeElement.textContent")
        assert page.evaluate("document.activeElement.matches(':focus-visible')")
        assert page.evaluate("getComputedStyle(document.activeElement.closest('tr')).outlineStyle") != "none"
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.type("calm j")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.tagName") == "BODY"
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("j")
        page.keyboard.press("Escape")
        assert not page.locator("#help").is_visible()
        page.goto(f"{studio.base}/?q=calm-heron")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url("**/runs/**")
        page.goto(page.url + "/steps/1")
        page.keyboard.press("]")
        page.wait_for_url("**/steps/2")
        page.keyboard.press("[")
        page.wait_for_url("**/steps/1")
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.keyboard.press("g")
        page.wait_for_url(studio.base + "/")

    browser.look(studio, visit)


def test_where_a_run_ran(browser: Browser, studio: Studio) -> None:
    """Its replicas, each with its calls, and its executors; nothing of that for a run in one place."""

    def visit(page: Page) -> None:
        page.goto(studio.base + studio.run("wide-heron"))
        assert texts(page, "#about h2")[:2] == ["Replicas", "Executors"]
        rows = texts(page, "h2:has-text('Replicas') + .scroll tr")
        assert rows[0].upper() == "REPLICA CALLS FAILED LEFT OUT MEAN TIME"
        assert rows[1] == "http://10.0.0.1:8000/v1 qwen 6 0 0 600 ms"
        assert rows[2] == "http://10.0.0.2:8000/v1 qwen 3 7 2 600 ms"
        assert (
            texts(page, "h2:has-text('Executors') + .scroll tr")[1] == "ProcessPoolExecutor (processes) 2 3"
        )
        page.click("text=http://10.0.0.2:8000/v1")
        page.wait_for_url("**/calls?q=**")
        assert page.locator("tbody tr").count() == 3
        page.goto(studio.base + studio.run("calm-heron"))
        assert not {"Replicas", "Executors"} & set(texts(page, "h2"))

    browser.look(studio, visit)


CONTRAST = """() => {
  const curve = (part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  const channel = (value) => curve(value / 255);
  const light = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const ground = (one) => { for (; one; one = one.parentElement) { const found = getComputedStyle(one).backgroundColor;
    if (!found.endsWith(", 0)") && found !== "transparent") return found; } return "rgb(255, 255, 255)"; };
  let worst = [99, ""];
  for (const one of document.querySelectorAll("main *, .bar *")) {
    if (!one.checkVisibility() || one.closest("svg, [disabled], .hidden-label")) continue;
    if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    const pair = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst[0]) worst = [ratio, one.className + " " + one.textContent.trim().slice(0, 40)];
  }
  return worst;
}"""


def test_it_is_readable(browser: Browser, studio: Studio) -> None:
    """Nothing wider than the screen, and every text stands out from its ground, in both themes, wide and narrow."""

    def check(page: Page, path: str, width: int, scheme: Any) -> None:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
        ratio, where = page.evaluate(CONTRAST)
        assert ratio >= 4.5, (path, width, scheme, where)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (scheme == "dark") == (int(paper.split("(")[1].split(",")[0]) < 128)

    def visit(page: Page) -> None:
        pages = [studio.run("calm-heron") + rest for rest in PAGES]
        pages += [
            "/",
            studio.run("keen-otter") + "/lineage",
            studio.run("wide-heron"),
            studio.run("calm-heron") + "/samples/1",
            "/nowhere",
        ]
        for path in pages:
            # Loaded narrow and dark, so that a page is made for this and not only brought to it.
            page.goto(studio.base + path)
            for width, scheme in (
                (400, "dark"),
                (400, "light"),
                (1280, "light"),
                (1280, "dark"),
                (400, "dark"),
            ):
                check(page, path, width, scheme)

    browser.look(studio, visit, width=400, scheme="dark", errors=["404"])


def harmless(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        """() => ({
          owned: window.owned ?? null,
          images: document.querySelectorAll("img, iframe, object, embed").length,
          handlers: [...document.querySelectorAll("*")].flatMap((one) => [...one.attributes])
            .filter((one) => one.name.startsWith("on") || /^javascript:/i.test(one.value)).length,
          inline: [...document.scripts].filter((one) => !one.src && one.type !== "application/json").length,
          hidden: /[\\u202a-\\u202e\\u2066-\\u2069\\ufeff]/.test(document.documentElement.outerHTML),
          marked: document.querySelectorAll(".control").length,
        })"""
    )
    return found


def test_hostile_texts_stay_texts(browser: Browser, studio: Studio) -> None:
    """Tags, attributes, reordering characters and a mebibyte, on every page that shows them."""
    from playwright.sync_api import expect

    run = studio.run("&lt;img src=x onerror=alert(1)&gt;")

    def visit(page: Page) -> None:
        for path in (
            "",
            "/steps/1",
            "/steps/2",
            "/samples",
            "/samples/1",
            "/calls",
            "/calls/1",
            "/lineage",
            "/lineage/1",
        ):
            page.goto(studio.base + run + path)
            found = harmless(page)
            assert found.pop("marked") > 0, path
            assert found == {"owned": None, "images": 0, "handlers": 0, "inline": 0, "hidden": False}, path
        page.goto(studio.base + run + "/calls")
        page.locator(".row-link").first.click()
        page.locator("#drawer[open]").wait_for()
        text = page.locator("#drawer .text").first

        def grown() -> int:
            return len(text.text_content() or "")

        assert 20_000 < grown() < 21_000
        text.get_by_text("Show more").click()
        expect(text.locator(".more")).to_contain_text("40,000 of")
        assert 40_000 < grown() < 41_000
        text.locator("[data-all]").click()
        expect(text.locator(".more")).to_have_count(0)
        assert 1_048_576 < grown() < 1_049_000
        found = harmless(page)
        assert (found["owned"], found["images"], found["hidden"]) == (None, 0, False)

    browser.look(studio, visit)


def test_pages_of_another_origin_get_nothing(browser: Browser, studio: Studio, tmp_path: Path) -> None:
    """A name that was rebound to this machine, a page of another port that asks or embeds: nothing is shown."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(
                f"<script src={studio.base}/static/studio.js></script><iframe src={studio.base}/>".encode()
            )

        def log_message(self, *_: object) -> None:
            pass

    def visit(page: Page) -> None:
        answer = page.goto(f"http://rebound.example:{studio.port}/?token={studio.token}")
        assert answer is not None
        assert (answer.status, "Runs" in page.content()) == (403, False)
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        asked = "url => fetch(url, {credentials: 'include'}).then((r) => r.text(), (error) => 'refused')"
        assert page.evaluate(asked, studio.base + "/") == "refused"
        opaque = (
            "url => fetch(url, {credentials: 'include', mode: 'no-cors'}).then((r) => r.text(), () => '')"
        )
        assert page.evaluate(opaque, studio.base + "/") == ""
        assert "calm-heron" not in "".join(frame.content() for frame in page.frames)

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            browser.look(
                studio,
                visit,
                errors=["rebound", "CORS", "Failed to load", "frame", "Cross-Origin", "refused"],
            )
        finally:
            server.shutdown()
            thread.join()
