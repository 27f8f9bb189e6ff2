"""A retrieval pipeline with three learnable prompts: what to look for, how to answer, and how to judge.

Each question is rewritten as a search, the search finds a passage, and the passage answers the question. The stages of
one question wait for each other, those of different questions don't. The simulated LM blames the prompt that answers. A
real model may blame the others too.
"""

from __future__ import annotations

import re

from offline import MODEL, endpoint

import afnio
import afnio.cognitive as cog
from afnio.models import ChatClient

PASSAGES = [
    "Exceptional and superb service is what our clients thank us for. Such letters are positive.",
    "Letters that ask for pricing, information or an appointment are neutral.",
    "Letters about late, poor or neglected work are negative.",
]
QUESTIONS = [
    ("The crew was exceptional.", "positive"),
    ("Could you send us pricing?", "neutral"),
    ("The stairs were neglected.", "negative"),
    ("Superb work on the roof!", "positive"),
    ("Is there an appointment in May?", "neutral"),
    ("Poor service and late again.", "negative"),
]


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def find(search: str) -> str:
    """Return the passage that shares the most words with the search; of the user's own, so plain Python."""
    return max(PASSAGES, key=lambda passage: len(words(passage) & words(search)))


class Pipeline(cog.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rewrite = cog.Parameter("Repeat the letter as a search.", role="prompt that writes searches")
        self.answer = cog.Parameter("Say the sentiment of the letter.", role="prompt that answers")
        self.context = cog.Parameter("Passage: {passage}", role="how the passage is shown")
        self.letter = afnio.Variable("{letter}", role="letter")

    def forward(self, client: ChatClient, letter: afnio.Variable) -> cog.Completion:
        search = cog.functional.chat_completion(
            client,
            [{"role": "system", "content": [self.rewrite]}, {"role": "user", "content": [self.letter]}],
            {"letter": letter},
            model=MODEL,
        )
        passage = search.map(find, role="passage that was found")  # each as it arrives
        return cog.functional.chat_completion(
            client,
            [
                {"role": "system", "content": [self.answer, self.context]},
                {"role": "user", "content": [self.letter]},
            ],
            {"letter": letter, "passage": passage},
            model=MODEL,
        )


def main() -> None:
    letters = afnio.Variable([letter for letter, _ in QUESTIONS], role="letter")
    targets = [target for _, target in QUESTIONS]
    with endpoint() as client:
        pipeline = Pipeline()
        optimizer = afnio.optim.TGD(
            pipeline.parameters(), client, model=MODEL, constraints=["Keep it short."]
        )
        for epoch in range(3):
            optimizer.clear_grad()
            score, explanation = cog.functional.exact_match_evaluator(pipeline(client, letters), targets)
            print(f"epoch {epoch}: {score.data}/{len(targets)} right")
            explanation.backward()
            for name, parameter in pipeline.named_parameters():
                print(f"  {name}: {len(parameter.grad)} gradients")
            optimizer.step()
        for name, parameter in pipeline.named_parameters():
            print(f"{name}: {parameter.data!r}")


if __name__ == "__main__":
    main()
