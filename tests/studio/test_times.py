"""Where the time went: by purpose and model on a run's page, and as a waterfall on a step's."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from studio.made_store import MadeRun
from studio.visitor import started

MESSAGES = [{"role": "user", "content": "hello"}]


def cells(html: str, title: str) -> list[list[str]]:
    """Return the texts of the table that follows a heading."""
    table = html.partition(f">{title}</h2>")[2].partition("<tbody>")[2].partition("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in found]


def test_the_slow_ones_stand_beside_the_usual_ones(tmp_path: Path) -> None:
    """Half within 0.1 s, but 95 % only within 2.1 s; what waited and what was tried again is in the same line."""
    with MadeRun(tmp_path / "acme" / "one.db", "slow-crane") as run:
        for number in range(20):
            run.call(
                f"run/{number}", "chat", 0, "forward", MESSAGES, "yes", seconds=2.1 if number > 17 else 0.1
            )
        run.call("run/20", "chat", None, "step", MESSAGES, "new", seconds=2.0, attempts=3)
    with started(tmp_path) as studio:
        rows = cells(studio.page(studio.run("slow-crane")).text, "Where the time went")
    assert [row[:8] for row in rows] == [
        ["forward", "gpt-4.1-nano", "20", "75.0 %", "100 ms", "2.1 s", "100 ms", "0"],
        ["step", "gpt-4.1-nano", "1", "25.0 %", "2.0 s", "2.0 s", "100 ms", "2"],
    ]


def test_a_steps_calls_are_drawn_over_its_time(tmp_path: Path) -> None:
    """Only those since the step before; each waits, then is on the wire, and the last ends at the right edge."""
    with MadeRun(tmp_path / "acme" / "one.db", "slow-crane") as run:
        run.call("run/0", "chat", 0, "forward", MESSAGES, "yes", phase="epoch 1/step 1")
        run.step(1, "a", "b", [])
        run.call("run/1", "chat", 0, "forward", MESSAGES, "yes", phase="epoch 1/step 2", seconds=0.9)
        run.call("run/2", "chat", 0, "step", MESSAGES, "c", error="400 too long", phase="epoch 1/step 2")
        run.step(2, "b", "c", [])
    with started(tmp_path) as studio:
        html = studio.page(f"{studio.run('slow-crane')}/steps/2").text
    assert [row[:6] for row in cells(html, "Where its time went")] == [
        ["epoch 1/step 2", "forward", "gpt-4.1-nano", "1", "0 ms", "1.0 s"],
        ["epoch 1/step 2", "step", "gpt-4.1-nano", "1", "320 ms", "1.0 s"],
    ]
    bars = re.findall(r'<rect class="(\w+ ?\w*)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)
    assert [(kind, round(1.02 * float(x)), round(1.02 * float(width))) for kind, x, width in bars] == [
        ("waits", 0, 100),
        ("wire", 100, 900),
        ("waits", 320, 100),
        ("wire failed", 420, 600),
    ]


def test_of_many_calls_some_are_drawn(tmp_path: Path) -> None:
    """All are counted, and the page stays small."""
    with MadeRun(tmp_path / "acme" / "one.db", "slow-crane") as run:
        for number in range(1_201):
            run.call(f"run/{number}", "chat", 0, "forward", MESSAGES, "yes")
        run.step(1, "a", "b", [])
    with started(tmp_path) as studio:
        html = studio.page(f"{studio.run('slow-crane')}/steps/1").text
    assert "1,201 calls in " in html
    assert "of which 400 are drawn" in html
    assert html.count('<rect class="wire') == 400
