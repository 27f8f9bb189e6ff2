"""Structured: ask a model for a JSON object, and make the best of endpoints that can't promise one."""

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
"""Statuses with which endpoints refuse a parameter that they don't know."""
_FENCE: Final = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)


async def complete_json(
    model: ChatModel,
    job: Job,
    messages: Sequence[Message],
    schema: Mapping[str, Any],
    purpose: str,
) -> ChatResponse:
    """Ask for a reply in `schema`; an endpoint that refuses schemas is asked in words, from then on."""
    if not model.client.json_schema:
        return await model.complete(job, messages, purpose)
    try:
        return await model.complete(job, messages, purpose, response_format=schema)
    except FinalModelError as error:
        if error.status not in REFUSALS or "response_format" in model.completion_args:
            raise
    reply = await model.complete(job, messages, purpose)
    # The same request without a schema went through: it was the schema that was refused.
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
    """Return `parse` of the JSON object that the model replies; one repair, then it fails.

    Args:
        parse: turns the object into a result, or raises ValueError or KeyError with what is wrong.
        repair: what to say about a reply that can't be read; `{error}` is filled.

    Raises:
        ReplyError: if the repaired reply can't be read either.
    """
    reply = await complete_json(model, job, messages, schema, purpose)
    try:
        return parse(json_object(str(reply)))
    except (ValueError, KeyError, TypeError) as error:
        complaint = repair.replace("{error}", _said(error))
    again = [
        *messages,
        {"role": "assistant", "content": str(reply)},
        {"role": "user", "content": complaint},
    ]
    fixed = await complete_json(model, job, again, schema, f"{purpose}-repair")
    try:
        return parse(json_object(str(fixed)))
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(
            f"the {purpose} model's reply could not be read, nor its repair: {_said(error)} "
            f"(it starts {str(fixed)[:80]!r})"
        ) from error


def json_object(text: str) -> Mapping[str, Any]:
    """Return the JSON object that `text` is, in a code fence or between other words if need be.

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
        raise ValueError(f"it is a JSON {type(value).__name__}, not an object")  # noqa: TRY004 - said of a text
    return value


def unfenced(text: str) -> str:
    """Return `text` without the code fence around it, if there is one, and without blanks at its ends."""
    fenced = _FENCE.match(text)
    return (fenced[1] if fenced else text).strip()


def _said(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
