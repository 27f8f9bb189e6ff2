"""The simulated language model, and a fixed one."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from afnio.testing.simulated.conversation import kind_of, read_conversation, schema_of
from afnio.testing.simulated.critic import criticize
from afnio.testing.simulated.proposer import propose
from afnio.testing.simulated.student import answer
from afnio.testing.simulated.tags import read_blocks

_VARIABLE: Final = re.compile(r'<variable id="([^"]+)"')


class SimulatedLM:
    """Plays student, critic and optimizer by rules that read the request that they are sent.

    No rule knows a data set or keeps anything between requests: the same request gets the same
    reply, and what was cut from a request has no effect. Scores reached with it are simulated: they
    show that feedback travels through an engine, and say nothing about language models.

    * The *student* counts the cues that its instructions name for each label (`cues.read_cues`).
      Where they name none it takes courtesy at face value. Other tasks get an echo, or a value of
      the schema that was asked for.
    * The *critic* names the phrases of the message that argue, by a lexicon of general English, for
      the label that the feedback expected. Feedback without a label it passes on.
    * The *optimizer* tallies the claims of all feedback and writes them as cue sentences.

    Args:
        context: how many characters of the instructions and of the prompt it reads.

    >>> lm = SimulatedLM()
    >>> lm({"messages": [{"role": "user", "content": "What is the sentiment of: thank you?"}]})
    'neutral'
    """

    def __init__(self, context: int = 1_000_000) -> None:
        self._context = context

    def __call__(self, request: dict[str, Any]) -> str:
        """Return the text of the reply to a chat completion request."""
        conversation = read_conversation(request, self._context)
        kind = kind_of(request)
        if kind == "critic":
            return criticize(conversation)
        if kind == "optimizer":
            return propose(conversation)
        _, schema = schema_of(request)
        return answer(conversation, schema)


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
        variables = read_blocks(prompt, "variable")
        value = variables[0].text if variables else ""
        return json.dumps({"value": value if self._comment in value else f"{value} {self._comment}"})
