"""The simulated language model, and a fixed one."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from afnio.testing.simulated.conversation import kind_of, read_conversation, schema_of
from afnio.testing.simulated.critic import criticize
from afnio.testing.simulated.dialect import dialect_of, reply_in_dialect
from afnio.testing.simulated.judge import judge
from afnio.testing.simulated.proposer import propose
from afnio.testing.simulated.reader import Reader
from afnio.testing.simulated.reducer import reduce
from afnio.testing.simulated.student import answer
from afnio.testing.simulated.tags import read_blocks

_VARIABLE: Final = re.compile(r'<variable id="([^"]+)"')


class SimulatedLM:
    """Plays student, critic, reducer, optimizer and judge by rules that read the request that they are sent.

    No rule knows a data set or keeps anything between requests: the same request gets the same
    reply, and what was cut from a request has no effect. Scores reached with it are simulated: they
    show that feedback travels through an engine, and say nothing about language models.

    * The *student* counts the cues that its instructions name for each label (`cues.read_cues`).
      Where they name none it takes courtesy at face value. In tasks with an exact answer it makes
      the mistakes that nobody told it to avoid (`skills`). Other tasks get an echo, or a value of
      the schema that was asked for.
    * The *critic* names the phrases of the message that argue, by a lexicon of general English, for
      the label that the feedback expected, or the skill that was missing; an input that was wrong
      before the student saw it is blamed instead. Feedback without a label it passes on.
    * The *reducer* merges the feedback of a group, equal claims once.
    * The *optimizer* tallies the claims of all feedback and writes them as cue sentences.
    * The *judge* compares prediction and target.

    A model whose name starts with `simulated-limited` does all this as published models do: of many
    feedback texts it uses fewer, of many instructions it follows fewer, a quarter of its criticism is
    beside the point, and it lengthens what it rewrites (`reader`, docs/simulated-lm.md). Any other name
    reads everything.

    Args:
        context: how many characters of the instructions and of the prompt it reads.
        seed: of what a limited reader overlooks.

    >>> lm = SimulatedLM()
    >>> lm({"messages": [{"role": "user", "content": "What is the sentiment of: thank you?"}]})
    'neutral'
    """

    def __init__(self, context: int = 1_000_000, seed: int = 0) -> None:
        self._context = context
        self._seed = seed

    def __call__(self, request: dict[str, Any], attempt: int = 1) -> str:
        """Return the text of the reply to a chat completion request.

        Args:
            attempt: how many times it was sent; at temperature 0 it makes no difference.
        """
        conversation = read_conversation(request, self._context)
        reader = Reader.of(request, attempt, self._seed)
        # Those who ask in prose ask for no form.
        asked = None if request.get("response_format") else dialect_of(request["messages"])
        if asked is not None:
            return reply_in_dialect(*asked, reader)
        kind = kind_of(request)
        if kind == "critic":
            return criticize(conversation, reader)
        if kind == "optimizer":
            return propose(conversation, reader)
        if kind == "reducer":
            return reduce(conversation, reader)
        if kind == "judge":
            return judge(conversation.prompt)
        _, schema = schema_of(request)
        return answer(conversation, schema, reader)


class FixedReply:
    """Replies one text to everything, for benchmarks.

    Critics and optimizers get a minimal valid object.

    >>> FixedReply("ok")({"messages": [{"role": "user", "content": "hello"}]})
    'ok'
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._comment = text or "Be specific."

    def __call__(self, request: dict[str, Any]) -> str:
        """Return the text of the reply to a chat completion request."""
        kind = kind_of(request)
        if kind == "student":
            return self._text
        prompt = read_conversation(request, 1_000_000).prompt
        if kind == "critic":
            ids = _VARIABLE.findall(prompt)
            return json.dumps({"feedback": [{"variable": name, "text": self._comment} for name in ids]})
        if kind == "reducer":
            return json.dumps({"points": [{"point": self._comment, "sources": [1]}]})
        if kind == "judge":
            return json.dumps({"score": 0, "explanation": self._comment})
        variables = read_blocks(prompt, "variable")
        value = variables[0].text if variables else ""
        return json.dumps({"value": value if self._comment in value else f"{value} {self._comment}"})
