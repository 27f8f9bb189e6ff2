"""A program with a batch block that kills itself at a named point, and what it leaves."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

PRICES = """
[[price]]
model = "m"
input = 1000
output = 2000

[[price]]
model = "m"
tier = "batch"
input = 500
output = 1000
"""

POINTS = (
    "planned", "upload", "uploaded", "accepted", "created", "polled", "completed", "fetched", "read 3", "read 30"
)  # fmt: skip

SOURCE = '''
import json, os, signal, sys
import afnio, afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.models._batch_apis import AnthropicBatches, OpenAIBatches
from afnio.runtime import _parcels
from afnio.runtime._journal import Journal

URL, KIND, TEMPERATURE, POINT, COUNT = sys.argv[1:]
COUNT = int(COUNT)
_parcels.GRACE, _parcels.POLL_FIRST = 0.4, 0.02

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def after(owner, name, point, when=lambda result: True, before=False):
    """Kill the process after (or before) a call of a method."""
    if POINT != point:
        return
    plain = getattr(owner, name)
    async def changed(self, *args, **options):
        if before:
            die()
        result = await plain(self, *args, **options)
        if when((args, result)):
            die()
        return result
    setattr(owner, name, changed)

api = AnthropicBatches if KIND == "anthropic" else OpenAIBatches
after(_parcels.Parcel, "_note", "planned", lambda got: got[0][0] == "planned")
after(api, "upload", "upload", before=True)
after(api, "upload", "uploaded")
after(api, "create", "accepted")
after(_parcels.Parcel, "_note", "created", lambda got: got[0][0] == "created")
after(api, "status", "polled", lambda got: not got[1].ended)
after(api, "status", "completed", lambda got: got[1].ended)
after(_parcels.Parcel, "_note", "fetched", lambda got: got[0][0] == "fetched")
if POINT.startswith("read "):
    append, recorded, most = Journal.append, [], int(POINT.split()[1])
    def counted(self, record, done, **options):
        append(self, record, done, **options)
        if record.kind == "reply":
            recorded.append(record)
            if len(recorded) == most:
                self.flush()
                die()
    Journal.append = counted

def openai_words(count):
    client = AsyncOpenAI(api_key="k-0123456789", base_url=URL)
    words = [str(number % (count // 2)) for number in range(count)]
    content = [{"role": "user", "content": [afnio.Variable("{word}")]}]
    temperature = float(TEMPERATURE)
    replies = cog.functional.chat_completion(
        client, content, {"word": words}, model="m", temperature=temperature, max_completion_tokens=8
    )
    return replies.data

def anthropic_words(count):
    import anthropic, anyio
    from afnio import bridge
    replies = [None] * count
    async def main():
        url = URL.removesuffix("/v1")
        client = anthropic.AsyncAnthropic(api_key="k-0123456789", base_url=url, http_client=bridge.client())
        async def ask(number):
            reply = await client.messages.create(
                model="m", max_tokens=8, messages=[{"role": "user", "content": str(number % (count // 2))}],
                extra_body={"temperature": float(TEMPERATURE)},
            )
            replies[number] = reply.content[0].text
        async with client, anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(ask, number)
    afnio.run(main())
    return replies

with afnio.budget(max_cost=100) as budget, afnio.journal("run.journal"), afnio.batch_api(linger=0.3, least=0):
    replies = (anthropic_words if KIND == "anthropic" else openai_words)(COUNT)
with open("end.json", "w") as file:
    json.dump({"replies": replies, "cost": str(budget.ledger.total.cost)}, file)
'''


def run(folder: Path, url: str, *arguments: str, timeout: float = 60) -> tuple[int, str]:
    """Run the program, and return its code and what it said."""
    (folder / "program.py").write_text(SOURCE)
    (folder / "prices.toml").write_text(PRICES)
    environment = {**os.environ, "AFNIO_PRICES": str(folder / "prices.toml"), "HOME": str(folder)}
    command = [sys.executable, "-W", "error", "program.py", url, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout
    )
    return done.returncode, done.stderr


def end(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "end.json").read_text())
    return found


def spent(folder: Path) -> tuple[int, int, int]:
    """Return calls and tokens, in and out, of the journal's ledger."""
    with closing(sqlite3.connect(folder / "run.journal")) as connection:
        sums = "SELECT sum(calls), sum(prompt_tokens), sum(completion_tokens) FROM ledger"
        calls, prompt, completion = connection.execute(sums).fetchone()
        return int(calls), int(prompt), int(completion)


def leftovers(folder: Path) -> list[str]:
    """Return the files beside the journal that aren't its own."""
    own = {
        "program.py",
        "prices.toml",
        "end.json",
        "run.journal",
        "run.journal.lock",
        "run.journal-wal",
        "run.journal-shm",
    }
    return sorted(path.name for path in folder.iterdir() if path.name not in own)
