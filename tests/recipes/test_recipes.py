"""The recipes with their real packages: a failed row is a value, and a killed job pays for nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import runpy
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from gateway.running import GatewayProcess, Upstream, answer
from kit.environments import interpreter

import afnio

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
PACKAGES = {
    "parquet": ["pyarrow>=15"],
    "huggingface": ["datasets>=3", "pyarrow>=15"],
    "ray_data": ["ray[data]>=2.50,<3", "pyarrow>=15", "pandas<3"],
    "spark": ["pyspark>=4,<5", "pyarrow>=15", "pandas<3"],
}
ROWS = 600
BAD = {17, 250, 599}
IN_FLIGHT = 64
"""Calls of a recipe's client. Without a gateway, those that a kill interrupts are made again."""


class Messages:
    """A provider that refuses some messages, and counts how often it answered each."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()

    async def reply(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        text = body["messages"][-1]["content"]
        assert body["messages"][0]["content"] == "Say it in capitals."  # from the saved agent
        if int(text.split()[-1]) in BAD:
            return web.json_response({"error": {"message": "I won't read that"}}, status=400)
        await asyncio.sleep(0.2)
        self.answered[text] += 1
        return await answer(request, body)


@asynccontextmanager
async def started(name: str, folder: Path, url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a recipe as a user does, in a process group of its own."""
    python = interpreter(name, *PACKAGES[name])
    command = [str(python), str(RECIPES / f"{name}.py"), "agent.afnio", "messages.parquet", "answers"]
    path = str(Path(afnio.__file__).parents[1])
    env = {
        **os.environ, "PYTHONPATH": path, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "any-key-0123",
        "PYSPARK_PYTHON": str(python), "PYTHONWARNINGS": "default", "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1", "RAY_raylet_start_wait_time_s": "90",
    }  # fmt: skip
    with (folder / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def save_agent(folder: Path) -> None:
    agent = runpy.run_path(str(RECIPES / "sentiment.py"))["Sentiment"]()
    agent.prompt.data = "Say it in capitals."
    afnio.save(agent.state_dict(), folder / "agent.afnio")


async def write_messages(name: str, folder: str) -> None:
    code = (
        "import sys, pyarrow as pa, pyarrow.parquet as pq;"
        "pq.write_table(pa.table({'message': [f'message {n}' for n in range(int(sys.argv[2]))]}), sys.argv[1])"
    )
    python = str(interpreter(name, *PACKAGES[name]))
    await anyio.run_process([python, "-c", code, folder + "/messages.parquet", str(ROWS)])


async def read_answers(name: str, folder: str) -> dict[str, tuple[str | None, str | None]]:
    code = (
        "import sys, json, glob, pyarrow.parquet as pq;"
        "print(json.dumps([row for part in glob.glob(sys.argv[1]) for row in pq.ParquetFile(part).read().to_pylist()]))"
    )
    python = str(interpreter(name, *PACKAGES[name]))
    done = await anyio.run_process([python, "-c", code, folder + "/answers/*.parquet"])
    rows = json.loads(done.stdout)
    assert len(rows) == ROWS
    return {row["message"]: (row["answer"] or None, row["error"] or None) for row in rows}


async def until_answered(provider: Messages, count: int, process: asyncio.subprocess.Process) -> None:
    while provider.answered.total() < count and process.returncode is None:
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("name", PACKAGES)
async def test_a_killed_job_goes_on(name: str, tmp_path: Path) -> None:
    provider = Messages()
    save_agent(tmp_path)
    await write_messages(name, str(tmp_path))
    log = tmp_path / "log"
    async with Upstream(provider.reply) as upstream:
        options = ("--upstream", upstream.url, "--once", "--journal", str(tmp_path / "gateway.journal"))
        uses_gateway = name in ("ray_data", "spark")
        async with GatewayProcess(*options) as gateway:
            url = gateway.url if uses_gateway else upstream.url
            async with started(name, tmp_path, url) as job:
                await until_answered(provider, ROWS // 3, job)
                assert job.returncode is None, log.read_text()[-3000:]
                os.killpg(job.pid, signal.SIGKILL)
            async with started(name, tmp_path, url) as job:
                assert await job.wait() == 0, log.read_text()[-3000:]
        found = await read_answers(name, str(tmp_path))
        for number in range(ROWS):
            value, error = found[f"message {number}"]
            if number in BAD:
                assert (value, "I won't read that" in (error or "")) == (None, True)
            else:
                assert (value, error) == (f"message {number}", None)
        twice = provider.answered.total() - (ROWS - len(BAD))
        assert ROWS - len(BAD) == len(provider.answered)
        assert 0 <= twice <= (0 if uses_gateway else IN_FLIGHT)
        if not uses_gateway:
            return
        before = provider.answered.total()
        async with GatewayProcess(*options) as gateway, started(name, tmp_path, gateway.url) as job:
            assert await job.wait() == 0, log.read_text()[-3000:]
        again = await read_answers(name, str(tmp_path))
        assert {text: found[text][0] for text in found} == {text: again[text][0] for text in again}
        assert before == provider.answered.total()  # all of it was in the gateway's journal
