"""Traces and rehearsals: the calls that a program makes, recorded or made up.

An agent that wasn't written for Afnio has no graph. What it did is known from its calls: each request with its
messages and tools, each reply with its text and tool calls. `tracing` collects them for everything that runs in its
block, tasks and worker threads included, because a context variable leads there. Native calls
(`ChatClient.complete`) and bridged ones (`afnio.bridge`) are recorded alike, as JSON in the form of their API.

A trace also remembers what ended its calls for good. An agent may catch every exception, and an SDK turns ours into
its own. So the lane looks at `Trace.ended_by` when the agent's function ends, and raises it whatever the function
returned: an answer that was made up after the budget had ended must not be scored.

In the block of `rehearsing` no call leaves the process. Each gets a made-up reply that fits its request, which says how
many calls a program makes, of which models, with how many tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, final

from afnio.errors import (
    BudgetExceeded,
    JournalError,
    LaunchCancelledError,
    ProviderDownError,
    RunStoppedError,
    UnknownPriceError,
)
from afnio.models._messages import ChatResponse
from afnio.runtime._budget import Budget, current_budgets
from afnio.runtime._limits import Account
from afnio.runtime.events import Usage, unheard

# The path of a chat completion, native or bridged.
CHAT_PATH: Final = "chat/completions"
# Errors after which no call of the lane can succeed. So does a `BudgetExceeded`, if the budget is around the
# lane.
_FOR_GOOD: Final = (JournalError, LaunchCancelledError, ProviderDownError, RunStoppedError, UnknownPriceError)


# Characters from which a text of a request is kept only once.
_LONG: Final = 200
# Levels of a request that are copied.
_DEEP: Final = 16


@final
@dataclass(slots=True, eq=False)
class TracedCall:
    """One call of a trace.

    Attributes:
        path: its API: "chat/completions", "responses", "embeddings", "messages", "generateContent", ….
        request: the JSON body that was sent, without what the bridge added to it.
        model: the model's name.
        purpose: the call's name in addresses, usage and events.
        reply: the JSON body of the reply, None until it came or if it failed. That of a stream is put together into
            the form of a reply that isn't streamed.
    """

    path: str
    request: dict[str, Any] = field(repr=False)
    model: str
    purpose: str
    reply: dict[str, Any] | None = field(default=None, repr=False)


@final
@dataclass(slots=True, eq=False)
class Trace:
    """The calls of one lane.

    Attributes:
        record: False to count the calls only. Then `calls` stays empty.
        purpose: the purpose of bridged calls, in usage and events.
        calls: in the order of their launch, each with its `path`, `request`, `model`, `purpose` and `reply`.
        launched: how many there were.
        ended_by: the first error that ended a call of the lane for good, or None: a `BudgetExceeded` of a budget
            around the lane, a `JournalError`, a `LaunchCancelledError`, a `ProviderDownError`, an `UnknownPriceError`.
    """

    record: bool = True
    purpose: str = "chat"
    calls: list[TracedCall] = field(default_factory=list)
    launched: int = 0
    ended_by: BaseException | None = None
    _budgets: tuple[Budget, ...] = field(default_factory=current_budgets, repr=False)
    _texts: dict[str, str] = field(default_factory=dict, repr=False)

    def begin(self, path: str, request: Mapping[str, Any], model: str, purpose: str) -> TracedCall | None:
        """Count a call. Returns its entry, for the reply, or None if nothing is recorded."""
        self.launched += 1
        if not self.record:
            return None
        call = TracedCall(path, {name: self._kept(value) for name, value in request.items()}, model, purpose)
        self.calls.append(call)
        return call

    def _kept(self, value: Any, level: int = 0) -> Any:
        """Return a copy of a part of a request, in which equal texts are one object.

        An agent may change its messages later. And each call of a loop repeats its history: for 20 calls with results
        of 8 kB that is 1.6 MB a lane, of which 160 kB are new.
        """
        if isinstance(value, str):
            return self._texts.setdefault(value, value) if len(value) >= _LONG else value
        if level < _DEEP and isinstance(value, list | tuple):
            return [self._kept(item, level + 1) for item in value]
        if level < _DEEP and isinstance(value, Mapping):
            return {name: self._kept(item, level + 1) for name, item in value.items()}
        return value

    def note(self, error: BaseException) -> None:
        """Keep `error` if it is the first one that ended a call of the lane for good."""
        if self.ended_by is None and (
            isinstance(error, _FOR_GOOD) or (isinstance(error, BudgetExceeded) and self._is_around(error))
        ):
            self.ended_by = error

    def _is_around(self, error: BudgetExceeded) -> bool:
        """Return False if the agent itself set the budget, and so expects it to end."""
        name = error.limit.removeprefix("max_")
        return any(
            error.value == (budget.max_seconds if name == "seconds" else getattr(budget.caps, name))
            for budget in self._budgets
        )


# The trace of the calls that are launched in this context, or None.
current_trace: Final[ContextVar[Trace | None]] = ContextVar("afnio_trace", default=None)

# True while the engine sends an attempt. The HTTP client that it uses may be the bridge's, or a patched one:
# it must not make a call of it once more.
in_attempt: Final[ContextVar[bool]] = ContextVar("afnio_in_attempt", default=False)


@contextmanager
def tracing(record: bool = True, *, purpose: str = "chat") -> Iterator[Trace]:
    """Trace the calls that are launched in the block.

    Args:
        record: False to count the calls only.
        purpose: the purpose of bridged calls. Native ones have their own.

    >>> from afnio.testing import ScriptedClient
    >>> with tracing() as trace:
    ...     reply = ScriptedClient("Hello").chat(messages=[{"role": "user", "content": "Hi"}], model="m")
    >>> trace.calls[0].reply["choices"][0]["message"]["content"]
    'Hello'
    """
    trace = Trace(record, purpose)
    token = current_trace.set(trace)
    try:
        yield trace
    finally:
        current_trace.reset(token)


# Rehearsals


# About right for English.
CHARACTERS_PER_TOKEN: Final = 4
# Tokens of a made-up text by purpose: the usual lengths of feedback, proposals and reductions.
LENGTHS: Final = {"backward": 100, "step": 400, "reduce": 300}
# Tokens of a made-up text for other purposes.
USUAL: Final = 100
# Tokens of each text in a made-up JSON reply for other purposes.
SHORT: Final = 10
# The most levels of a schema that are filled. A schema that refers to itself has no end.
_NESTED: Final = 8


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


# A label for the calls that are launched in this context, such as the phase of training.
stage: Final[ContextVar[str]] = ContextVar("afnio_rehearsal_stage", default="")

# The rehearsal that answers the calls of this context.
rehearsal: Final[ContextVar[Rehearsal | None]] = ContextVar("afnio_rehearsal", default=None)


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
    if level > _NESTED:
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
    at: Any = root
    for part in reference.removeprefix("#/").split("/"):
        at = at.get(part, {}) if isinstance(at, Mapping) else {}
    return at if isinstance(at, Mapping) else {}


def _filled(text: str, tokens: int) -> str:
    characters = max(len(text), tokens * CHARACTERS_PER_TOKEN)
    return (text + " and so on" * (characters // len(" and so on") + 1))[:characters]


def _unrehearsed(record: logging.LogRecord) -> bool:
    return rehearsal.get() is None
