"""Your own op: it extracts the label from a longer reply, and its feedback explains that."""

from __future__ import annotations

import json
import re
from typing import Any

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.autodiff import Function

SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "label",
        "schema": {
            "type": "object",
            "properties": {"label": {"enum": ["positive", "neutral", "negative"]}},
            "required": ["label"],
        },
    },
}


class Label(Function):
    """The value of "label" in a JSON reply; "unreadable" where there is none."""

    @staticmethod
    def forward(ctx: Any, reply: str) -> str:
        found = re.search(r"\{.*\}", reply, re.DOTALL)
        try:
            ctx.label = str(json.loads(found[0])["label"]) if found else None
        except (ValueError, KeyError, TypeError):
            ctx.label = None
        return ctx.label or "unreadable"

    @staticmethod
    def backward(ctx: Any, feedback: str) -> str:
        if ctx.label is None:
            return f'The reply has no JSON object with a "label". {feedback}'
        return feedback


def main() -> None:
    with endpoint() as client:
        prompt = cog.Parameter("Classify the sentiment of the message.", role="system prompt")
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("{text}", role="message")]},
        ]
        texts = {"text": ["I am thrilled with it.", "The repair was poor.", "What is the pricing?"]}
        targets = ["positive", "negative", "neutral"]
        optimizer = afnio.optim.TGD([prompt], client, model=MODEL)
        for _ in range(2):
            optimizer.clear_grad()
            reply = cog.functional.chat_completion(
                client, messages, texts, model=MODEL, response_format=SCHEMA
            )
            label = Label.apply(reply)
            score, explanation = cog.functional.exact_match_evaluator(label, targets)
            print(label.data, f"{score.data}/{len(targets)}")
            explanation.backward()
            optimizer.step()
        print(prompt.data)


if __name__ == "__main__":
    main()
