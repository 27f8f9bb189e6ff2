"""Rehearsals: run a program with made-up replies, to see which calls it makes.

Nothing is sent. Estimates of cost and time are based on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, final

from afnio.models._messages import ChatResponse
from afnio.runtime._limits import Account
from afnio.runtime.events import Usage, unheard

CHARACTERS_PER_TOKEN: Final = 4
"""About right for English."""
LENGTHS: Final = {"backward": 100, "step": 400, "reduce": 300}
"""Tokens of a made-up text by purpose: the usual lengths of feedback, proposals and reductions."""
USUAL: Final = 100
"""Tokens of a made-up text for other purposes."""
SHORT: Final = 10
"""Tokens of each text in a made-up JSON reply for other purposes."""
_DEEP: Final = 8
"""The most levels of a schema that are filled. A schema that refers to itself has no end."""


@final
@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A call that a rehearsed program made.

    Attributes:
        stage: a label of `Trainer.estimate`, which tells an optimizer's own calls apart; empty in other rehearsals.
        lane: the sample's index, or None if there is only one value.
        prompt_tokens: the client's estimate.
        output_tokens: the length of the made-up reply.
        params: what else the request has, without its messages: temperature, tools, a schema.
    """

    stage: str
    purpose: str
    model: str
    account: Account
    lane: int | None
    prompt_tokens: int
    output_tokens: int
    params: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(slots=True)
class Rehearsal:
    """The calls of a block, in order."""

    calls: list[Rehearsed] = field(default_factory=list)

    def make_up(
        self,
        *,
        model: str,
        account: Account,
        purpose: str,
        lane: int | None,
        prompt_tokens: int,
        max_output: int | None,
        schema: Mapping[str, Any] | None,
        any_json: bool = False,
        params: Mapping[str, Any] | None = None,
    ) -> ChatResponse:
        """Record a call by its facts, and make up its reply.

        Args:
            any_json: True if the reply must be JSON without a schema.
        """
        length = LENGTHS.get(purpose)
        # Number the replies: equal ones would count once as feedback.
        text = f"made-up reply {len(self.calls) + 1}"
        if schema is not None:
            content = json.dumps(instance(schema, _filled(text, length or SHORT)))
        elif any_json:
            content = "{}"
        else:
            content = _filled(text, length or USUAL)
        tokens = max(1, len(content) // CHARACTERS_PER_TOKEN)
        tokens = min(tokens, max_output or tokens)
        usage = Usage(prompt_tokens, tokens)
        self.calls.append(
            Rehearsed(stage.get(), purpose, model, account, lane, prompt_tokens, tokens, params or {})
        )
        return ChatResponse(content=content, finish_reason="stop", model=model, usage=usage)


stage: Final[ContextVar[str]] = ContextVar("afnio_rehearsal_stage", default="")
"""A label for the calls that are launched in this context, such as the phase of training."""

rehearsal: Final[ContextVar[Rehearsal | None]] = ContextVar("afnio_rehearsal", default=None)
"""The rehearsal that answers the calls of this context."""


@contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """Answer the calls of the block with made-up replies. It emits no events and logs no warnings.

    Its `calls` have the `model` and `purpose` of each call, its `lane`, estimated tokens, and the request's `params`.

    >>> from afnio.testing import ScriptedClient
    >>> with rehearsing() as found:
    ...     reply = ScriptedClient("never sent").chat(messages=[{"role": "user", "content": "Hi"}], model="m")
    >>> found.calls[0].model
    'm'
    """
    made = Rehearsal()
    token = rehearsal.set(made)
    # The filter is never removed: another rehearsal may still be running when this one ends.
    logging.getLogger("afnio").addFilter(_unrehearsed)
    try:
        with unheard():
            yield made
    finally:
        rehearsal.reset(token)


def instance(
    schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, level: int = 0
) -> Any:
    """Return a value that fits a JSON schema, with `text` for strings.

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
    """Return the fewest entries that the schema allows. Fields with an `enum` go through its values."""
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
