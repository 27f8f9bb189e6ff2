"""Agents over the bridge learn what native agents learn."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import afnio
import afnio.cognitive as cog
from afnio import bridge
from afnio.optim import TGD
from afnio.testing import ScriptedClient, SimulatedLM
from afnio.utils.agents import RESPONSE_FORMAT, SentimentAnalyzer


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    folder = os.environ.get("AFNIO_DATA")
    if folder is None:
        pytest.skip("e-mails: a network, or facility_support.json in AFNIO_DATA")
    items = json.loads((Path(folder) / "facility_support.json").read_text())
    random.Random(0).shuffle(items)
    return [(i["fields"]["input"], json.loads(i["answer"])["sentiment"]) for i in items[:66]]


def label_of(reply: str | None) -> str:
    return str(json.loads(reply or "{}")["sentiment"])


def train(agent: Any, predict: Any, rows: list[tuple[str, str]], model: ScriptedClient) -> list[str]:
    """Return the prompt after each step."""
    afnio.set_backward_model_client(model, completion_args={"model": "simulated"})
    optimizer = TGD(agent.parameters(), model_client=model, model="simulated")
    prompts = []
    for start in range(0, len(rows), 33):
        texts, labels = zip(*rows[start : start + 33], strict=True)
        _, explanation = cog.functional.exact_match_evaluator(predict(list(texts)), list(labels))
        explanation.backward()
        optimizer.step()
        optimizer.clear_grad()
        prompts.append(next(iter(agent.parameters())).data)
    return prompts


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


def events(text: str) -> bytes:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": text[start : start + 5]} for start in range(0, len(text), 5)]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_over_the_bridge_learns_what_the_native_one_learns(
    rows: list[tuple[str, str]], stream: bool
) -> None:
    lm = SimulatedLM()
    model = ScriptedClient(lambda request: lm(request.body))
    native = SentimentAnalyzer()

    def answer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        streams = body.pop("stream", False)
        body.pop("stream_options", None)
        text = str(lm(body))
        if streams:
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=events(text))
        return httpx2.Response(200, json=completion(text))

    http_client = httpx2.AsyncClient(transport=bridge.transport(inner=httpx2.MockTransport(answer)))
    sdk = openai.AsyncOpenAI(api_key="k", base_url="http://sdk/v1", http_client=http_client)

    async def classify(message: str, system: str) -> str:
        messages: Any = [
            {"role": "system", "content": system},
            {"role": "user", "content": f"**Message:**\n\n{message}\n\n"},
        ]
        ask: dict[str, Any] = {"model": "m", "messages": messages, "response_format": RESPONSE_FORMAT}
        if stream:
            found = await sdk.chat.completions.create(**ask, stream=True)
            return label_of("".join([chunk.choices[0].delta.content or "" async for chunk in found]))
        return label_of((await sdk.chat.completions.create(**ask)).choices[0].message.content)

    foreign = cog.Agent(classify, prompts={"system": native.sentiment_task.data})

    def native_predict(texts: list[str]) -> afnio.Variable:
        return native(model, inputs={"message": texts}, model="m").map(label_of)

    learnt = train(native, native_predict, rows, model)
    assert learnt == train(foreign, foreign, rows, model)
    assert native.sentiment_task.data != SentimentAnalyzer().sentiment_task.data
