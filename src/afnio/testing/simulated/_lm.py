"""The simulated language model, and a fixed one."""

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
from afnio.testing.simulated._language import kind_of, read_blocks, read_conversation, schema_of, text_of
from afnio.testing.simulated._student import Attention, answer

if TYPE_CHECKING:
    from afnio.testing.simulated._language import Kind
    from afnio.testing.simulated._student import Attention


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
        reader = Attention.of(request, attempt, self._seed)
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


# Dialects: how TextGrad and GEPA ask for criticism and for a new text, read so that both get the same rules.
#
# They ask in prose with tags or fences of their own; a real model understands all of them, and so does this
# one: what a critic says and what a proposer does with it is decided in the same functions for everyone.


_GEPA: Final = re.compile(
    r"instructions to perform a task.*?\n```\n(.*?)\n```\n.*?\n```\n(.*)\n```\n", re.DOTALL
)
_EXAMPLE: Final = re.compile(r"^# Example \d+$", re.MULTILINE)
_HEADING: Final = re.compile(r"^## (.+)$", re.MULTILINE)
_INPUT: Final = re.compile(r"\*\*Prediction\(.*?\)\*\*: (.*?)\n\n\*\*Truth\(.*?\)\*\*: (.*)", re.DOTALL)
_NOUN: Final = re.compile(r'\{"(\w+)":')


def dialect_of(messages: list[dict[str, Any]]) -> tuple[Kind, str] | None:
    """Return whom a peer's request asks and the request's text, or None for a request in our own words."""
    text = "\n".join(text_of(message) for message in messages)
    if "<OBJECTIVE_FUNCTION>" in text and "<VARIABLE>" in text:
        return "critic", text
    if "<IMPROVED_VARIABLE>" in text:
        return "optimizer", text
    return ("optimizer", text) if len(messages) == 1 and _GEPA.search(text) else None


def reply_in_dialect(kind: Kind, text: str, reader: Attention) -> str:
    """Return what critic or proposer answer to a peer's prompt, in the form that the peer reads."""
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
            return "No change is needed."  # the objective is all there is, and it names no mistake
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
    # The glossary names the tags too; the request itself comes after it.
    value = _tagged(text, "VARIABLE")
    start, gap, _ = value.partition(" (...) ")
    if gap:
        # The prompt shows a long variable's first and last words only; the conversations show all of it.
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
    # The prompts speak of their tags too ("in <FEEDBACK> tags"): only the last opening before a closing counts.
    return [
        str(found).strip() for found in re.findall(rf"<{tag}>((?:(?!<{tag}>).)*?)</{tag}>", text, re.DOTALL)
    ]
