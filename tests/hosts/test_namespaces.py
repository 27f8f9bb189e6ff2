"""A gateway, a replica and a driver on hosts of their own, which are network namespaces of this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from hosts.network import Host, last_line, network, python

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(900),
    pytest.mark.usefixtures("namespaces"),
]
TOKEN = "a-token-of-this-test"


@asynccontextmanager
async def served(gateway: Host, replica: Host, latency: float) -> AsyncIterator[str]:
    """Start a replica and a gateway. Yields the gateway's base URL, without the token."""
    try:
        await replica.start(*python("replica.py"), replica.address, str(latency), ready="ready")
        command = [sys.executable, "-m", "afnio.cli", "gateway", "--host", gateway.address]
        upstream = f"http://{replica.address}:8000/v1"
        lines = await gateway.start(
            *command, "--upstream", upstream, ready="Set the first", AFNIO_GATEWAY_TOKEN=TOKEN
        )
        assert lines[0] == f"http://{gateway.address}:8400/$AFNIO_GATEWAY_TOKEN/v1  sends to {upstream}"
        yield f"http://{gateway.address}:8400"
    finally:
        await gateway.end()
        await replica.end()


async def asked(host: Host, replica: Host) -> list[dict[str, Any]]:
    code = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).read().decode())"
    _, out, _ = await host.run(sys.executable, "-c", code, f"http://{replica.address}:8000/asked")
    found: list[dict[str, Any]] = json.loads(out)
    return found


async def test_calls_cross_hosts_with_the_token_only() -> None:
    with network("driver", "gateway", "replica") as (driver, gateway, replica):
        async with served(gateway, replica, 0.05) as url:
            _, out, errors = await driver.run(*python("batch.py"), "200", f"{url}/{TOKEN}/v1")
            assert (last_line(out)["right"], last_line(out)["errors"]) == (200, []), errors
            seen = await asked(gateway, replica)
            assert (200, {gateway.address}) == (len(seen), {each["from"] for each in seen})
            for wrong in ("/v1", "/another-token/v1", f"/{TOKEN[:-1]}/v1"):
                _, out, errors = await driver.run(*python("batch.py"), "3", url + wrong)
                (error,) = last_line(out)["errors"]
                assert "answered 401: the gateway's token is missing or wrong" in error
            assert len(await asked(gateway, replica)) == 200


@pytest.mark.parametrize("lost", ["gateway", "replica"])
async def test_a_host_that_comes_back(lost: str) -> None:
    """Its plug is out for eight seconds in the middle of a batch. Every sample is answered."""
    with network("driver", "gateway", "replica") as (driver, gateway, replica):
        async with served(gateway, replica, 1.0) as url:
            async with anyio.create_task_group() as group:
                host = gateway if lost == "gateway" else replica
                group.start_soon(_unplugged, host, replica, 8.0)
                _, out, errors = await driver.run(*python("batch.py"), "400", f"{url}/{TOKEN}/v1")
            found = last_line(out)
            assert (found["right"], found["errors"]) == (400, []), errors
            assert found["seconds"] < 120


@pytest.mark.parametrize("lost", ["gateway", "replica"])
async def test_a_host_that_is_gone(lost: str) -> None:
    """Nothing says so but silence. The batch ends all the same, and each of its errors names the address."""
    with network("driver", "gateway", "replica") as (driver, gateway, replica):
        async with served(gateway, replica, 3.0) as url:
            async with anyio.create_task_group() as group:
                host = gateway if lost == "gateway" else replica
                group.start_soon(_unplugged, host, replica, None)
                _, out, errors = await driver.run(*python("batch.py"), "2", f"{url}/{TOKEN}/v1")
            found = last_line(out)
            assert found["right"] == 0, errors
            assert found["errors"]
            for error in found["errors"]:
                assert host.address in error
                assert "\n" not in error
            assert found["seconds"] < 420


async def _unplugged(host: Host, replica: Host, seconds: float | None) -> None:
    """Pull the plug of a host once the replica has been asked something, and plug it in again."""
    while not await asked(replica, replica):
        await anyio.sleep(0.1)
    host.disconnect()
    if seconds is not None:
        await anyio.sleep(seconds)
        host.connect()
