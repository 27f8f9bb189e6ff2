"""The summary: complete, harmless, and while others write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from afnio.runtime._journal import Journal
from afnio.runtime._spending import Item, Spent
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from conftest import Reply, Script


def test_summary(path: Path, reply: Reply) -> None:
    """Rows, sums, times, size and version; nothing is left beside the file."""
    with Journal.open(path) as journal:
        journal.append(reply("1", created=10.0, usage=Usage(1, 2)), lambda error: None)
        journal.append(reply("2", created=11.0, kind="unknown", usage=Usage(3, 4)), lambda error: None)
        journal.append(reply("3", created=12.5, model="n"), lambda error: None)
    summary = Journal.stat(str(path))
    expected = {
        Item("forward", "", "m"): Spent(1, 2, 1, Usage(1, 2), Usage(3, 4), unpriced=2),
        Item("forward", "", "n"): Spent(calls=1, attempts=1, unpriced=1),
    }
    assert summary.spent.items == expected
    assert Spent(2, 3, 1, Usage(1, 2), Usage(3, 4), unpriced=3) == summary.total
    assert (path, 2, 3, 10.0, 12.5) == (
        summary.path, summary.version, summary.records, summary.first, summary.last,
    )  # fmt: skip
    assert path.stat().st_size == summary.size
    assert os.listdir(path.parent) == [path.name]


def test_empty(path: Path) -> None:
    Journal.open(path).close()
    summary = Journal.stat(path)
    assert (summary.records, summary.spent.items, summary.first, summary.last) == (0, {}, None, None)


def test_while_another_process_writes(path: Path, script: Script) -> None:
    """It never waits for the writer, never sees half a group, and never goes back."""
    program = script(
        """
        stop = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
        free = threading.Semaphore(100)
        with Journal.open(path) as journal:
            journal.append(reply("first"), lambda error: print("first", flush=True))
            number = 0
            while not stop.is_set():
                free.acquire()
                number += 1
                journal.append(reply(f"{number}", b"x" * 1000), lambda error: free.release())
        print(number + 1)
        """
    )
    assert program.stdout.readline() == "first\n"
    seen = [0]
    while seen[-1] < 3000:
        summary = Journal.stat(path)
        assert summary.records == summary.total.calls
        seen.append(summary.records)
    assert sorted(seen) == seen
    output, errors = program.communicate(timeout=50)
    assert errors == ""
    assert int(output) == Journal.stat(path).records
