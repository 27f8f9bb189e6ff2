"""A provider's options survive the command line, and the command says what it takes."""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from afnio.testing import FaultPlan, Latency, Provider, Quota
from afnio.testing.provider import ProviderOptions

PROG = "provider"
FULL = ProviderOptions(
    port=8001,
    latency=Latency.pareto(0.1, 1.5, 3.0),
    api_key="-k=1",
    reply="--ok",
    lm="benchmarks.learning.peer_prompts:PeersLM",
    context=50,
    faults=FaultPlan({"transient": 0.2, "drip": 0.1}, in_a_row=3, retry_after=0.05, drip=0.5),
    quota=Quota(
        600,
        100_000,
        window=2.0,
        shape="sliding",
        halve_after=9,
        per_model=True,
        headers=False,
        retry_after=0.5,
    ),
    seed=-7,
)


@pytest.mark.parametrize(
    "options", [ProviderOptions(), FULL, ProviderOptions(window=1.5), ProviderOptions(quota=Quota(tokens=5))]
)
def test_arguments_say_all(options):
    """There and back."""
    again = ProviderOptions.parse(options.arguments(), PROG)
    assert again.arguments() == options.arguments()
    assert (again.latency, again.quota, again.seed) == (options.latency, options.quota, options.seed)
    assert (again.api_key, again.reply, again.lm) == (options.api_key, options.reply, options.lm)
    assert again.context == options.context


def test_the_arguments_of_the_help_work():
    """Those of its example."""
    text = (
        "--latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7 --rpm 600 --tpm 100000 --window 2"
    )
    options = ProviderOptions.parse(text.split(), PROG)
    assert options.latency == Latency.lognormal(0.2, 1.0)
    assert options.faults.shares == {"reset": 0.05, "html": 0.05}
    assert options.quota == Quota(requests=600, tokens=100_000, window=2.0)


def test_the_help_has_an_example_and_every_kind(capsys):
    """So that nobody needs the source."""
    with pytest.raises(SystemExit):
        ProviderOptions.parse(["--help"], PROG)
    said = capsys.readouterr().out
    assert "provider --latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7" in said
    assert all(f" {name}" in said for kinds in FaultPlan.GROUPS.values() for name in kinds)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--latency", "soon"], "got 'soon'"),
        (["--faults", "rest:0.1"], "got 'rest'"),
        (["--drip", "1"], "--faults must"),
        (["--halve-after", "5"], "--rpm or --tpm must"),
        (["--no-quota-headers"], "--rpm or --tpm must"),
        (["--quota-retry-after", "1"], "--rpm or --tpm must"),
        (["--lm", "nowhere:Class"], "No module named 'nowhere'"),
        (["--rpm", "0"], "got 0"),
        (["--faults", "reset:0.1", "--faults-in-a-row", "0"], "got 0"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(arguments, said, capsys):
    """And not with a traceback."""
    with pytest.raises(SystemExit) as ended:
        ProviderOptions.parse(arguments, PROG)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_service_without_standard_input_serves_on():
    """With /dev/null there is no parent whose end could be noticed."""
    with subprocess.Popen(
        [sys.executable, "-m", "afnio.cli", "provider"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as served:
        try:
            address = urlsplit(json.loads(served.stdout.readline())["base_url"]).netloc
            for _ in range(50):
                connection = HTTPConnection(address, timeout=60)
                connection.request("GET", "/health")
                assert json.load(connection.getresponse()) == {"status": "ok"}
                connection.close()
        finally:
            served.kill()


async def test_a_process_holds_1200_connections_in_flight():
    """All of them unanswered at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
    sent = b"POST /chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    writers = []
    try:
        with Provider.process(reply="ok", faults="hang:1") as provider:
            port = int(provider.base_url.split(":")[2].split("/")[0])
            for _ in range(1200):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                writers.append(writer)
            while (stats := provider.stats())["requests"] < 1200:
                await asyncio.sleep(0)
            assert stats["peak_in_flight"] == 1200
    finally:
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
