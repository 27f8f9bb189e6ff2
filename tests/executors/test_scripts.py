"""`executor=` in scripts: one without a guard, and workers whose driver ends without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

NO_GUARD = """
import functools, multiprocessing
from concurrent.futures import ProcessPoolExecutor
import afnio

def double(x):
    return 2 * x

workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
print(afnio.Variable([1, 2]).map(double, executor=workers).data)
"""

DRIVER = """
import functools, multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor
import afnio

def busy(x):
    os.write(1, b"%d\\n" % os.getpid())  # at once: two processes write here
    time.sleep(600)

if __name__ == "__main__":
    workers = functools.partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))
    running = afnio.Variable([1, 2]).map(busy, executor=workers)
    sys.stdin.readline()
    os._exit(1)
"""


@pytest.mark.nightly
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(NO_GUARD)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=110, check=False
    )
    assert 1 == done.returncode
    assert 'put the code of train.py under `if __name__ == "__main__":`' in done.stderr
    assert "" == done.stdout


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("end", ["kill -9", pytest.param("os._exit", marks=pytest.mark.nightly)])
def test_workers_end_with_their_driver(driver: subprocess.Popen[str], end: str) -> None:
    assert driver.stdout is not None
    assert driver.stdin is not None
    workers = [psutil.Process(int(driver.stdout.readline())) for _ in range(2)]
    if end == "kill -9":
        os.kill(driver.pid, signal.SIGKILL)
    else:
        driver.stdin.write("\n")
        driver.stdin.flush()
    _, left = psutil.wait_procs(workers, timeout=30)
    assert [] == left
