"""What a request shows: its texts, the form of the answer, and whom it asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["student", "critic", "optimizer", "judge", "reducer"]

_KINDS: Final[dict[str, Kind]] = {
    "afnio_feedback": "critic",
    "afnio_value": "optimizer",
    "afnio_judgement": "judge",
    "afnio_reduction": "reducer",
}
# The forms that the critic and the optimizer are asked for in words, where no schema is sent.
_FEEDBACK_FORM: Final = re.compile(r'\{\s*"feedback"\s*:\s*\[\s*\{\s*"variable"')
_POINTS_FORM: Final = re.compile(r'\{\s*"points"\s*:\s*\[\s*\{\s*"point"')
_VALUE_FORM: Final = re.compile(r'\{\s*"value"\s*:\s*"')


def text_of(message: dict[str, Any]) -> str:
    """Return the text of a message whose content is a string, a list of parts, or nothing.

    >>> text_of({"role": "user", "content": [{"type": "text", "text": "hi"}]})
    'hi'
    """
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [part.get("text") for part in content if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


@dataclass(frozen=True, slots=True)
class Conversation:
    """The texts of a request: what it says to do, what was said last, and all that users said."""

    instructions: str
    message: str
    prompt: str


def read_conversation(request: dict[str, Any], context: int) -> Conversation:
    """Return the texts of a request as an LM sees them that reads `context` characters of each."""
    told: list[str] = []
    said: list[str] = []
    for message in request["messages"]:
        texts = told if message.get("role") in ("system", "developer") else said
        if message.get("role") != "assistant":
            texts.append(text_of(message))
    # Without a system message the first user message holds the instructions, maybe with the input.
    instructions = "\n".join(told or said[:1])[:context]
    return Conversation(instructions, (said[-1] if said else "")[:context], "\n".join(said)[:context])


def schema_of(request: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Return the name of the schema that the answer must obey and the schema, or "" and None.

    A plain `json_object` has the schema that asks for nothing but an object.
    """
    form = request.get("response_format")
    if not isinstance(form, dict):
        return "", None
    if form.get("type") == "json_object":
        return "", {"type": "object"}
    asked = form.get("json_schema")
    if not isinstance(asked, dict):
        return "", None
    name, schema = asked.get("name"), asked.get("schema")
    return name if isinstance(name, str) else "", schema if isinstance(schema, dict) else None


def kind_of(request: dict[str, Any]) -> Kind:
    """Return whom a request asks: by its schema's name, else by the form that its prompt asks for.

    >>> kind_of({"messages": [{"role": "system", "content": 'Answer {"value": "<text>"}.'}]})
    'optimizer'
    """
    name, _ = schema_of(request)
    if name:
        return _KINDS.get(name, "student")
    instructions = text_of(request["messages"][0])
    if _FEEDBACK_FORM.search(instructions):
        return "critic"
    if _POINTS_FORM.search(instructions):
        return "reducer"
    return "optimizer" if _VALUE_FORM.search(instructions) else "student"
