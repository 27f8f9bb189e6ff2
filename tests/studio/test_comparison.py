"""Two runs side by side: the studio says what `afnio runs compare` says."""

from __future__ import annotations

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
    claim = "The second run is better than the first on 16 samples of test: +0.750"
    assert claim in said
    with started(tmp_path) as studio:
        keys = [studio.run(name).removeprefix("/runs/") for name in ("before", "after")]
        page = studio.page(f"/compare?run={keys[0]}&run={keys[1]}").text
    assert claim in page.replace("&#43;", "+")
