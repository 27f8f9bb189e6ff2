"""Places: what runs where at this moment, for displays, the run store and programs that want to know.

Calls go to replicas or wait for batch APIs, and functions with `executor=` go to worker processes. All of that is read
from counters that the engine keeps anyway, from any thread. Where there is one URL and no executor, there is nothing
to tell.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Final, final
from urllib.parse import urlsplit

from afnio.runtime._admission import Admitter
from afnio.runtime._kernel import Runtime, existing_runtime
from afnio.runtime._parcels import Depot, Group
from afnio.runtime._replicas import ReplicaAdmitter

if TYPE_CHECKING:
    from afnio.runtime._executors import ExecutorState


@final
@dataclass(frozen=True, slots=True)
class ReplicaState:
    """The state of one of several replicas.

    Attributes:
        group: the client's `name`, "" without one.
        url: its base URL, without credentials.
        in_flight: requests on the wire.
        answered: attempts that it answered.
        failed: attempts that failed there, were refused or didn't reach it.
        outages: how often it was left out because it couldn't be reached.
        trouble: "out", "failing", "refusing", or "" if it is well.
    """

    group: str
    url: str
    in_flight: int
    answered: int
    failed: int
    outages: int
    trouble: str


@final
@dataclass(frozen=True, slots=True)
class BatchState:
    """The calls of one account, endpoint and model that wait for a batch API.

    Attributes:
        url: base URL, without credentials.
        waiting: calls that wait, also those whose batch hasn't been sent.
        batches: that go on at the provider.
        calls: in these batches.
        done: of them, as the provider said last.
        oldest: seconds since the oldest batch was made.
    """

    url: str
    model: str
    waiting: int
    batches: int
    calls: int
    done: int
    oldest: float


@final
@dataclass(frozen=True, slots=True)
class QueueState:
    """The calls of one account that wait for their turn, because of a limit that was given or learnt.

    Attributes:
        url: base URL, without credentials; the name of a group of replicas.
        waiting: calls.
        reason: the limit, how much of it is used, and whose it is.
        next: seconds until the next one goes; None if another must end first.
        pace: calls a second that the limit lets through, or None if unknown.

    >>> reason = "118 of 120 requests a minute used (your limit)"
    >>> print(QueueState("http://a:8000/v1", 56, reason, 0.5, 2.0))
    http://a:8000/v1: 118 of 120 requests a minute used (your limit), the next goes in 0.5 s, 56 calls wait
    """

    url: str
    waiting: int
    reason: str
    next: float | None
    pace: float | None

    def facts(self) -> list[str]:
        """Return the parts of the line."""
        due = [] if self.next is None else [f"the next goes in {self.next:.1f} s"]
        wait = "1 call waits" if self.waiting == 1 else f"{self.waiting:,} calls wait"
        return [f"{self.url}: {self.reason}", *due, wait]

    def __str__(self) -> str:
        return ", ".join(self.facts())


@final
@dataclass(frozen=True, slots=True)
class Places:
    """The executors, replicas, batches and queues at one moment.

    Attributes:
        executors: each executor that has been used, in the order of first use: its `name`, `engine` and number of
            `workers`, the lanes `running` and `waiting`, and how often one has `lost` its worker.
        replicas: each replica of the clients with several URLs, group by group.
        batches: the calls that wait for batch APIs.
        queues: the calls that a limit of their account holds.

    >>> print(Places(replicas=[ReplicaState("qwen", "http://a:8000/v1", 12, 80, 0, 0, "")]))
    qwen: a:8000 12 in flight
    """

    executors: Sequence[ExecutorState] = field(default=())
    replicas: Sequence[ReplicaState] = field(default=())
    batches: Sequence[BatchState] = field(default=())
    queues: Sequence[QueueState] = field(default=())

    def since(self, before: Places) -> Places:
        """Return the same with its counts from `before` on: lost lanes, attempts and outages."""
        # Executors are in the order of their first use: those of before come first.
        lost = [one.lost for one in before.executors] + [0] * len(self.executors)
        executors = [
            replace(one, lost=one.lost - then) for one, then in zip(self.executors, lost, strict=False)
        ]
        earlier = {(one.group, one.url): one for one in before.replicas}
        replicas = []
        for one in self.replicas:
            then = earlier.get((one.group, one.url))
            if then is not None:
                names = ("answered", "failed", "outages")
                one = replace(one, **{name: getattr(one, name) - getattr(then, name) for name in names})
            replicas.append(one)
        return Places(executors, replicas, self.batches, self.queues)

    def facts(self) -> list[list[str]]:
        """Return a line for each executor, group of replicas, kind of batches and queue, as its facts."""
        lines = [_executor_facts(one) for one in self.executors]
        for group, members in groupby(self.replicas, key=lambda one: one.group):
            first, *others = [_replica_fact(one) for one in members]
            lines.append([f"{group or 'replicas'}: {first}", *others])
        lines += [_batch_facts(one) for one in self.batches]
        return lines + [one.facts() for one in self.queues]

    def __str__(self) -> str:
        return "; ".join(", ".join(facts) for facts in self.facts())


def places(runtime: Runtime | None = None) -> Places:
    """Return what runs where now: `executors`, `replicas`, `batches`, and the `queues` at limits, of this process.

    May be called from any thread.

    Args:
        runtime: default: the process's, if it has one.

    >>> places().replicas
    []
    """
    runtime = runtime or existing_runtime()
    if runtime is None:
        return Places([], [], [], [])
    # Whoever uses an executor has imported it.
    module = sys.modules.get("afnio.runtime._executors")
    executors = [] if module is None else module.executors(runtime)
    groups = [one for one in runtime.resources() if type(one) is ReplicaAdmitter]
    depots = [one for one in runtime.resources() if type(one) is Depot]
    return Places(
        executors,
        [state for group in groups for state in _states(group)],
        [_batches(group) for depot in depots for group in depot.waiting()],
        [queue for one in runtime.resources() if isinstance(one, Admitter) for queue in _queues(one)],
    )


_shown: Final[list[Callable[[], list[str]]]] = []


@contextmanager
def shown(lines: Callable[[], list[str]]) -> Iterator[None]:
    """Let `progress` return these lines while the block runs; called from any thread."""
    _shown.append(lines)
    try:
        yield
    finally:
        _shown.remove(lines)


def progress() -> list[str]:
    """Return how far the process is, by the innermost training: as its display shows it, without calls and places."""
    newest = _shown[-1:]
    return newest[0]() if newest else []


def _states(group: ReplicaAdmitter) -> list[ReplicaState]:
    name = group.url.partition("://")[2]
    return [
        ReplicaState(
            name,
            one.account.url,
            one.admitter.in_flight,
            one.answered,
            one.failed,
            one.outages,
            one.trouble,
        )
        for one in group.replicas
    ]


def _queues(admitter: Admitter) -> list[QueueState]:
    if not admitter.waiting:
        return []
    now = time.monotonic()  # the clock of the runtime's loop
    members = [one.admitter for one in admitter.replicas] if type(admitter) is ReplicaAdmitter else [admitter]
    holds = [hold for one in members if (hold := one.hold(now)) is not None]
    if not holds:
        return []
    hold = min(holds, key=lambda one: math.inf if one[1] is None else one[1])
    return [QueueState(admitter.url, admitter.waiting, *hold)]


def _batches(group: Group) -> BatchState:
    sent = [parcel for parcel in list(group.parcels) if parcel.riders and parcel.at_provider]
    return BatchState(
        group.api.account.url,
        group.api.model,
        group.waiting,
        len(sent),
        sum(len(parcel.ids) for parcel in sent),
        sum(parcel.status.completed for parcel in sent),
        max((time.time() - parcel.created for parcel in sent), default=0.0),
    )


def _executor_facts(one: ExecutorState) -> list[str]:
    engine = f" ({one.engine})" if one.engine and one.engine != one.name else ""
    if not one.workers:
        return [f"{one.name}{engine}: starting", f"{one.waiting:,} waiting"]
    workers = f"{one.workers:,} worker{'s' if one.workers != 1 else ''}"
    facts = [f"{one.name}{engine}: {workers}", f"{one.running:,} running"]
    facts += [f"{one.waiting:,} waiting"] if one.waiting else []
    return [*facts, f"{one.lost:,} lost"] if one.lost else facts


def _batch_facts(one: BatchState) -> list[str]:
    facts = [f"{one.model} by batch: {one.waiting:,} calls wait"]
    if not one.batches:
        return [*facts, "not sent yet"]
    where = f"{one.batches:,} batches" if one.batches != 1 else "1 batch"
    minutes = f"{one.oldest / 60:,.0f} min"
    return [*facts, f"{one.done:,} of {one.calls:,} done in {where}", f"the oldest for {minutes}"]


def _replica_fact(one: ReplicaState) -> str:
    # A path that all replicas share tells nothing; a port does.
    place = urlsplit(one.url).netloc or one.url
    return f"{place} {one.trouble or f'{one.in_flight:,} in flight'}"
