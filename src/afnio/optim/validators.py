"""Validators: what a Parameter's author demands of a proposed value."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Job


async def refusals(job: Job, value: str, validators: Sequence[Any]) -> list[str]:
    """Return why validators refuse `value`, in words for the proposer; in their order.

    Callables run as in a node: a `def` in a worker thread, an `async def` on the runtime's loop. One that raises
    anything but ValueError is broken, and the step fails.
    """
    found = [await _refusal(job, value, validator) for validator in validators]
    return [reason for reason in found if reason is not None]


async def _refusal(job: Job, value: str, validator: Any) -> str | None:
    if isinstance(validator, re.Pattern):
        # In a thread: a pattern that backtracks must not stall the loop.
        found = await call_in_node(job, validator.search, value)
        return None if found else f"it must match the pattern {validator.pattern!r}"
    if isinstance(validator, Mapping):
        reason: str | None = await call_in_node(job, _against_schema, value, validator)
        return reason
    if isinstance(validator, type) and issubclass(validator, BaseModel):
        reason = await call_in_node(job, _against_model, value, validator)
        return None if reason is None else str(reason)
    try:
        answer = await call_in_node(job, validator, value)
    except ValueError as error:
        return str(error) or f"{_name(validator)} refuses it"
    if answer is None or answer is True:
        return None
    if answer is False:
        return f"{_name(validator)} refuses it"
    if isinstance(answer, str):
        return answer or None
    raise TypeError(
        f"validator {_name(validator)} returned {answer!r}; it returns None, True, False, or a text that says why not"
    )


def _against_schema(value: str, schema: Mapping[str, Any]) -> str | None:
    try:
        import jsonschema
    except ImportError as error:
        raise ImportError(
            "checking a value against a JSON schema needs jsonschema; pip install 'afnio[schema]'"
        ) from error
    try:
        parsed = json.loads(value)
    except ValueError as error:
        return f"it must be JSON ({error})"
    problem = jsonschema.validators.validator_for(schema)(schema)
    found = next(iter(problem.iter_errors(parsed)), None)
    return None if found is None else f"it must fit its JSON schema ({found.message:.200})"


def _against_model(value: str, model: type[BaseModel]) -> str | None:
    try:
        model.model_validate_json(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"it must be JSON that fits {model.__name__} ({place + ': ' if place else ''}{first['msg']})"
    return None


def _name(validator: Any) -> str:
    return str(getattr(validator, "__name__", None) or type(validator).__name__)
