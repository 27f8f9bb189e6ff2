"""`executor=` in scripts: one without a guard, and workers whose driver ends without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import nbformat
import psutil
import pytest
from kit.endpoint import Endpoint
from nbclient import NotebookClient

NO_GUARD = """
import functools, multiprocessing
from concurrent.futures import ProcessPoolExecutor
import afnio

def double(x):
    return 2 * x

workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
print(afnio.Variable([1, 2]).map(double, executor=workers).data)
"""

CALLS = """
import functools, multiprocessing
from concurrent.futures import ProcessPoolExecutor
import afnio, afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI

client = AsyncOpenAI(api_key="any-key-0123")
messages = [{"role": "user", "content": [afnio.Variable("hello")]}]
prediction = cog.functional.chat_completion(client, messages, {}, model="m")
print(prediction.data)
workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
print(prediction.map(str, executor=workers).data)
"""

NO_CLOUDPICKLE = """
import functools, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
sys.modules["cloudpickle"] = None
import afnio

def double(x):
    return 2 * x

if __name__ == "__main__":
    workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context("spawn"))
    print(afnio.Variable([1, 2]).map(double, executor=workers).data)
    try:
        afnio.Variable([1, 2]).map(lambda x: x, executor=workers)
    except TypeError as error:
        print(error)
"""

CELLS = [
    """
import functools, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
import afnio

factor = 3
workers = functools.partial(ProcessPoolExecutor, 1, mp_context=multiprocessing.get_context('spawn'))

def triple(x):
    return factor * x
""",
    "print(afnio.Variable([1, 2]).map(triple, executor=workers).data)",
    """
sys.modules['cloudpickle'] = None
afnio.Variable([1, 2]).map(triple, executor=workers)
""",
]

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


def test_a_program_from_standard_input_is_told_to_be_a_file() -> None:
    """At once: a worker can't import it."""
    done = subprocess.run(
        [sys.executable, "-"], input=NO_GUARD, capture_output=True, text=True, timeout=60, check=False
    )
    assert "(got one from standard input); save the program in a file and run that" in done.stderr
    assert (done.returncode, done.stdout) == (1, "")


@pytest.mark.nightly
def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(NO_GUARD)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 1
    assert 'put the code of train.py under `if __name__ == "__main__":`' in done.stderr
    assert done.stdout == ""


@pytest.mark.nightly
async def test_calls_of_a_script_without_a_guard_are_made_once(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(CALLS)
    async with Endpoint() as endpoint:
        done = await anyio.run_process(
            [sys.executable, str(script)],
            check=False,
            env={**os.environ, "OPENAI_BASE_URL": f"{endpoint.url}/v1"},
        )
    assert 'put the code of train.py under `if __name__ == "__main__":`' in done.stderr.decode()
    assert done.stdout.decode().strip() == "HELLO"
    assert len(endpoint.asked) == 1


@pytest.mark.nightly
def test_a_script_without_cloudpickle(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(NO_CLOUDPICKLE)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=110, check=True
    )
    values, error = done.stdout.splitlines()
    assert values == "[2, 4]"
    assert "must be importable (got the lambda at train.py:14" in error
    assert "install cloudpickle" in error


@pytest.mark.nightly
def test_a_function_of_a_notebook() -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    client = NotebookClient(book, timeout=110, kernel_name="python3", allow_errors=True)
    client.execute()
    assert book.cells[1].outputs[0].text.strip() == "[3, 6]"
    assert "move it to a module, or install cloudpickle" in book.cells[2].outputs[0].evalue


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
    _, left = psutil.wait_procs(workers, timeout=60)
    assert left == []
