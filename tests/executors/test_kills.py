"""Workers of each executor are killed in mid-batch: no lane is lost, and no call is paid for twice.

loky, Dask and Ray are installed into an environment of their own.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from executors.packages import PACKAGES, environment, interpreter
from kit.endpoint import Endpoint

KILLS = int(os.environ.get("AFNIO_KILLS", "30"))
LANES = 200


async def killed(name: str, url: str, journal: str) -> dict[str, Any]:
    command = [interpreter(name), str(Path(__file__).with_name("kills.py"))]
    command += [name, str(LANES), str(KILLS), url, journal]
    done = await anyio.run_process(command, env=environment(), check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    # Ray writes to stdout, too.
    found: dict[str, Any] = json.loads(
        [line for line in done.stdout.decode().splitlines() if line[:1] == "{"][-1]
    )
    return found


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PACKAGES)
async def test_lanes_that_compute(name: str) -> None:
    found = await killed(name, "", "")
    assert (found["killed"], found["failed"]) == (KILLS, {})
    assert found["lanes"] == found["right"]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("journaled", [False, True])
@pytest.mark.parametrize("name", PACKAGES)
async def test_lanes_that_make_calls(name: str, journaled: bool, tmp_path: Path) -> None:
    async with Endpoint(latency=0.05) as endpoint:
        journal = str(tmp_path / "calls.journal") if journaled else ""
        found = await killed(name, f"{endpoint.url}/v1", journal)
        assert (found["killed"], found["failed"]) == (KILLS, {})
        assert found["lanes"] == found["right"]
        assert 2 * found["lanes"] == len(endpoint.asked)
