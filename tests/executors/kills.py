"""Run lanes on an executor while their workers are killed: `python kills.py executor lanes kills url journal`.

Prints one JSON object: what came out, how many workers were killed, and the failed lanes.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
from executors.engines import executor_of
from kit import errands

import afnio


def workers() -> list[psutil.Process]:
    """Return the processes that run lanes."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if (
            "ray::_run" in command
            or "ray::IDLE" in command
            or (("spawn_main" in command or "popen_loky" in command) and "resource_tracker" not in command)
        ):
            found.append(child)
    return found


def main() -> None:
    name, lanes, kills, url, journal = sys.argv[1:]
    executor = executor_of(name)
    function: Any = functools.partial(errands.ask_slowly, url) if url else errands.slowly
    rows = [str(number) for number in range(int(lanes))]
    killed = 0
    ended = threading.Event()
    batches: list[afnio.Variable] = []

    def done() -> int:
        return sum(slot.done for batch in batches for slot in batch.cell()[0])

    def kill() -> None:
        nonlocal killed
        chosen = random.Random(17)
        before = 0
        while killed < int(kills) and not ended.wait(0.05):
            found = workers()
            if done() < before + 3 or not found:
                continue  # a pool whose workers die before their first task isn't used any longer
            try:
                os.kill(chosen.choice(found).pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
            before = done()

    with afnio.journal(Path(journal)) if journal else nullcontext(), afnio.tolerate(quorum=0.01):
        _ = afnio.Variable(rows[:2]).map(errands.double, executor=executor).data
        killer = threading.Thread(target=kill)
        killer.start()
        outputs: list[str] = []
        failed: dict[int, str] = {}
        while killed < int(kills) or not outputs:  # one more batch, until all of the kills are done
            found = afnio.Variable(rows).map(function, executor=executor)
            batches.append(found)
            assert isinstance(found.data, list)
            outputs += found.data
            failed |= {lane: str(error) for lane, error in found.errors.items()}
        ended.set()
        killer.join()
    right = sum(output == rows[number % len(rows)].upper() for number, output in enumerate(outputs))
    print(json.dumps({"lanes": len(outputs), "right": right, "killed": killed, "failed": failed}))
    sys.stdout.flush()
    afnio.runtime.close()


if __name__ == "__main__":
    main()
