"""Calls by batch of clients in other processes, whose own timeouts are shorter than a batch takes: one payment, one
answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from runtime.parcels.programs import PRICES

import afnio
from afnio import bridge
from afnio.runtime import _parcels
from afnio.testing import Batches, Provider

SDK = """
import sys, openai
client = openai.OpenAI(api_key="k-0123456789", timeout=float(sys.argv[1]), max_retries=int(sys.argv[2]))
message = {"role": "user", "content": "one word"}
print(client.chat.completions.create(model="m", messages=[message], max_completion_tokens=5).choices[0].message.content)
"""
STUBBORN = """
import json, os, sys, urllib.request
body = {"model": "m", "max_completion_tokens": 5, "messages": [{"role": "user", "content": "one word"}]}
headers = {"content-type": "application/json", "authorization": "Bearer k-0123456789", "user-agent": sys.argv[2]}
url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
asked = 0
while True:
    asked += 1
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=float(sys.argv[1])) as reply:
            print(json.load(reply)["choices"][0]["message"]["content"], asked)
        break
    except TimeoutError:
        pass
"""
NODE = """
import OpenAI from "openai";
const client = new OpenAI({ apiKey: "k-0123456789", timeout: Number(process.argv[2]), maxRetries: 2 });
const ask = () => client.chat.completions.create(
  { model: "m", messages: [{ role: "user", content: "one word" }], max_completion_tokens: 5 });
let reply;
while (!reply) { try { reply = await ask(); } catch (error) { if (error.name !== "Error") throw error; } }
console.log(reply.choices[0].message.content);
"""


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    monkeypatch.setattr(_parcels, "POLL_FIRST", 0.1)


def provider(seconds: float) -> Any:
    return Provider.process(reply="fine", batches=Batches(seconds=seconds, validating=0.0))


def payments(found: Provider) -> tuple[int, int, int]:
    """Return the lines that were paid for, the batches, and the calls that were live."""
    stats = found.stats()
    return stats["batches"]["paid"], len(stats["batches"]["sizes"]), stats["requests"]


def run(code: str, base_url: str, *arguments: str) -> list[str]:
    """Run a client, and return the words that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "OPENAI_BASE_URL": base_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_interim_responses_keep_an_sdk_waiting(tmp_path: Path) -> None:
    with provider(seconds=2.5) as found, afnio.budget(max_cost=1) as budget:
        with afnio.journal(tmp_path / "run.journal"), afnio.batch_api(linger=0.1, least=0):
            with bridge.url(found.base_url) as base_url:
                got = run(SDK, base_url, "0.9", "2")
        paid = payments(found)
    assert got == ["fine"]
    assert paid == (1, 1, 0)
    assert budget.ledger.total.calls == 1


@pytest.mark.parametrize("client", ["Python-urllib/3.12", "curl/8.5.0"])
def test_an_equal_request_joins_the_call_that_its_client_left(tmp_path: Path, client: str) -> None:
    """Without a header that says so. urllib knows 100 Continue, and counts silence; the other client gets no
    interim response, so it must ask several times."""
    with provider(seconds=1.5) as found, afnio.budget(max_cost=1) as budget:
        with afnio.journal(tmp_path / "run.journal"), afnio.batch_api(linger=0.1, least=0):
            with bridge.url(found.base_url) as base_url:
                text, asked = run(STUBBORN, base_url, "0.3", client)
        paid = payments(found)
    assert text == "fine"
    assert int(asked) > 1
    assert paid == (1, 1, 0)
    assert budget.ledger.total.calls == 1


def _in_worker(text: str) -> str:
    return run(STUBBORN, os.environ["OPENAI_BASE_URL"], "0.3", text)[0]


def test_the_lane_of_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, provider(seconds=1.5) as found:
        with afnio.journal(tmp_path / "run.journal"), afnio.batch_api(linger=0.1, least=0):
            monkeypatch.setenv("OPENAI_BASE_URL", found.base_url)
            got = afnio.Variable(["curl/8.5.0"]).map(_in_worker, executor=pool).data
        paid = payments(found)
    assert got == ["fine"]
    assert paid == (1, 1, 0)


def test_independent_samples_stay_independent(tmp_path: Path) -> None:
    """Equal requests whose clients are all there, or have had their replies, are calls of their own."""
    with provider(seconds=0.3) as found:
        with afnio.journal(tmp_path / "run.journal"), afnio.batch_api(linger=0.1, least=0):
            with bridge.url(found.base_url) as base_url:
                got = [run(SDK, base_url, "30", "0") for _ in range(2)]
        paid = payments(found)
    assert got == [["fine"], ["fine"]]
    assert paid == (2, 2, 0)


@pytest.mark.nightly
def test_the_sdk_of_node(tmp_path: Path) -> None:
    (tmp_path / "program.mjs").write_text(NODE)
    install = ["npm", "install", "--silent", "--no-audit", "--fetch-retries=0", "openai@6"]
    if (
        shutil.which("npm") is None
        or subprocess.run(install, cwd=tmp_path, timeout=120, check=False).returncode
    ):
        pytest.skip("Node: npm, and a network")
    with provider(seconds=4.0) as found:
        with afnio.journal(tmp_path / "run.journal"), afnio.batch_api(linger=0.1, least=0):
            with bridge.url(found.base_url) as base_url:
                environment = {**os.environ, "OPENAI_BASE_URL": base_url}
                done = subprocess.run(
                    ["node", "program.mjs", "600"],
                    cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
                )  # fmt: skip
        paid = payments(found)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["fine"]
    assert paid == (1, 1, 0)
