"""The tutorial's program, unchanged: a script, two threads at once, a notebook; and its asynchronous form."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = EXAMPLES / "optimization_loop.py"
BASELINE = 25  # of the 68 test messages: what the simulated LM scores with the first prompt

pytestmark = [
    pytest.mark.skipif(
        "AFNIO_DATA" not in os.environ,
        reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
    ),
    pytest.mark.timeout(120),
]


def accuracies(printed: str) -> list[float]:
    return [float(found) for found in re.findall(r"Accuracy: ([\d.]+)%", printed)]


def learned(printed: str) -> None:
    found = accuracies(printed)
    assert len(found) == 5
    assert min(found[1:]) / 100 * 68 >= BASELINE + 12, found


def test_script(environment: dict[str, str], tmp_path: Path) -> None:
    """As a plain script the prompt gets better, epoch after epoch is printed, the run is recorded."""
    run = subprocess.run(
        [sys.executable, "-W", "error", PROGRAM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("Done!\n")
    learned(run.stdout)
    assert (tmp_path / ".afnio" / "username" / "my-project.db").is_file()


TWICE = """
import pathlib, sys, threading
program = compile(pathlib.Path(sys.argv[1]).read_text(), sys.argv[1], "exec")
failed = []
def run():
    try:
        exec(program, {"__name__": "__main__"})
    except BaseException as error:
        failed.append(error)
        raise
threads = [threading.Thread(target=run) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.exit(len(failed))
"""


def test_two_threads(environment: dict[str, str], tmp_path: Path) -> None:
    """Two threads run the program at once in one process."""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", TWICE, PROGRAM],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    assert len(accuracies(run.stdout)) == 10
    assert run.stdout.count("Done!") == 2


def test_notebook(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a Jupyter kernel, cell by cell."""
    source = PROGRAM.read_text()
    lines = source.splitlines()
    starts = [node.lineno - 1 for node in ast.parse(source).body]
    bounds = [*starts[1:], len(lines)]
    cells = ["\n".join(lines[start:end]) for start, end in zip(starts, bounds, strict=True)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    NotebookClient(
        notebook, timeout=100, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    learned("".join(output.text for cell in notebook.cells for output in cell.outputs if "text" in output))


@pytest.mark.parametrize("arguments", [[], ["--trio"]])
def test_async_program(environment: dict[str, str], tmp_path: Path, arguments: list[str]) -> None:
    """The asynchronous form learns on asyncio and on trio."""
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "optimization_loop_async.py", *arguments],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    scores = [int(found) for found in re.findall(r"Test accuracy: (\d+)/68", run.stdout)]
    assert len(scores) == 5
    assert min(scores[1:]) >= BASELINE + 12, scores
