"""Every scenario through every entrance: script, thread, asyncio, trio, notebook kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from typing import Any

import anyio
import nbformat
import pytest
import trio
from entrances.scenarios import SCENARIOS
from nbclient import NotebookClient

NAMES = list(SCENARIOS)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", NAMES)
def test_main_thread(name: str) -> None:
    """Synchronous code on the main thread gets the scenario's result."""
    sync, _, expected = SCENARIOS[name]
    assert sync() == expected


def test_script() -> None:
    """A fresh process runs every scenario and ends cleanly, with nothing on stderr."""
    code = (
        "import json; from entrances.scenarios import SCENARIOS\n"
        "print(json.dumps({name: sync() for name, (sync, _, _) in SCENARIOS.items()}))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert {name: plain(expected) for name, (_, _, expected) in SCENARIOS.items()} == json.loads(run.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_threads(name: str) -> None:
    """Several threads run the scenario at once, each with its own result."""
    sync, _, expected = SCENARIOS[name]
    results: list[Any] = [None] * 8

    def run(number: int) -> None:
        results[number] = sync()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [expected] * 8


@pytest.mark.parametrize("name", NAMES)
async def test_asyncio(name: str) -> None:
    """The asynchronous form gets the same result on asyncio."""
    _, asynchronous, expected = SCENARIOS[name]
    assert await asynchronous() == expected


@pytest.mark.parametrize("name", NAMES)
def test_trio(name: str) -> None:
    """The asynchronous form gets the same result on trio."""
    _, asynchronous, expected = SCENARIOS[name]
    assert trio.run(asynchronous) == expected


@pytest.mark.parametrize("name", NAMES)
def test_run(name: str) -> None:
    """`afnio.run` drives the asynchronous form from plain code."""
    import afnio

    _, asynchronous, expected = SCENARIOS[name]
    assert afnio.run(asynchronous()) == expected


@pytest.mark.parametrize("library", ["asyncio", "trio"])
def test_side_by_side(library: str) -> None:
    """Many tasks of one loop run scenarios at once."""
    results: list[Any] = []

    async def one(name: str) -> None:
        results.append((name, await SCENARIOS[name][1]()))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for name in NAMES * 5:
                tasks.start_soon(one, name)

    anyio.run(main, backend=library)
    assert sorted(NAMES * 5) == sorted(name for name, _ in results)
    assert [(name, result) for name, result in results if result != SCENARIOS[name][2]] == []


def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a Jupyter kernel plain cells read and cells with a top-level await both work."""
    cells = ["import json\nfrom entrances.scenarios import SCENARIOS"]
    for name in NAMES:
        cells.append(f"print(json.dumps(SCENARIOS[{name!r}][0]()))")
        cells.append(f"print(json.dumps(await SCENARIOS[{name!r}][1]()))")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    printed = [cell.outputs[0].text for cell in notebook.cells[1:]]
    expected = [plain(SCENARIOS[name][2]) for name in NAMES for _ in range(2)]
    assert [json.loads(text) for text in printed] == expected
