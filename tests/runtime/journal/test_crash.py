"""kill -9 at any moment: what was acknowledged is there, and the file opens."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from afnio.runtime._journal import Journal

if TYPE_CHECKING:
    from conftest import Script

KILLS = 12
IN_FLIGHT = 100

# One program forks the victims: importing the package anew for each would take longest.
VICTIMS = """
def work(start):
    os.write(1, b"%d\\n" % os.getpid())
    free = threading.Semaphore(100)
    with Journal.open(path) as journal:
        for number in itertools.count(start):
            free.acquire()
            def done(error, number=number):
                assert error is None
                os.write(1, b"%d\\n" % number)
                free.release()
            journal.append(reply(f"{number}", b"%d" % number * 100, key=f"{number:08x}"), done)

for line in sys.stdin:
    pid = os.fork()
    if not pid:
        work(int(line))
    os.waitpid(pid, 0)
    os.write(1, b"ended\\n")
"""


@pytest.mark.parametrize("seed", [0])
def test_killed_at_random(path: Path, script: Script, seed: int) -> None:
    """Twelve times into the same file; at most the calls in flight are there unacknowledged."""
    chance = random.Random(seed)
    program = script(VICTIMS)
    acknowledged: list[int] = []
    start = 0
    for _ in range(KILLS):
        program.stdin.write(f"{start}\n")
        program.stdin.flush()
        victim = int(program.stdout.readline())
        allowed = chance.randint(1, 3000)
        got = []
        while (line := program.stdout.readline()) != "ended\n":
            got.append(int(line))
            if len(got) == allowed:
                os.kill(victim, signal.SIGKILL)
        assert got == [*range(start, start + len(got))]
        acknowledged += got
        start += len(got) + IN_FLIGHT
        check(path, acknowledged, start)


def check(path: Path, acknowledged: list[int], end: int) -> None:
    with Journal.open(path) as journal:
        found = [number for number in range(end) if taken(journal, number)]
        assert set(acknowledged) <= set(found)
        assert len(found) <= len(acknowledged) + KILLS * IN_FLIGHT
        assert len(found) == journal.spent().total.calls


def taken(journal: Journal, number: int) -> bool:
    record = journal.take(f"{number}", f"{number:08x}")
    return record is not None and record.payload == b"%d" % number * 100
