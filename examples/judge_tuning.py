"""Tuning a judge: its prompt learns to agree with people, with `eval_mode=False`.

A judge's feedback usually goes to the text it judged. With `eval_mode=False` it goes to the judge's own prompt, and the
backward pass starts from the verdict that the judge should have given.

Offline a script plays the judge: lenient, unless its prompt mentions courtesy.
"""

from __future__ import annotations

import os

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.models import ChatRequest
from afnio.testing import ScriptedClient

# What a support agent wrote, and whether people found it good.
ANSWERS = [
    ("Thank you for telling us, we will be there at nine.", True),
    ("Not our problem.", False),
    ("We are sorry. A colleague is on the way, thanks for waiting.", True),
    ("Read the manual.", False),
]


def play(request: ChatRequest) -> dict[str, object]:
    """Play a judge that accepts every reply until its prompt mentions courtesy."""
    system, answer = (str(request.messages[number]["content"]).lower() for number in (0, -1))
    polite = "thank" in answer or "sorry" in answer
    strict = "thank" in system or "courte" in system or "polite" in system
    return {"score": polite or not strict, "explanation": "It is polite." if polite else "It answers."}


def main() -> None:
    live = os.environ.get("OPENAI_API_KEY") or os.environ.get("OPENAI_BASE_URL")
    with endpoint() as served:
        client = served if live else ScriptedClient(play)
        prompt = cog.Parameter(
            "Is this answer to a customer good? Score true or false.", role="judge's prompt"
        )
        messages = [
            {"role": "system", "content": [prompt]},
            {"role": "user", "content": [afnio.Variable("Answer: {prediction}", role="answer template")]},
        ]
        answers = afnio.Variable([text for text, _ in ANSWERS], role="answer to a customer")
        optimizer = afnio.optim.TGD([prompt], served, model=MODEL)
        judge = cog.LMJudgeEvaluator()
        for _ in range(2):
            optimizer.clear_grad()
            # Without a reduction, score and explanation stay batches, and each sample gets its own feedback.
            score, explanation = judge(
                client,
                messages,
                answers,
                reduction_fn=None,
                reduction_fn_purpose=None,
                eval_mode=False,
                model=MODEL,
            )
            agreed = [bool(said) == good for said, (_, good) in zip(score.data, ANSWERS, strict=True)]
            print(f"agrees with people on {sum(agreed)}/{len(ANSWERS)}")
            # One feedback for each sample, or None if the judge was right. Those samples cost no call.
            wishes = [
                None
                if right
                else f"People say {good}: the answer is not polite, it doesn't thank or say sorry."
                for right, (_, good) in zip(agreed, ANSWERS, strict=True)
            ]
            explanation.backward(afnio.Variable(wishes, role="what people say"))
            optimizer.step()
        print(prompt.data)


if __name__ == "__main__":
    main()
