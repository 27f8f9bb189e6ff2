"""Your own provider: `send` is one attempt. The engine adds limits, retries, budgets and the journal.

This one is a model in the process that counts words, and that is overloaded now and then. A provider that talks to a
service would open its session on the runtime's loop, in `send`.
"""

from __future__ import annotations

import hashlib

import afnio
import afnio.cognitive as cog
from afnio.errors import RateLimitedError
from afnio.models import ChatClient, ChatRequest, ChatResponse, Usage
from afnio.runtime import Account

GOOD = ("exceptional", "thrilled", "superb", "love")
BAD = ("poor", "late", "neglected", "dismissive")


class WordCounter(ChatClient):
    """Answers "positive", "negative" or "neutral" by the words of the last message."""

    def __init__(self, key: str = "none", limits: afnio.Limits | None = None) -> None:
        # A base URL without credentials, and a digest of the key. Calls with the same two share their limits.
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        super().__init__(Account("words://in-process", digest), limits=limits)
        self.refused = 0

    async def send(self, request: ChatRequest) -> ChatResponse:
        text = str(request.messages[-1]["content"]).lower()
        if "overload" in text and self.refused == 0:
            self.refused += 1
            raise RateLimitedError("one moment, please", status=429, retry_after=0.01)
        good, bad = (sum(word in text for word in words) for words in (GOOD, BAD))
        label = "positive" if good > bad else "negative" if bad > good else "neutral"
        usage = Usage(prompt_tokens=self.count_tokens(request), completion_tokens=1)
        return ChatResponse(content=label, finish_reason="stop", model=request.model, usage=usage)

    def count_tokens(self, request: ChatRequest) -> int:
        return sum(len(str(message["content"]).split()) for message in request.messages)


def main() -> None:
    client = WordCounter(limits=afnio.Limits(requests_per_minute=6000))
    messages = [{"role": "user", "content": [afnio.Variable("{text}")]}]
    texts = ["A superb job.", "It was late.", "When do you open?", "I love it, overload or not."]
    pred = cog.functional.chat_completion(client, messages, {"text": texts}, model="words-1")
    score, _ = cog.functional.exact_match_evaluator(pred, ["positive", "negative", "neutral", "positive"])
    print(pred.data, f"{score.data}/4 right")
    print(f"{client.refused} refusal, {client.get_usage()['total_tokens']} tokens")


if __name__ == "__main__":
    main()
