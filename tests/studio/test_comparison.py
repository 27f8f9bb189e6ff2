"""Two runs side by side: the studio says what `afnio runs compare` says."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from studio.made_store import MadeRun
from studio.visitor import started

from afnio.cli import main


def scored(path: Path, name: str, samples: Sequence[tuple[str, str | None, float | None]]) -> None:
    with MadeRun(path, name) as run:
        for place, (phase, key, score) in enumerate(samples):
            run.insert(
                "samples", node="run/1", lane=place, phase=phase, key=key, score=score, success=1, time=run.time
            )  # fmt: skip


def test_the_page_and_the_command_give_the_same_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal samples one by one, the batches of an evaluation together, the last phase of each kind."""
    path = tmp_path / "acme" / "mails.db"
    first = [("epoch 1/val", "a", 0.0), ("epoch 1/val", "twin", 0.0), ("epoch 1/val", "twin", 1.0)]
    first += [("epoch 1/step 1", "b", 0.5)]
    second = [("epoch 1/val", "a", 1.0), ("epoch 1/val", "twin", 1.0), ("epoch 1/step 1", "b", 0.5)]
    second += [("epoch 2/val/batch 1", "twin", 1.0), ("epoch 2/val/batch 1", "a", 1.0)]
    second += [("epoch 2/val/batch 2", "twin", 1.0), ("epoch 2/val/batch 2", "new", 0.0)]
    scored(path, "before", [*first, ("epoch 1/val", None, 1.0), ("epoch 1/val", "failed", None)])
    scored(path, "after", second)
    assert main(["runs", "compare", "before", "after", "--json", "--dir", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)

    with started(tmp_path) as studio:
        keys = [studio.run(name).removeprefix("/runs/") for name in ("before", "after")]
        page = studio.page(f"/compare?run={keys[0]}&run={keys[1]}").text
    rows = re.findall(r"<tr><td>([^<]+)</td>" + 4 * r'<td class="n[^"]*">([^<]+)</td>', page)
    shown = {title: figures for title, *figures in rows}
    kinds = {one["kind"]: one for one in said["phases"]}
    for title, paired in (
        ("Last evaluation of each sample", said["last"]),
        ("epoch 1/val vs epoch 2/val", kinds["epoch/val"]["paired"]),
        ("epoch 1/step 1", kinds["epoch/step"]["paired"]),
    ):
        difference = f"+{paired['difference']:.3f}" if paired["difference"] else "±0"
        assert shown[title] == [*(str(paired[name]) for name in ("samples", "won", "lost")), difference]
    # "a" and the first "twin" are won; the second one was right before.
    assert shown["epoch 1/val vs epoch 2/val"][:3] == ["3", "2", "0"]
    assert shown["Last evaluation of each sample"][:3] == ["4", "2", "0"]
    assert shown["epoch 1/val"][0] == "2"
    assert kinds["epoch/val"]["samples"] == [3, 4]


def test_means_beside_a_difference_are_of_the_same_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two figures can be subtracted: what only one run evaluated is in none of them. A sentence sums it up."""
    path = tmp_path / "acme" / "mails.db"
    scored(path, "before", [("test", f"row {n}", float(n < 12)) for n in range(24)])
    scored(path, "after", [("test", f"row {n}", 1.0) for n in range(8, 40)])
    assert main(["runs", "compare", "before", "after", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "test vs test: 0.250 → 1.000; 16 samples in both" in said
    claim = "after is better than before on 16 samples of test: +0.750"
    assert claim in said
    with started(tmp_path) as studio:
        keys = [studio.run(name).removeprefix("/runs/") for name in ("before", "after")]
        page = studio.page(f"/compare?run={keys[0]}&run={keys[1]}").text
    assert claim in page.replace("&#43;", "+")


def test_the_samples_that_differ_and_all_pairs(tmp_path: Path) -> None:
    """Test rows stand first, then who did what on the rows that differ; three runs are compared with one another."""
    path = tmp_path / "acme" / "mails.db"
    for name, right in (("bad", 0), ("good", 24), ("better", 23)):
        with MadeRun(path, name) as run:
            rows = [(f"mail {n}", "neutral") for n in range(24)]
            for text, _ in rows:
                run.insert("inputs", key=hashlib.sha256(text.encode()).hexdigest(), text=text)
            run.evaluation("epoch 1/val", "Be brief.", rows, [1.0] * 24)
            run.evaluation("test", "Be brief.", rows, [float(n < right) for n in range(24)])
    with started(tmp_path) as studio:
        keys = [studio.run(name).removeprefix("/runs/") for name in ("bad", "good", "better")]
        html = studio.page(f"/compare?run={keys[0]}&run={keys[1]}&run={keys[2]}").text
        first = re.search(r'<td><a href="([^"]+)">negative</a> <span class="faint">0</span></td>', html)
        assert first is not None
        assert "mail 0" in studio.page(first[1]).text
    assert '<span class="clip">mail 23</span>' not in html  # 20 of each are shown
    assert html.count('<span class="clip">mail 0</span>') == 2
    visible = re.sub(r"<details.*?</details>", "", html, flags=re.DOTALL)
    assert re.findall(r"<tr><td>([^<]+)</td>", visible.partition("Figures")[0]) == ["test", "test"]
    assert re.findall(r"<strong>(\d+)</strong> (\w+) in (\w+)", html) == [
        ("24", "better", "good"),
        ("23", "better", "better"),
    ]
    table = html.partition('class="pairs"')[2].partition("</table>")[0]
    cells = re.findall(r'<td class="n( \w+)?"[^>]*>([^<]+)', table)
    assert [one for _, one in cells] == [
        "–",
        "−1",
        "−0.958",
        "+1",
        "–",
        "+0.042",
        "+0.958",
        "−0.042",
        "–",
    ]
    assert [tone for tone, _ in cells] == [
        " faint",
        " bad",
        " bad",
        " good",
        " faint",
        "",
        " good",
        "",
        " faint",
    ]
