"""Your own optimizer: it keeps a list of lessons in the prompt, the latest few, without a model call.

Only `propose` is needed. The base class gathers feedback, chains steps, keeps the old value on failure and reports
what happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.optim import Change, Optimizer


class Lessons(Optimizer):
    """Adds each new piece of feedback as a line, and drops the oldest beyond `keep`."""

    def __init__(self, params: Iterable[afnio.Variable], keep: int = 5) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1 (got {keep})")
        super().__init__(params, {"keep": keep})

    async def propose(
        self,
        parameter: afnio.Variable,
        value: Any,
        gradients: Sequence[afnio.Variable],
        options: Mapping[str, Any],
    ) -> Change:
        state = self.state[parameter]
        first = state.setdefault("first", value)
        lessons: list[str] = state.setdefault("lessons", [])
        for gradient in gradients:
            text = " ".join(str(gradient.data).split())
            if text not in lessons:
                lessons.append(text)
        del lessons[: -options["keep"]]
        after = "\n".join([first, "Lessons so far:", *(f"- {lesson}" for lesson in lessons)])
        return Change(parameter.role, value, after, len(gradients))


def main() -> None:
    with endpoint() as client:
        prompt = cog.Parameter("Say the sentiment: positive, neutral or negative.", role="system prompt")
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("{text}", role="message")]},
        ]
        optimizer = Lessons([prompt], keep=3)
        for _ in range(2):
            optimizer.clear_grad()
            pred = cog.functional.chat_completion(
                client, messages, {"text": ["I am thrilled.", "It was poor."]}, model=MODEL
            )
            score, explanation = cog.functional.exact_match_evaluator(pred, ["positive", "negative"])
            print(f"{score.data}/2 right")
            explanation.backward()
            optimizer.step()
        print(prompt.data)


if __name__ == "__main__":
    main()
