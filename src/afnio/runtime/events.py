"""Events: what happened, as frozen dataclasses, to whoever subscribes.

No event carries a key, a header or a message text that is not named here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

from afnio.runtime._settings import Setting


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or of many: as the provider counts them, 0 where it doesn't say."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Base of the events of one language model call.

    Attributes:
        address: scope path, launch number, lane and purpose of the call.
        account: base URL without credentials.
        model: exact model name.
        purpose: forward, backward, repair, step, judge, ….
    """

    address: str
    account: str
    model: str
    purpose: str


@dataclass(frozen=True, slots=True)
class CallReplayed(CallEvent):
    """A call was answered from the journal; nothing was sent and nothing is paid.

    Attributes:
        request, reply, node, lane: as in `CallEnded`.
    """

    request: Any = field(default=None, repr=False)
    reply: Any = field(default=None, repr=False)
    node: str = ""
    lane: int | None = None


@dataclass(frozen=True, slots=True)
class CallRetried(CallEvent):
    """An attempt failed and there will be another, `wait` seconds later."""

    attempt: int
    error: str
    wait: float
    seconds: float = 0.0
    """That the attempt was on the wire."""


@dataclass(frozen=True, slots=True)
class CallEnded(CallEvent):
    """A call has its reply, failed for good, or was cancelled (`error`).

    Attributes:
        seconds: on the wire, all attempts together; the provider's doing.
        waited: in the queue and between attempts; ours.
        request: what was asked, with its messages: a `ChatRequest`.
        reply: what came back, None if nothing did: a `ChatResponse`.
        cost: dollars, None where the call had no price.
        node: address of the launch that made it.
        lane: index of its sample, None where there is one value only.
    """

    attempts: int
    seconds: float
    waited: float
    usage: Usage
    error: str | None
    request: Any = field(default=None, repr=False)
    reply: Any = field(default=None, repr=False)
    cost: Decimal | None = None
    node: str = ""
    lane: int | None = None


class NodeInput(NamedTuple):
    """Where an op had one of its Variables from.

    Attributes:
        producer: address of the launch that made it, None for a leaf.
        values: of a leaf that is a sample's own, not a parameter and not shared by a batch, its lanes.
    """

    producer: str | None
    values: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class NodeLaunched:
    """An op of the graph, or a backward pass, was launched.

    Attributes:
        name: of the op.
        line: of the user's code.
        kind: forward, evaluator or backward.
        lanes: how many samples, None for a scalar.
        inputs: one for each Variable that it was given, as far as they need to be told; of a backward pass
            the forward launch behind each of its parts "node 0", "node 1", ….
    """

    address: str
    name: str
    line: Any
    kind: str
    lanes: int | None
    inputs: Sequence[NodeInput] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SampleScored:
    """An evaluator has judged one sample.

    Attributes:
        node: address of the evaluator's launch.
        lane: index of the sample, None where there is one only.
        success: whether it needs no feedback.
    """

    node: str
    lane: int | None
    prediction: Any = field(repr=False)
    target: Any = field(repr=False)
    score: Any
    explanation: str = field(repr=False)
    success: bool


@dataclass(frozen=True, slots=True)
class LimitsLearnt:
    """A provider's replies or refusals told what an account takes: for the first time, or something else than before.

    Attributes:
        account: base URL without credentials.
        model: whose limits they are; empty for a pace of the whole account, which refusals tell.
        requests, tokens: per minute; None where the provider says nothing.
    """

    account: str
    model: str
    requests: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """`failures` requests that were sent to an account one after another failed, almost without exception.

    Its calls wait, and one at a time tries it.
    """

    account: str
    failures: int
    error: str


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """An account answers again, after `seconds`."""

    account: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StepEnded:
    """An optimizer step ended: what it did to each parameter that had feedback.

    Attributes:
        changes: one for each of those parameters.
        candidates: what was weighed, for optimizers that accept by evaluation.
        values: role and value of each of the optimizer's parameters after the step, as far as they are known;
            also of those without feedback.
    """

    address: str
    optimizer: str
    changes: tuple[Any, ...]
    error: str | None
    candidates: tuple[Any, ...] = ()
    values: tuple[tuple[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ScopeEnded:
    """A scope was left, and all that was launched in it has ended.

    Attributes:
        address: what those of its launches start with.
    """

    address: str


Subscriber = Callable[[Any], object]

_subscribers: Final[Setting[tuple[Subscriber, ...]]] = Setting("subscribers", ())
_local: Final[Setting[tuple[Subscriber, ...]]] = Setting("local_subscribers", ())
recorder: Final[Setting[Subscriber | None]] = Setting("recorder", None)
"""Who records what is launched here: one at a time, so that an inner run hides the outer one."""


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Have `subscriber(event)` called, on the runtime's thread, for what is launched in the block."""
    with _local.override((*_local.get(), subscriber)):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Have nobody told of what is launched in the block."""
    with heard_by():
        yield


@contextmanager
def heard_by(*subscribers: Subscriber) -> Iterator[None]:
    """Have nobody else told of what happens in the block."""
    with _subscribers.override(()), _local.override(subscribers), recorder.override(None):
        yield


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Have `subscriber(event)` called for all that this process launches; returns what ends that."""
    _subscribers.default = (*_subscribers.default, subscriber)

    def unsubscribe() -> None:
        _subscribers.default = tuple(s for s in _subscribers.default if s is not subscriber)

    return unsubscribe


def listening() -> bool:
    """Whether anybody is told what is emitted here; what costs something to say isn't said to nobody."""
    return bool(_subscribers.get() or _local.get() or recorder.get() is not None)


def audience() -> tuple[Subscriber, ...]:
    """Return who is told what is emitted here: the recorder first."""
    first = recorder.get()
    return (*(() if first is None else (first,)), *_subscribers.get(), *_local.get())


def emit(event: Any) -> None:
    """Tell the recorder and the subscribers."""
    for subscriber in audience():
        tell(subscriber, event)


def tell(subscriber: Subscriber, event: Any) -> None:
    """Tell one subscriber; if it fails, that is logged and stops nothing."""
    try:
        subscriber(event)
    except Exception:
        logging.getLogger("afnio").exception("a subscriber failed on %s", type(event).__name__)
