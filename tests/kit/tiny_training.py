"""A tiny training that makes each kind of row: a forward pass, feedback, a step, a validation."""

from __future__ import annotations

import json
from typing import Any

import afnio
from afnio.cognitive import Parameter
from afnio.cognitive.functional import chat_completion, exact_match_evaluator
from afnio.optim import TGD
from afnio.testing import ScriptedClient

FIRST, SECOND = "Answer with one word.", "Answer yes or no."
TEXTS, LABELS = ["is it so?", "is it not?", "who?"], ["yes", "no", "yes"]


def reply(request: Any) -> str:
    """A model that learns from the prompt: with the second one it is right more often."""
    text = json.dumps(request.messages, ensure_ascii=False)
    form = (request.params.get("response_format") or {}).get("json_schema", {})
    if form.get("name") == "afnio_feedback":
        names = form["schema"]["properties"]["feedback"]["items"]["properties"]["variable"]["enum"]
        return json.dumps({"feedback": [{"variable": name, "text": "say yes or no"} for name in names]})
    if form:
        return json.dumps({"value": SECOND})
    return "no" if SECOND in text and "not" in text else "yes"


def evaluate(prompt: Parameter, client: ScriptedClient) -> Any:
    messages = [
        {"role": "system", "content": [prompt]},
        {"role": "user", "content": [afnio.Variable("{text}", role="template")]},
    ]
    answers = chat_completion(client, messages, {"text": afnio.Variable(TEXTS, role="text")}, model="m")
    return exact_match_evaluator(answers, LABELS)


def train(client: ScriptedClient, critic: ScriptedClient) -> None:
    """One step and a validation before and after it."""
    prompt = Parameter(FIRST, role="system prompt", requires_grad=True)
    optimizer = TGD([prompt], critic, model="critic")
    with afnio.set_backward_model_client(critic, completion_args={"model": "critic"}):
        with afnio.scope(name="val"), afnio.no_grad():
            evaluate(prompt, client)
        with afnio.scope(name="epoch 1"), afnio.scope(name="step 1"):
            evaluate(prompt, client)[1].backward()
            optimizer.step()
        with afnio.scope(name="val"), afnio.no_grad():
            evaluate(prompt, client)
