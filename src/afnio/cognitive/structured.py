"""Structured: ask a model for a JSON object, and make the best of endpoints that can't promise one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from afnio.errors import FinalModelError, ReplyError
from afnio.models import ChatClient, ChatRequest, ChatResponse
from afnio.runtime import Job

T = TypeVar("T")

_FENCE: Final = re.compile(r"^\s*```[a-zA-Z]*\s*\n(.*)\n\s*```\s*$", re.DOTALL)


async def complete_json(
    client: ChatClient,
    job: Job,
    messages: list[dict[str, Any]],
    schema: Mapping[str, Any],
    purpose: str,
    completion_args: Mapping[str, Any],
    number: int = 1,
) -> ChatResponse:
    """Ask for a reply in `schema`; an endpoint that refuses schemas is asked in words, from then on."""
    args = dict(completion_args)
    model = args.pop("model", None)
    if client.json_schema:
        request = ChatRequest.build(messages, model=model, **{"response_format": schema, **args})
        try:
            return await client.complete(job, request, purpose, number)
        except FinalModelError as error:
            if error.status not in (400, 422) or "response_format" in args:
                raise
            refusal = error
        reply = await client.complete(job, ChatRequest.build(messages, model=model, **args), purpose, number)
        # The same request without a schema went through: it was the schema that was refused.
        client.json_schema = False
        del refusal
        return reply
    return await client.complete(job, ChatRequest.build(messages, model=model, **args), purpose, number)


async def ask(
    client: ChatClient,
    job: Job,
    messages: list[dict[str, Any]],
    *,
    schema: Mapping[str, Any],
    parse: Callable[[Mapping[str, Any]], T],
    repair: str,
    purpose: str,
    completion_args: Mapping[str, Any],
    number: int = 1,
) -> T:
    """Return `parse` of the JSON object that the model replies; one repair, then it fails.

    Args:
        parse: turns the object into a result, or raises ValueError or KeyError with what is wrong.
        repair: what to say about a reply that can't be read; `{error}` is filled.

    Raises:
        ReplyError: if the repaired reply can't be read either.
    """
    reply = await complete_json(client, job, messages, schema, purpose, completion_args, number)
    try:
        return parse(json_object(str(reply)))
    except (ValueError, KeyError, TypeError) as error:
        complaint = repair.replace("{error}", _said(error))
    again = [
        *messages,
        {"role": "assistant", "content": str(reply)},
        {"role": "user", "content": complaint},
    ]
    fixed = await complete_json(client, job, again, schema, f"{purpose}-repair", completion_args, number)
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
    fenced = _FENCE.match(text)
    body = (fenced[1] if fenced else text).strip()
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


def _said(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)
