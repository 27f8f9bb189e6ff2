"""Two runs side by side: the studio says what `afnio runs compare` says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from studio.made_store import MadeRun

from afnio.cli import main
from afnio.tellurio._queries import StoreReader
from afnio.tellurio.studio._compare import compare_page, compared
from afnio.tellurio.studio._runs import Tallies


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
    assert 0 == main(["runs", "compare", "before", "after", "--json", "--dir", str(tmp_path)])
    said = json.loads(capsys.readouterr().out)

    tallies = Tallies()
    with StoreReader(path) as reader, reader.moment():
        rows = [reader.run(name) for name in ("before", "after")]
        page = compare_page([compared(reader, row, tallies) for row in rows if row is not None])
    ((_, lines),) = page["paired"]
    kinds = {one["kind"]: one for one in said["phases"]}
    shown = {title: paired._asdict() for title, paired in lines}
    assert said["last"] == shown["Last evaluation of each sample"]
    assert kinds["epoch/val"]["paired"] == shown["epoch 1/val vs epoch 2/val"]
    assert kinds["epoch/step"]["paired"] == shown["epoch 1/step 1"]
    # "a" and the first "twin" are won; the second one was right before.
    assert (3, 2, 0) == lines[1][1][:3]
    assert (4, 2, 0) == lines[0][1][:3]
    assert ("epoch 1/val", 2) == (lines[-1][0], lines[-1][1].samples)
    assert [3, 4] == kinds["epoch/val"]["samples"]
