"""Traces: the language model calls that one lane of an agent makes, whoever sends them.

An agent that wasn't written for Afnio has no graph. What it did is known from its calls: each request with its
messages and tools, each reply with its text and tool calls. `tracing` collects them for everything that runs in its
block, tasks and worker threads included, because a context variable leads there. Native calls
(`ChatClient.complete`) and bridged ones (`afnio.bridge`) are recorded alike, as JSON in the form of their API.

A trace also remembers what ended its calls for good. An agent may catch every exception, and an SDK turns ours into
its own. So the lane looks at `Trace.ended_by` when the agent's function ends, and raises it whatever the function
returned: an answer that was made up after the budget had ended must not be scored.
"""

from __future__ import annotations

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
    UnknownPriceError,
)
from afnio.runtime._budget import Budget, current_budgets

CHAT_PATH: Final = "chat/completions"
"""The path of a chat completion, native or bridged."""
_FOR_GOOD: Final = (JournalError, LaunchCancelledError, ProviderDownError, UnknownPriceError)
"""Errors after which no call of the lane can succeed. So does a `BudgetExceeded`, if the budget is around the lane."""


_LONG: Final = 200
"""Characters from which a text of a request is kept only once."""
_DEEP: Final = 16
"""Levels of a request that are copied."""


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


current_trace: Final[ContextVar[Trace | None]] = ContextVar("afnio_trace", default=None)
"""The trace of the calls that are launched in this context, or None."""

in_attempt: Final[ContextVar[bool]] = ContextVar("afnio_in_attempt", default=False)
"""True while the engine sends an attempt. The HTTP client that it uses may be the bridge's, or a patched one: it must
not make a call of it once more."""


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
