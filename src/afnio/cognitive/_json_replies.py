"""JSON replies: ask a model for a JSON object, read it, and ask it to repair one that can't be read.

Endpoints without schemas are served, too: they answer in prose, or put a fence around the object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from afnio.errors import FinalModelError, ReplyError
from afnio.models._client import ChatModel
from afnio.models._messages import ChatResponse, Message
from afnio.runtime._kernel import Job

T = TypeVar("T")

REFUSALS: Final = (400, 422)
"""The HTTP statuses with which endpoints refuse a parameter that they don't know."""
_FENCE: Final = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)


async def complete_json(
    model: ChatModel,
    job: Job,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    purpose: str,
) -> ChatResponse:
    """Ask for a reply in `schema`. If the endpoint refuses schemas, stop sending them to it."""
    if not model.client.json_schema:
        return await model.ask(messages, purpose, job=job)
    try:
        return await model.ask(messages, purpose, job=job, response_format=schema)
    except FinalModelError as error:
        if error.status not in REFUSALS or "response_format" in model.completion_args:
            raise
    reply = await model.ask(messages, purpose, job=job)
    # The same request without the schema was accepted, so it was the schema that was refused.
    model.client.json_schema = False
    return reply


async def ask(
    model: ChatModel,
    job: Job,
    messages: Sequence[Message],
    *,
    schema: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], T],
    repair: str,
    purpose: str,
) -> T:
    """Return `parse` of the JSON object in the model's reply. An unreadable reply is sent back once to be repaired.

    Args:
        parse: turns the object into a result, or raises ValueError or KeyError with the mistake.
        repair: the message about an unreadable reply; `{error}` is filled.

    Raises:
        ReplyError: if the repaired reply can't be read either.
    """
    reply = await complete_json(model, job, messages, schema, purpose)
    try:
        return parse(json_object(str(reply)))
    except (ValueError, KeyError, TypeError) as error:
        request = repair.replace("{error}", _complaint(error))
    again = [
        *messages,
        {"role": "assistant", "content": str(reply)},
        {"role": "user", "content": request},
    ]
    fixed = await complete_json(model, job, again, schema, f"{purpose}-repair")
    try:
        return parse(json_object(str(fixed)))
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(
            f"the {purpose} model's reply could not be read, nor its repair: {_complaint(error)} "
            f"(it starts {str(fixed)[:80]!r})"
        ) from error


def json_object(text: str) -> Mapping[str, Any]:
    """Return the JSON object in `text`, also from inside a code fence or between other words.

    >>> json_object('Sure: {"a": 1}')
    {'a': 1}
    """
    body = unfenced(text)
    try:
        value = json.loads(body)
    except ValueError:
        start, end = body.find("{"), body.rfind("}")
        if start < 0 or end < start:
            raise ValueError("it holds no JSON object") from None
        value = json.loads(body[start : end + 1])
    if not isinstance(value, dict):
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")  # noqa: TRY004 - about a text
    return value


def unfenced(text: str) -> str:
    """Return `text` without a code fence around it, and without blanks at its ends."""
    fenced = _FENCE.match(text)
    return (fenced[1] if fenced else text).strip()


def _complaint(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
