"""A Ray cluster on hosts of its own, which are network namespaces: calls of its workers go through the driver."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hosts.network import Host, last_line, network, python
from kit.environments import interpreter

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("namespaces"),
]
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 64, "RAY_USAGE_STATS_ENABLED": "0"}


PACKAGES = ["ray>=2.50,<3", "cloudpickle"]


def ray_start() -> list[str]:
    start = ["-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    return [str(interpreter("ray", *PACKAGES)), *start, "--object-store-memory=100000000"]


@asynccontextmanager
async def cluster(driver: Host, workers: list[Host], replica: Host) -> AsyncIterator[None]:
    """Start a replica, and Ray: its head on the driver's host, without a worker, and one worker on each other host."""
    ray = [
        str(interpreter("ray", *PACKAGES)),
        "-m",
        "ray.scripts.scripts",
        "start",
        "--block",
    ]
    ray += ["--disable-usage-stats", "--object-store-memory=100000000"]
    try:
        await replica.start(*python("replica.py"), replica.address, "0.2", ready="ready")
        head = ["--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false"]
        here = f"--node-ip-address={driver.address}"
        await driver.start(*ray, *head, here, ready="Ray runtime started", **RAY)
        for worker in workers:
            there = [
                f"--address={driver.address}:6379",
                f"--node-ip-address={worker.address}",
                "--num-cpus=1",
            ]
            await worker.start(*ray, *there, ready="Ray runtime started", **RAY)
        yield
    finally:
        for host in (*workers, driver, replica):
            await host.end()


async def run(driver: Host, replica: Host, host: str, count: int, journal: Path) -> dict[str, Any]:
    script = [
        str(interpreter("ray", *PACKAGES)),
        str(Path(__file__).with_name("on_ray.py")),
    ]
    url = f"http://{replica.address}:8000/v1"
    arguments = [f"{driver.address}:6379", host, str(count), url, str(journal)]
    code, out, errors = await driver.run(*script, *arguments, **RAY)
    assert code == 0, errors[-3000:]
    found: dict[str, Any] = last_line(out)
    return found


async def asked(replica: Host) -> list[dict[str, Any]]:
    code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    _, out, _ = await replica.run(sys.executable, "-c", code, f"http://{replica.address}:8000/asked")
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def test_calls_of_workers_elsewhere_go_through_the_driver(tmp_path: Path) -> None:
    with network("driver", "one", "two", "replica") as (driver, one, two, replica):
        async with cluster(driver, [one, two], replica):
            journal = tmp_path / "calls.journal"
            found = await run(driver, replica, driver.address, 40, journal)
            assert tuple(found[name] for name in ("right", "errors", "calls", "hosts")) == (
                40,
                [],
                80,
                ["one", "two"],
            )
            seen = await asked(replica)
            assert (80, {driver.address}) == (len(seen), {each["from"] for each in seen})
            assert (await run(driver, replica, driver.address, 40, journal))["right"] == 40
            assert len(await asked(replica)) == 80  # the second run was answered by the journal


async def test_the_driver_of_the_page(tmp_path: Path) -> None:
    """Each part on a host of its own, as in the compose file: workers, driver, gateway and replica form one chain."""
    with network("gateway", "head", "one", "two", "replica", "driver") as hosts:
        gateway, head, one, two, replica, driver = hosts
        try:
            async with cluster(head, [one, two], replica):
                command = [sys.executable, "-m", "afnio.cli", "gateway", "--host", gateway.address]
                upstream = f"http://{replica.address}:8000/v1"
                secret = {"AFNIO_GATEWAY_TOKEN": "a-token-of-this-test"}
                await gateway.start(*command, "--upstream", upstream, ready="Set the first", **secret)
                node = f"--address={head.address}:6379 --node-ip-address={driver.address} --num-cpus=0"
                ray = " ".join(ray_start()).replace(" --block", "")
                script = Path(__file__).parents[2] / "examples" / "hosts" / "driver.py"
                environment = {
                    **RAY,
                    "OPENAI_BASE_URL": f"http://{gateway.address}:8400/a-token-of-this-test/v1",
                    "DRIVER_HOST": f"{driver.address}:8401",
                    "AFNIO_HOME": str(tmp_path),
                }
                run = f"{ray} {node} && exec {interpreter('ray', *PACKAGES)} {script}"
                code, out, errors = await driver.run("sh", "-c", run, **environment)
                assert code == 0, errors[-3000:]
                assert "100 of 100 answered" in out
                seen = await asked(replica)
                assert (200, {gateway.address}) == (len(seen), {each["from"] for each in seen})
        finally:
            for host in hosts:
                await host.end()


async def test_a_worker_host_that_is_lost(tmp_path: Path) -> None:
    """Its lanes run again on the other host, and no call is paid for twice. By itself, Ray waits for seven minutes."""
    with network("driver", "one", "two", "replica") as (driver, one, two, replica):
        async with cluster(driver, [one, two], replica):
            async with anyio.create_task_group() as group:
                group.start_soon(_unplugged, two, replica, 30)
                found = await run(driver, replica, driver.address, 60, tmp_path / "calls.journal")
            assert tuple(found[name] for name in ("right", "errors", "hosts")) == (60, [], ["one", "two"])
            assert len(await asked(replica)) == 120
            assert found["seconds"] < 240


async def _unplugged(host: Host, replica: Host, after: int) -> None:
    while len(await asked(replica)) < after:
        await anyio.sleep(0.1)
    host.disconnect()
