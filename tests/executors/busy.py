"""A driver whose lanes are in workers and don't end: `python busy.py executor`.

It prints "busy" when they have begun. SIGUSR1 ends it as a second Ctrl-C ends a Trainer's program.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from executors.engines import executor_of
from kit import errands

import afnio


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(130))
    make = executor_of(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, str(number))) for number in range(2)]
        running = afnio.Variable(paths).map(errands.wait_for, executor=make)
        while len(list(Path(folder).iterdir())) < 2:
            time.sleep(0.05)
        sys.stdout.write("busy\n")
        sys.stdout.flush()
        print(running.data)


if __name__ == "__main__":
    main()
