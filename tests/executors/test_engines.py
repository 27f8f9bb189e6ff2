"""The same cases on each executor, with its real package and processes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from executors.packages import PACKAGES, environment, interpreter
from kit.endpoint import Endpoint

ENGINES = {"spawn": "processes", "loky": "loky", "dask": "Dask", "ray": "Ray"}
SCRIPT = Path(__file__).with_name("engines.py")
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint(latency=0.02) as found:
        yield found


@pytest.mark.parametrize("name", PACKAGES)
async def test_cases(name: str, endpoint: Endpoint, tmp_path: Path) -> None:
    command = [interpreter(name), str(SCRIPT), name, f"{endpoint.url}/v1", str(tmp_path)]
    done = await anyio.run_process(command, env=environment(), check=False)
    found: dict[str, Any] = {}
    for line in done.stdout.decode().splitlines():
        if line.startswith("{"):
            found |= json.loads(line)
    engine = ENGINES[name]
    assert found["places"] == [[3, 9, 2, engine], [8, 4, 2, engine]]
    assert found["order"] == [
        [True] * 4,
        2,
        [None, "worker: b/x", None],
        [7, 5],
        [
            "longer of 2 words, measured elsewhere: True",
            "shorter of 1 words, measured elsewhere: True",
        ],
    ]
    assert found["agent"] == [["BE BRIEF: A", "BE BRIEF: B"], [True]]
    data, errors, later = found["pickles"]
    assert [data, later] == [[[0, None, None, 3], [0, None]], [2]]
    assert errors[0] == "PlainError: one is wrong"
    assert "two is odd" in errors[1]
    assert "unpicklable returned a lock that can't be pickled" in errors[2]
    assert found["calls"] == [[True, 40, 0, True, 40], [True, 0, 40, True, 40], True]
    assert found["durable"] == [2, 0]
    right, lost, later = found["poison"]
    assert [right, list(lost), later] == [True, ["8"], [2, 4]]
    assert "WorkerLostError: poison must not end its worker process" in lost["8"]
    assert len(endpoint.asked) == 44
    assert endpoint.peak <= 3


# The driver ends without a word


def temporary(name: str, folder: Path) -> dict[str, str]:
    """Return the variables for a driver. Dask's has a folder for temporary files: others' marks aren't its own."""
    return environment(TMPDIR=str(folder)) if name == "dask" else environment()


@pytest.fixture
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [interpreter(request.param), str(Path(__file__).with_name("busy.py")), request.param]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=temporary(request.param, tmp_path),
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("driver", PACKAGES, indirect=True)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGUSR1, signal.SIGINT])
def test_no_worker_lives_five_seconds_longer_than_its_driver(
    driver: subprocess.Popen[str], end: signal.Signals
) -> None:
    assert driver.stdout is not None
    assert driver.stdout.readline().strip() == "busy"
    family = psutil.Process(driver.pid).children(recursive=True)
    assert len(family) >= 2
    driver.send_signal(end)
    driver.wait(30)
    _, left = psutil.wait_procs(family, timeout=5)
    # Ray's agents, which run no task, look for their raylet every few seconds.
    assert [command for process in left if (command := _command(process)) and "Agent" not in command] == []
    assert psutil.wait_procs(left, timeout=60)[1] == []


@pytest.mark.parametrize("driver", ["dask"], indirect=True)
def test_the_next_pool_of_dask_removes_the_marks_of_a_killed_driver(
    driver: subprocess.Popen[str], tmp_path: Path
) -> None:
    """A mark is a file that is there while a task runs, so that Dask doesn't run it twice."""

    def marks() -> set[Path]:
        return set(tmp_path.glob("afnio-begun-*"))

    assert driver.stdout is not None
    before = marks()
    assert driver.stdout.readline().strip() == "busy"
    begun = marks() - before
    assert begun
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait(30)
    psutil.wait_procs(family, timeout=30)
    assert begun <= marks()
    command = [interpreter("dask"), str(Path(__file__).with_name("busy.py")), "dask"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=temporary("dask", tmp_path)
    ) as later:
        assert later.stdout is not None
        assert later.stdout.readline().strip() == "busy"
        left = begun & marks()
        later.kill()
    assert left == set()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended, or nobody has taken notice yet
        return ""


# The cluster ends


@pytest.mark.parametrize("what", ["gcs_server", "raylet", "scheduler", "workers"])
def test_a_cluster_that_is_gone(what: str, tmp_path: Path) -> None:
    name = "ray" if what in ("gcs_server", "raylet") else "dask"
    script = Path(__file__).with_name("gone.py")
    begun = time.monotonic()
    done = subprocess.run(
        [interpreter(name), str(script), what, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads([line for line in done.stdout.splitlines() if line[:1] == "{"][-1])
    assert found["seconds"] < 150, (found, time.monotonic() - begun)
    if name == "ray":  # another one was started
        assert [found["answered"], found["errors"]] == [4, []]
        assert found["later"] == [2, 4]
    else:
        assert {"workers": "without workers", "scheduler": "lost its scheduler"}[what] in found["errors"][0]
        assert found["answered"] == 0
        assert "ExecutorError" in found["later"]


# Sockets


def lines_on_ray(script: str) -> list[str]:
    """Run a script where Ray is installed, and return what it prints."""
    command = [interpreter("ray"), "-c", script]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.splitlines()


def test_a_local_ray_cluster_listens_on_loopback_only(tmp_path: Path) -> None:
    script = (
        "import afnio, afnio.ray, subprocess, psutil, os, json\nfrom kit import errands\n"
        "assert [2] == afnio.Variable([1]).map(errands.double, executor=afnio.ray.RayExecutor).data\n"
        "family = [psutil.Process(), *psutil.Process().children(recursive=True)]\n"
        "found = [c.laddr.ip for p in family for c in p.net_connections('inet') if c.status == 'LISTEN']\n"
        "print(json.dumps(found))\n"
        "afnio.runtime.close()\n"
    )
    found = json.loads([line for line in lines_on_ray(script) if line[:1] == "["][-1])
    assert len(found) > 3
    assert {ip.removeprefix("::ffff:").replace("::1", "127.0.0.1") for ip in found} == {"127.0.0.1"}


def test_the_cluster_ends_with_the_program() -> None:
    script = (
        "import afnio, afnio.ray, os\nfrom kit import errands\n"
        "print(afnio.Variable(['']).map(errands.pid, executor=afnio.ray.RayExecutor).data[0])\n"
    )
    pid = int(lines_on_ray(script)[-1])
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(60)
    assert not Path("/proc", str(pid), "exe").exists()
