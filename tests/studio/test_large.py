"""A run of 100,000 calls stays usable: every page is quick, and lists go on by key."""

from __future__ import annotations

import re
import time
from statistics import median, quantiles

import pytest
from studio.visitor import Studio

LIMIT = 0.6
"""Seconds that 95 of 100 pages may take: four times those on an idle machine. A scan of the calls takes longer."""


@pytest.mark.slow
def test_pages_of_a_hundred_thousand_calls(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    """The 95th percentile over the kinds of pages, of each page's quickest of six rounds."""
    run = studio.run("vast-crane")
    paths = [
        "/",
        run,
        f"{run}?after=20",
        f"{run}/calls",
        f"{run}/calls?before=50000",
        f"{run}/calls?status=failed",
    ]
    paths += [
        f"{run}/calls?purpose=backward&before=30000",
        f"{run}/calls?q=nothing+like+it",
        f"{run}/calls/99999",
    ]
    paths += [
        f"{run}/samples",
        f"{run}/samples?before=20000&show=never",
        f"{run}/samples?q=nothing+like+it",
        f"{run}/samples?phase=epoch+7",
    ]
    paths += [f"{run}/samples/25000", f"{run}/steps/20", f"{run}/steps/40", f"{run}/lineage"]
    paths += [f"/compare?run={run[6:]}&run={studio.run('calm-heron')[6:]}"]
    rounds: list[list[float]] = []
    best: list[float] = []
    # Others share the machine, and interrupt one page or another of each round: the quickest is what the studio takes.
    while len(rounds) < 6 and (not rounds or late(best) > LIMIT):
        rounds.append([])
        for path in paths:
            began = time.perf_counter()
            assert studio.page(path).status == 200, path
            rounds[-1].append(time.perf_counter() - began)
        best = [min(taken) for taken in zip(*rounds, strict=True)]
    with capsys.disabled():
        print(
            f"\n100,000 calls: a page in {1000 * median(best):.0f} ms, 95 % within {1000 * late(best):.0f} ms "
            f"({len(rounds)} rounds)"
        )
    assert late(best) <= LIMIT


def late(taken: list[float]) -> float:
    """The seconds within which 95 of 100 were."""
    return quantiles(taken, n=100)[94]


def test_lists_go_on_by_key(studio: Studio) -> None:
    """Following "older" leads to each call once, newest first, whatever is added meanwhile."""
    path, seen = studio.run("vast-crane") + "/calls?status=failed", []
    for _ in range(10):
        text = studio.page(path).text
        seen += [int(number) for number in re.findall(r'class="row-link" href="[^"]*/calls/(\d+)"', text)]
        older = re.search(r'rel="next" href="(\?before=[^"]+)"', text)
        if older is None:
            break
        path = studio.run("vast-crane") + "/calls" + older.group(1).replace("&amp;", "&")
    assert len(set(seen)) == len(seen) == 101
    assert sorted(seen, reverse=True) == seen
