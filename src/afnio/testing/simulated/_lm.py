"""SimulatedLM: plays every role of a training run by rules, and FixedReply: one reply for everything.

Tests, the demo and benchmarks of learning need a model that answers the same way every time, costs nothing, and gets
better only if feedback really reaches its prompt. `SimulatedLM` looks up the role that a request is meant for and calls
the function that plays it: `_student.answer`, or one of `_critic`. The last part of this file reads the prompts of
TextGrad and GEPA, so that comparisons run against the same model.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated._critic import (
    Case,
    blame,
    comment,
    criticize,
    expected_label,
    judge,
    propose,
    reduce,
    rewrite,
)
from afnio.testing.simulated._editor import edit
from afnio.testing.simulated._language import kind_of, read_blocks, read_conversation, schema_of, text_of
from afnio.testing.simulated._student import Attention, answer

if TYPE_CHECKING:
    from afnio.testing.simulated._language import Kind
    from afnio.testing.simulated._student import Attention


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
        # The peers' prompts describe the reply in prose and send no response_format.
        asked = None if request.get("response_format") else _dialect_of(request["messages"])
        if asked is not None:
            return _reply_in_dialect(*asked, reader)
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


# The prompts of TextGrad and GEPA. They ask for criticism and for new texts in prose, with their own tags and fences.
# A real model understands them all. Here they are parsed, and answered by the same functions as Afnio's own prompts.


_GEPA: Final = re.compile(
    r"instructions to perform a task.*?\n```\n(.*?)\n```\n.*?\n```\n(.*)\n```\n", re.DOTALL
)
_EXAMPLE: Final = re.compile(r"^# Example \d+$", re.MULTILINE)
_HEADING: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_INPUT: Final = re.compile(r"\*\*Prediction\(.*?\)\*\*: (.*?)\n\n\*\*Truth\(.*?\)\*\*: (.*)", re.DOTALL)
_NOUN: Final = re.compile(r'\{"(\w+)":')


def _dialect_of(messages: list[dict[str, Any]]) -> tuple[Kind, str] | None:
    """Return the role and the text of a peer's request, or None for one of Afnio's own."""
    text = "\n".join(text_of(message) for message in messages)
    if "<OBJECTIVE_FUNCTION>" in text and "<VARIABLE>" in text:
        return "critic", text
    if "<IMPROVED_VARIABLE>" in text:
        return "optimizer", text
    return ("optimizer", text) if len(messages) == 1 and _GEPA.search(text) else None


def _reply_in_dialect(kind: Kind, text: str, reader: Attention) -> str:
    """Return the critic's or the proposer's reply to a peer's prompt, in the format that the peer parses."""
    if kind == "critic":
        return _textgrad_critic(text, reader)
    if "<IMPROVED_VARIABLE>" in text:
        return f"<IMPROVED_VARIABLE>{_textgrad_value(text, reader)}</IMPROVED_VARIABLE>"
    return f"```\n{_gepa_value(text, reader)}\n```"


def _textgrad_critic(text: str, reader: Attention) -> str:
    value = _tagged(text, "VARIABLE")
    told = _tagged(text, "LM_SYSTEM_PROMPT")
    if told:
        feedback = _tagged(text, "OBJECTIVE_FUNCTION")
        if expected_label(feedback) is None:
            return "No change is needed."  # the objective alone names no mistake
        reply = _NOUN.search(_tagged(text, "LM_OUTPUT"))
        case = Case(_tagged(text, "LM_INPUT"), [feedback], reply[1] if reply else "answer")
        start, _, _ = value.partition(" (...) ")
        said = comment(told, case, reader) if told.startswith(start) else blame(value, [told], case)
        return said or "No change is needed."
    found = _INPUT.search(_tagged(text, "INPUTS_TO_FUNCTION"))
    if found is None or _tagged(text, "OUTPUT_OF_FUNCTION") == "1":
        return "No change is needed."
    said, wanted = (json.dumps(part.strip(), ensure_ascii=False) for part in found.groups())
    return f"exact match: predicted {said or value}, expected {wanted}, score 0."


def _textgrad_value(text: str, reader: Attention) -> str:
    # `_tagged` takes the last match: the glossary before the request names the tags too.
    value = _tagged(text, "VARIABLE")
    start, gap, _ = value.partition(" (...) ")
    if gap:
        # TextGrad shortens a long variable to its first and last words; the conversations show all of it.
        whole = _all_tagged(text, "LM_SYSTEM_PROMPT")
        value = next((found for found in whole if found.startswith(start)), value)
    useful = [said for said in _all_tagged(text, "FEEDBACK") if said and said != "No change is needed."]
    constraints = [part for part in _tagged(text, "CONSTRAINTS").split("\n") if part]
    return rewrite(value, useful, constraints, reader) if useful else value


def _gepa_value(text: str, reader: Attention) -> str:
    found = _GEPA.search(text)
    assert found is not None
    value, examples = found.groups()
    feedback = []
    for example in _EXAMPLE.split(examples)[1:]:
        parts = _HEADING.split(example)
        sections = {name.strip(): said.strip() for name, said in zip(parts[1::2], parts[2::2], strict=True)}
        reply = _NOUN.search(sections.get("Generated Outputs", ""))
        case = Case(
            sections.get("Inputs", ""), [sections.get("Feedback", "")], reply[1] if reply else "answer"
        )
        if "score 1" not in case.feedback[0]:
            feedback.append(comment(value, case, reader))
    useful = [said for said in feedback if said]
    return rewrite(value, useful, [], reader) if useful else value


def _tagged(text: str, tag: str) -> str:
    found = _all_tagged(text, tag)
    return found[-1] if found else ""


def _all_tagged(text: str, tag: str) -> list[str]:
    # Prompts also mention their tags ("in <FEEDBACK> tags"): match from the last opening before a closing tag.
    return [
        str(found).strip() for found in re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    ]
