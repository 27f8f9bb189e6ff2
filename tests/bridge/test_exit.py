"""A program that ends while bridged calls are pending ends quietly."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import asyncio, socket, threading

import openai

import afnio
from afnio import bridge

silent = socket.create_server(("127.0.0.1", 0), backlog=200)
url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
blocking = openai.OpenAI(api_key="k", base_url=url, http_client=bridge.sync_client())
begun = threading.Semaphore(0)


def waits(text):
    begun.release()
    return blocking.responses.create(model="m", input=text).output_text


def waits_in_a_loop_of_its_own(text):
    async def ask():
        client = openai.AsyncOpenAI(api_key="k", base_url=url, http_client=bridge.client())
        begun.release()
        return (await client.responses.create(model="m", input=text)).output_text

    return asyncio.run(ask())


first = afnio.Variable([str(n) for n in range(5)]).map(waits)
second = afnio.Variable([str(n) for n in range(5)]).map(waits_in_a_loop_of_its_own)
for _ in range(10):
    begun.acquire(timeout=60)
print("end")
"""


@pytest.mark.nightly
def test_a_program_that_ends_early_ends_quietly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "end\n")
    lines = [line for line in done.stderr.splitlines() if "the runtime was closed with" not in line]
    assert lines == []
