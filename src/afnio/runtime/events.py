"""Events: what the engine and a run do, as frozen dataclasses, for anyone who subscribes.

    with subscribed(print):
        agent(client, "…")

Runs record their history from events, progress displays count them, and sinks forward them. A subscriber is called
on the runtime's thread, so a slow one delays every call; hand the work to a thread if it takes longer than a
millisecond. If it raises, the error is logged and nothing else happens.

Who is notified is decided where something is launched: by the run that records (`run_recorder`, the innermost one),
by `subscribe` for the process, and by `subscribed` for a block.

Events contain no key and no header. Texts are only in the fields documented here: `request`, `reply`, the values of
inputs, predictions, targets, explanations, and parameter values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

from afnio.runtime._settings import Setting


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or a sum over calls, as the provider counts them. 0 if it reports none."""

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
    """Base class of the events of one language model call.

    Attributes:
        address: scope path, launch number, lane and purpose of the call.
        account: the endpoint's base URL, without credentials.
        model: the model's name in the request.
        purpose: forward, backward, repair, step, judge, ….
    """

    address: str
    account: str
    model: str
    purpose: str


@dataclass(frozen=True, slots=True)
class CallReplayed(CallEvent):
    """A call was answered from the journal: nothing was sent or paid.

    Attributes:
        request, reply, node, lane: as in `CallEnded`.
        journal: the path of the journal. A call that a run's own journal answers was paid for by that run.
        seconds: time on the wire when the call was made, over all attempts.
    """

    request: Any = field(default=None, repr=False)
    reply: Any = field(default=None, repr=False)
    node: str = ""
    lane: int | None = None
    journal: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallRetried(CallEvent):
    """An attempt failed. The next one follows in `wait` seconds, at the earliest."""

    attempt: int
    error: str
    wait: float
    # How long the failed attempt was on the wire.
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CallEnded(CallEvent):
    """A call got its reply, failed permanently, or was cancelled.

    Attributes:
        attempts: how often it was sent.
        seconds: time on the wire, over all attempts.
        waited: seconds in the queue and between attempts.
        usage: the tokens of all attempts.
        error: type and text of its error, or None if it succeeded.
        request: the `ChatRequest`, with its messages.
        reply: the `ChatResponse`, or None if there was none.
        cost: in dollars, or None if the model's price is unknown.
        node: address of the launch that made the call.
        lane: index of the sample, or None if there is only one value.
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
    """One input of an op.

    Attributes:
        producer: address of the launch that made it, or None for a leaf.
        values: the lanes of a leaf that holds the samples' own data. None for parameters, and for a leaf that a batch
            shares.
    """

    producer: str | None
    values: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class NodeLaunched:
    """An op of the graph, or a backward pass, was launched.

    Attributes:
        name: the op's name.
        line: the line of the user's code.
        kind: forward, evaluator or backward.
        lanes: the number of samples, or None for a scalar.
        inputs: one for each Variable given to an op. For a backward pass, the forward launches of its parts
            "node 0", "node 1", ….
    """

    address: str
    name: str
    line: Any
    kind: str
    lanes: int | None
    inputs: Sequence[NodeInput] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SampleScored:
    """An evaluator scored one sample.

    Attributes:
        node: address of the evaluator's launch.
        lane: index of the sample, or None if there is only one.
        success: True if it needs no feedback.
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
    """The limits of an account became known, or changed, by a provider's headers or refusals.

    Attributes:
        account: the endpoint's base URL, without credentials.
        model: the model with these limits. Empty for a pace of the whole account, learnt from refusals.
        requests, tokens: per minute, or None if unknown.
    """

    account: str
    model: str
    requests: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True)
class CircuitOpened:
    """Nearly all of the last `failures` requests to an account failed, so its calls wait.

    One call at a time is sent as a probe.
    """

    account: str
    failures: int
    error: str


@dataclass(frozen=True, slots=True)
class CircuitClosed:
    """An account answers again. Its calls had waited for `seconds`."""

    account: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ReplicaLeftOut:
    """A replica can't be reached, so the calls of its group go to the others. One call at a time tries it.

    Attributes:
        group: `replicas://` and the name of the group.
        account: the replica's base URL, without credentials.
    """

    group: str
    account: str
    error: str


@dataclass(frozen=True, slots=True)
class ReplicaTakenBack:
    """A replica that was left out can be reached again. It had no calls for `seconds`."""

    group: str
    account: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StepEnded:
    """An optimizer step ended.

    Attributes:
        changes: the step's change of each parameter that had feedback.
        error: type and text of the step's error, or None.
        candidates: the candidates that were evaluated, for optimizers that accept by evaluation.
        values: (role, value) of each of the optimizer's parameters after the step, including those without feedback.
            Unknown values are left out.
    """

    address: str
    optimizer: str
    changes: tuple[Any, ...]
    error: str | None
    candidates: tuple[Any, ...] = ()
    values: tuple[tuple[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class ScopeEnded:
    """A scope was left, and all of its launches have ended.

    Attributes:
        address: the prefix of its launches' addresses.
    """

    address: str


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A run starts; the first event that the run's sinks get.

    Attributes:
        date: seconds since 1970 UTC.
        continued: True if an earlier process had started the run.
    """

    run_id: str
    name: str
    namespace: str
    project: str
    description: str | None
    config: Mapping[str, Any]
    date: float
    continued: bool


@dataclass(frozen=True, slots=True)
class MetricLogged:
    """A value was logged; `step` is None if the store counts the steps."""

    name: str
    value: Any
    step: int | None


@dataclass(frozen=True, slots=True)
class TextLogged:
    """A text was logged; `step` as in `MetricLogged`."""

    name: str
    text: str
    step: int | None


@dataclass(frozen=True, slots=True)
class TableLogged:
    """A table was logged; `step` as in `MetricLogged`."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    step: int | None


@dataclass(frozen=True, slots=True)
class RunEnded:
    """A run has ended; the last event that the run's sinks get. `status` is its state in the store."""

    status: str


Subscriber = Callable[[Any], object]

_subscribers: Final[Setting[tuple[Subscriber, ...]]] = Setting("subscribers", ())
_local: Final[Setting[tuple[Subscriber, ...]]] = Setting("local_subscribers", ())
# The run that records the launches of this context. There is one at most: an inner run hides the outer one.
run_recorder: Final[Setting[Subscriber | None]] = Setting("run_recorder", None)


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Call `subscriber(event)`, on the runtime's thread, for everything that is launched in the block."""
    with _local.override((*_local.get(), subscriber)):
        yield


@contextmanager
def unheard() -> Iterator[None]:
    """Notify no subscriber of what is launched in the block."""
    with _subscribers.override(()), _local.override(()), run_recorder.override(None):
        yield


def subscribe(subscriber: Subscriber) -> Callable[[], None]:
    """Call `subscriber(event)` for everything that this process launches. Returns a function that ends this."""
    _subscribers.default = (*_subscribers.default, subscriber)

    def unsubscribe() -> None:
        _subscribers.default = tuple(s for s in _subscribers.default if s is not subscriber)

    return unsubscribe


def listening() -> bool:
    """Return True if an event emitted here reaches a subscriber. Check it before building a costly event."""
    return bool(_subscribers.get() or _local.get() or run_recorder.get() is not None)


def emit(event: Any) -> None:
    """Notify the recording run and the subscribers. If one raises, log that and go on."""
    first = run_recorder.get()
    for subscriber in (*(() if first is None else (first,)), *_subscribers.get(), *_local.get()):
        try:
            subscriber(event)
        except Exception:
            logging.getLogger("afnio").exception("a subscriber failed on %s", type(event).__name__)
