"""SimulatedLM: plays every role of a training run by rules, and FixedReply: one reply for everything.

Tests, the demo and benchmarks of learning need a model that answers the same way every time, costs nothing, and gets
better only if feedback really reaches its prompt. `SimulatedLM` looks up the role that a request is meant for and calls
the function that plays it: `_student.answer`, or one of `_critic`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from afnio.testing.simulated._critic import criticize, judge, propose, reduce
from afnio.testing.simulated._editor import edit
from afnio.testing.simulated._language import kind_of, read_blocks, read_conversation, schema_of
from afnio.testing.simulated._student import Attention, answer

_VARIABLE: Final = re.compile(r'<variable id="([^"]+)"')


class SimulatedLM:
    """Plays student, critic, reducer, optimizer and judge by rules.

    No rule knows a data set or remembers anything between requests: the same request gets the same reply, and text that
    was cut from a request has no effect. Scores are simulated. They show that feedback travels through an engine, and
    nothing about language models.

    * The *student* counts each label's cues in its instructions. Without cues it takes courtesy at face value. In tasks
      with an exact answer it makes typical mistakes until its instructions rule them out. Otherwise it echoes the
      message, or fills the schema.
    * The *critic* names the phrases of the message that argue for the expected label, by a lexicon of general English,
      or the missing skill. If an input was already wrong, it blames the step that wrote it. It passes on feedback
      without a label.
    * The *reducer* merges the feedback of a group and drops repetitions.
    * The *optimizer* counts the claims in all feedback and writes them as cue sentences. Asked for edits by block, it
      answers with the blocks that it would change, and it merges edits that contest one place.
    * The *judge* compares prediction and target.

    A model whose name starts with `simulated-limited` has the limits of published models. The more feedback, the
    smaller the share it uses; the more instructions, the smaller the share it follows. A quarter of its criticism
    misses the point, and its rewrites get longer (docs/simulated-lm.md). All other names notice everything.

    Args:
        context: the number of characters that it reads of the instructions, and of the prompt.
        seed: seed of the draws of a limited model.

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
            attempt: how often the request has been sent, this time included; ignored at temperature 0.
        """
        conversation = read_conversation(request, self._context)
        reader = Attention.of(request, attempt, self._seed)
        kind = kind_of(request)
        if kind == "critic":
            return criticize(conversation, reader)
        if kind == "optimizer":
            return propose(conversation, reader)
        if kind == "editor":
            return edit(conversation, reader)
        if kind == "reducer":
            return reduce(conversation, reader)
        if kind == "judge":
            return judge(conversation.prompt)
        _, schema = schema_of(request)
        return answer(conversation, schema, reader)


class FixedReply:
    """Replies with one text to every student, for benchmarks; other roles get a minimal valid object.

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
        if kind == "editor":
            return json.dumps({"edits": [{"op": "add", "block": 0, "text": self._comment, "samples": []}]})
        if kind == "reducer":
            return json.dumps({"points": [{"point": self._comment, "sources": [1]}]})
        if kind == "judge":
            return json.dumps({"score": 0, "explanation": self._comment})
        variables = read_blocks(prompt, "variable")
        value = variables[0].text if variables else ""
        return json.dumps({"value": value if self._comment in value else f"{value} {self._comment}"})
