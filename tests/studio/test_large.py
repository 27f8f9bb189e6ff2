"""A run of 100,000 calls stays usable: every page is quick, and lists go on by key."""

from __future__ import annotations

import re
import time
from statistics import quantiles

import pytest
from studio.visitor import Studio

LIMIT = 0.150
"""Seconds that 95 of 100 pages may take."""


@pytest.mark.slow
def test_pages_of_a_hundred_thousand_calls(studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    """The 95th percentile over the kinds of pages, in the quietest of six rounds."""
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
    paths += [f"{run}/samples", f"{run}/samples?before=20000&success=0", f"{run}/samples?phase=epoch+7"]
    paths += [f"{run}/samples/25000", f"{run}/steps/20", f"{run}/steps/40", f"{run}/lineage"]
    paths += [f"/compare?run={run[6:]}&run={studio.run('calm-heron')[6:]}"]
    rounds: list[list[float]] = [[] for _ in range(6)]
    for taken in rounds:
        for path in paths:
            began = time.perf_counter()
            assert 200 == studio.page(path).status, path
            taken.append(time.perf_counter() - began)
    everything = [one for taken in rounds for one in taken]
    middle, late = quantiles(everything, n=100)[49], quantiles(everything, n=100)[94]
    # Others share the machine: the best round is what the studio itself takes.
    best = min(quantiles(taken, n=100)[94] for taken in rounds)
    with capsys.disabled():
        print(
            f"\n100,000 calls: a page in {1000 * middle:.0f} ms, 95 % within {1000 * late:.0f} ms, "
            f"in the quietest round within {1000 * best:.0f} ms"
        )
    assert best <= LIMIT


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
    assert 101 == len(seen) == len(set(seen))
    assert sorted(seen, reverse=True) == seen
