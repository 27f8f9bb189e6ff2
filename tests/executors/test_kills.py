"""Workers of each executor are killed in mid-batch: no lane is lost, and no call is paid for twice.

loky, Dask and Ray are installed into an environment of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import afnio

sys.path.insert(0, str(Path(__file__).parent.parent / "bridge"))

from endpoint import Endpoint

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "executors"
PACKAGES = {"spawn": [], "loky": ["loky"], "dask": ["distributed"], "ray": ["ray>=2.50"]}
KILLS = int(os.environ.get("AFNIO_KILLS", "30"))
LANES = 200
TESTS = Path(__file__).parent.parent


def interpreter(name: str) -> Path:
    """Return an interpreter with an executor's packages beside those of this environment."""
    if not PACKAGES[name]:
        return Path(sys.executable)
    digest = hashlib.sha256(json.dumps([sys.version, PACKAGES[name]]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "cloudpickle", *PACKAGES[name]]
        subprocess.run(command, check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "beside.pth").write_text(str(Path(anyio.__file__).parents[1]))
        (folder / "done").touch()
    return python


async def killed(name: str, url: str, journal: str) -> dict[str, Any]:
    command = [str(interpreter(name)), str(Path(__file__).with_name("kills.py"))]
    command += [name, str(LANES), str(KILLS), url, journal]
    path = os.pathsep.join([str(Path(afnio.__file__).parents[1]), str(TESTS)])
    done = await anyio.run_process(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert 0 == done.returncode, done.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PACKAGES)
async def test_lanes_that_compute(name: str) -> None:
    found = await killed(name, "", "")
    assert (KILLS, {}) == (found["killed"], found["failed"])
    assert found["lanes"] == found["right"]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("journaled", [False, True])
@pytest.mark.parametrize("name", PACKAGES)
async def test_lanes_that_make_calls(name: str, journaled: bool, tmp_path: Path) -> None:
    async with Endpoint(latency=0.05) as endpoint:
        journal = str(tmp_path / "calls.journal") if journaled else ""
        found = await killed(name, f"{endpoint.url}/v1", journal)
        assert (KILLS, {}) == (found["killed"], found["failed"])
        assert found["lanes"] == found["right"]
        assert 2 * found["lanes"] == len(endpoint.asked)
