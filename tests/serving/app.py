"""A service that awaits an agent for each request, and trains it at the same time; run by uvicorn."""

from __future__ import annotations

import contextlib
import os

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import current_runtime

client = AsyncOpenAI(base_url=os.environ["BASE_URL"], api_key="any", limits=afnio.Limits(max_in_flight=4))
messages = [{"role": "user", "content": [afnio.Variable("{text}", role="template")]}]


async def until_gone(request: Request, scope: anyio.CancelScope) -> None:
    while not await request.is_disconnected():
        await anyio.sleep(0.01)
    scope.cancel()


async def answer(request: Request) -> JSONResponse:
    """Answer one request; a client that goes away takes its calls with it."""
    reply = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_gone, request, tasks.cancel_scope)
        with afnio.no_grad(), afnio.priority("serving"):
            text = request.query_params["text"]
            reply = await cog.chat_completion(client, messages, {"text": text}, model="m")
        tasks.cancel_scope.cancel()
    return JSONResponse({"reply": None if reply is None else reply.data})


async def state(request: Request) -> JSONResponse:
    runtime = current_runtime()
    return JSONResponse({"launches": len(runtime.launches), "calls": runtime.calls_open})


@contextlib.asynccontextmanager
async def training(app: Starlette):
    """Keep thousands of training calls queued behind the same limit."""
    texts = [f"training {number}" for number in range(int(os.environ.get("TRAINING", "0")))]
    batch = cog.chat_completion(client, messages, {"text": texts}, model="m") if texts else None
    yield
    del batch


app = Starlette(routes=[Route("/answer", answer), Route("/state", state)], lifespan=training)
