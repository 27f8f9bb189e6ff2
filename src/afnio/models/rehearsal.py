"""Rehearsal: a program carried out with made-up replies, to see which calls it makes. Nothing is sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

from afnio.models.request import ChatRequest
from afnio.models.response import ChatResponse
from afnio.runtime._kernel import Job
from afnio.runtime._limits import Account
from afnio.runtime.events import Usage, unheard

if TYPE_CHECKING:
    from afnio.models.client import ChatClient

CHARACTERS_PER_TOKEN: Final = 4
"""About right for English."""
LENGTHS: Final = {"backward": 100, "step": 400, "reduce": 300}
"""Tokens of a made-up text by purpose: what critics, optimizers and reductions usually write."""
USUAL: Final = 100
"""Of the other purposes, where the reply is free text."""
SHORT: Final = 10
"""Of a text in a JSON reply of those."""
_DEEP: Final = 8
"""Levels of a schema that are followed; one that refers to itself has no end."""


@final
@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A call that would have been made.

    Attributes:
        stage: what `stage` was where it was launched.
        lane: the sample's index, None where there is one value only.
        prompt_tokens: as the client counts them.
        output_tokens: of the made-up reply, a guess.
    """

    stage: str
    purpose: str
    model: str
    account: Account
    lane: int | None
    prompt_tokens: int
    output_tokens: int


@final
@dataclass(slots=True)
class Rehearsal:
    """The calls of a block, in the order in which they were made."""

    calls: list[Rehearsed] = field(default_factory=list)

    def answer(self, client: ChatClient, job: Job, request: ChatRequest, purpose: str) -> ChatResponse:
        """Note a call and make up its reply: JSON in the schema that it asks for, else a text."""
        length = LENGTHS.get(purpose)
        # No two alike, as equal feedback counts once.
        text = f"made-up reply {len(self.calls) + 1}"
        wanted = request.params.get("response_format") or {}
        schema = (wanted.get("json_schema") or {}).get("schema")
        if schema is not None:
            content = json.dumps(instance(schema, _filled(text, length or SHORT)))
        elif wanted.get("type") == "json_object":
            content = "{}"
        else:
            content = _filled(text, length or USUAL)
        tokens = max(1, len(content) // CHARACTERS_PER_TOKEN)
        tokens = min(tokens, request.max_output or tokens)
        usage = Usage(client.count_tokens(request), tokens)
        self.calls.append(
            Rehearsed(
                stage.get(), purpose, request.model, client.account, job.lane, usage.prompt_tokens, tokens
            )
        )
        return ChatResponse(content=content, finish_reason="stop", model=request.model, usage=usage)


stage: Final[ContextVar[str]] = ContextVar("afnio_rehearsal_stage", default="")
"""What the calls that are launched here belong to, for those who want to tell them apart."""

rehearsal: Final[ContextVar[Rehearsal | None]] = ContextVar("afnio_rehearsal", default=None)
"""Answers what is launched in its context, instead of a provider."""


@contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """Have calls that are launched in the block answered by made-up replies; nobody is told or warned.

    >>> from afnio.testing import ScriptedClient
    >>> with rehearsing() as found:
    ...     reply = ScriptedClient("never sent").chat(messages=[{"role": "user", "content": "Hi"}], model="m")
    >>> found.calls[0].model
    'm'
    """
    made = Rehearsal()
    token = rehearsal.set(made)
    # It stays: another rehearsal may be under way when this one ends.
    logging.getLogger("afnio").addFilter(_unrehearsed)
    try:
        with unheard():
            yield made
    finally:
        rehearsal.reset(token)


def instance(
    schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, level: int = 0
) -> Any:
    """Return a value that fits a JSON schema, with `text` for its strings.

    >>> instance({"type": "object", "properties": {"label": {"enum": ["a", "b"]}, "why": {"type": "string"}}}, "…")
    {'label': 'a', 'why': '…'}
    """
    root = schema if root is None else root
    if "$ref" in schema:
        schema = _referred(schema["$ref"], root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return instance(schema[several][0], text, root, level + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if level > _DEEP:
        return None
    if kind == "object" or "properties" in schema:
        return {
            name: instance(part, text, root, level + 1) for name, part in schema.get("properties", {}).items()
        }
    if kind == "array":
        return _items(schema, text, root, level)
    plain: dict[Any, Any] = {
        "string": text, "integer": schema.get("minimum", 0), "number": schema.get("minimum", 0.0), "boolean": False,
    }  # fmt: skip
    return plain.get(kind)


def _items(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], level: int) -> list[Any]:
    """Return as many entries as are asked for; where an entry's field is a choice, each choice in turn."""
    entries = [
        instance(schema.get("items") or {}, text, root, level + 1)
        for _ in range(max(1, schema.get("minItems", 1)))
    ]
    properties = (schema.get("items") or {}).get("properties", {})
    for name, part in properties.items():
        for entry, choice in zip(entries, part.get("enum", ()), strict=False):
            entry[name] = choice
    return entries


def _referred(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _filled(text: str, tokens: int) -> str:
    characters = max(len(text), tokens * CHARACTERS_PER_TOKEN)
    return (text + " and so on" * (characters // len(" and so on") + 1))[:characters]


def _unrehearsed(record: logging.LogRecord) -> bool:
    return rehearsal.get() is None
