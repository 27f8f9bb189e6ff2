"""A web service that answers with an agent while the agent is trained, under the same limits.

    uvicorn service:app            in this folder; see offline.py for the endpoint
    curl 'http://127.0.0.1:8000/answer?text=I+am+thrilled'

Serving goes before training, regardless of how many training calls wait. If a client disconnects, its call is
cancelled. Requests use the prompt of the last step that ended, so none waits for a step.
"""

from __future__ import annotations

import contextlib
import csv
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
from fastapi import FastAPI, Request
from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient
from afnio.runtime import current_runtime

IN_FLIGHT = int(os.environ.get("IN_FLIGHT", "4"))
SAMPLES = int(os.environ.get("TRAINING_SAMPLES", "20"))
"""Calls of one training step; more than there are messages repeats them."""
STEPS = int(os.environ.get("TRAINING_STEPS", "3"))


class Service:
    """The agent: what it is trained on, and what requests see."""

    def __init__(self, client: ChatClient) -> None:
        self.client = client
        self.prompt = cog.Parameter("Say the sentiment: positive, neutral or negative.", role="system prompt")
        self.served = self.prompt.detach()
        self.steps = 0

    def ask(self, prompt: afnio.Variable, texts: str | list[str]) -> cog.Completion:
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("{text}", role="message")]},
        ]
        return cog.functional.chat_completion(self.client, messages, {"text": texts}, model=MODEL)

    async def train(self) -> None:
        """Make a few training steps, while the service answers requests."""
        with Path(__file__).with_name("messages.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        chosen = [rows[number % len(rows)] for number in range(SAMPLES)]
        # Numbered, so that each is a separate call.
        texts = [f"{row['message']} ({number})" for number, row in enumerate(chosen)]
        optimizer = afnio.optim.TGD([self.prompt], self.client, model=MODEL)
        with afnio.priority("training"):
            for _ in range(STEPS):
                optimizer.clear_grad()
                async with afnio.scope(name="training"):
                    pred = self.ask(self.prompt, texts)
                    targets = [row["sentiment"] for row in chosen]
                    _, explanation = await cog.functional.exact_match_evaluator(pred, targets)
                    await explanation.backward()
                    await optimizer.step()
                self.served = self.prompt.detach()
                self.steps += 1


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with endpoint(afnio.Limits(max_in_flight=IN_FLIGHT)) as client:
        app.state.service = service = Service(client)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service.train)
            yield
            tasks.cancel_scope.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/answer")
async def answer(request: Request, text: str) -> dict[str, Any]:
    """Answer one request."""
    service: Service = request.app.state.service
    reply = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_until_gone, request, tasks.cancel_scope)
        with afnio.no_grad(), afnio.priority("serving"):
            reply = await service.ask(service.served, text)
        tasks.cancel_scope.cancel()
    return {"reply": None if reply is None else reply.data, "steps": service.steps}


async def _until_gone(request: Request, scope: anyio.CancelScope) -> None:
    while not await request.is_disconnected():  # noqa: ASYNC110 - there is nothing to wait for
        await anyio.sleep(0.01)
    scope.cancel()


@app.get("/state")
async def state(request: Request) -> dict[str, int]:
    """Return the calls in flight and the number of training steps."""
    runtime = current_runtime()
    steps = request.app.state.service.steps
    return {"launches": len(runtime.launches), "calls": runtime.calls_open, "steps": steps}
