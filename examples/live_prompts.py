"""A web service whose prompts come from files or a store, and change while it runs.

    uvicorn live_prompts:app        in this folder; see offline.py for the endpoint
    curl 'http://127.0.0.1:8000/answer?text=I+am+thrilled'

Edit prompts/system.txt, and the next request uses it. PROMPTS=mlflow:http://127.0.0.1:5000 PROMPTS_NAME=sentiment reads
what `result.push` wrote there, and follows the alias. A set is taken as a whole. While the store is down, or has a
mixture of sets, the last good set stays. Without a first one the service doesn't start.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import anyio
from fastapi import FastAPI, Request
from offline import MODEL, endpoint

import afnio

SOURCE = os.environ.get("PROMPTS", "prompts")
NAME = os.environ.get("PROMPTS_NAME")
SECONDS = float(os.environ.get("RELOAD_SECONDS", "10"))
log = logging.getLogger("uvicorn.error")


class LivePrompts:
    """The newest good prompts of a store.

    Args:
        load: reads them; it may block, and raises if there are none.
    """

    def __init__(self, load: Callable[[], Mapping[str, str]]) -> None:
        self._load = load
        self.current = load()
        self.problem: str | None = None

    async def watch(self, seconds: float) -> None:
        """Read the store again and again. A request that has the old set finishes with it."""
        while True:
            await anyio.sleep(seconds)
            try:
                prompts = await anyio.to_thread.run_sync(self._load, abandon_on_cancel=True)
            except Exception as error:  # whatever is wrong with the store, requests must be answered
                if self.problem != str(error):
                    log.warning("the prompts stay as they are: %s", error)
                self.problem = str(error)
            else:
                if prompts != self.current:
                    log.info("new prompts")
                self.current, self.problem = prompts, None


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    load = partial(afnio.load_prompts, SOURCE, NAME, prompts=["system"])
    app.state.prompts = live = await anyio.to_thread.run_sync(LivePrompts, load)
    with endpoint() as app.state.client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live.watch, SECONDS)
            yield
            tasks.cancel_scope.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/answer")
async def answer(request: Request, text: str) -> dict[str, Any]:
    """Answer one request with one set of prompts."""
    prompts = request.app.state.prompts.current
    messages = [{"role": "system", "content": prompts["system"]}, {"role": "user", "content": text}]
    reply = await request.app.state.client.achat(messages=messages, model=MODEL)
    return {"reply": reply.content}


@app.get("/state")
async def state(request: Request) -> dict[str, Any]:
    """Return the prompts in use, and why they may be old."""
    live: LivePrompts = request.app.state.prompts
    return {"prompts": live.current, "problem": live.problem}
