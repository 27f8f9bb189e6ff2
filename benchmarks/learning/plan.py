"""Plan: which runs each part of the benchmark wants, and how those that are missing are done.

A run is known by its key, so parts may share runs, and a part that was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import groupby

from benchmarks.learning.endpoints import Endpoint, drawn_for
from benchmarks.learning.methods import BATCH, WIDTHS, method_of
from benchmarks.learning.outcome import Key, Outcome
from benchmarks.learning.peer import PEERS, run_peer
from benchmarks.learning.runs import RunFile
from benchmarks.learning.tasks import FAULTY, HARD, LABELS, LIVE, NAMES, Task, load
from benchmarks.learning.training import Trial
from benchmarks.peers.environment import PeerError

EQUAL = (
    "EditTGD",
    "EditTGD, no gate",
    "TGD",
    "TGD 4, 1,000 characters",
    "TextGrad",
    "GEPA",
    "GEPA, minibatch 8",
    "GEPA, 4 proposals",
)
FAST = (
    "EditTGD, inner 1",
    "TGD 32, 1,000 characters",
    "TGD 64, 1,000 characters",
)
"""For time to quality alone."""
RIVALS = ("EditTGD", "EditTGD, no gate", "TGD 4, 1,000 characters", "TextGrad", "GEPA", "GEPA, minibatch 8")
TUNED = ("EditTGD, no gate", "Bandit", "TGD 4, 1,000 characters", "GEPA, tuned", "TextGrad, tuned")
"""Methods that spend all calls on training, the peers with options that were chosen for these tasks."""
PASSES = ("EditTGD, pass of 256", "TGD 4, pass of 256", "TGD 256, pass of 256")
_TOGETHER = 10
BY_SAMPLES = 0
"""Calls of a run that ends after so many samples."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark: all tasks with all methods, budgets and seeds.

    Attributes:
        critic: "astray" for a critic that is always beside the point.
        latencies: seconds that each call takes at least; with more than 0 the prompts of each step are remembered.
    """

    tasks: Sequence[str]
    methods: Sequence[str]
    calls: Sequence[int]
    seeds: int
    critic: str = ""
    latencies: Sequence[float] = (0.0,)

    def keys(self) -> Iterator[Key]:
        """Yield the keys of its runs, a method's runs on a task side by side."""
        for latency in self.latencies:
            for calls in self.calls:
                for task in self.tasks:
                    # The first prompt at temperature 0 says the same for every seed and budget.
                    yield "baseline", task, BY_SAMPLES, 0, "", 0.0
                    for method in self.methods:
                        for seed in range(self.seeds):
                            yield method, task, calls, seed, self.critic, latency


PARTS = {
    "live": Part(
        LIVE, ("EditTGD", "TGD 4, 1,000 characters", "GEPA, minibatch 8", "TextGrad", "DSPy"), (300,), 3
    ),
    "equal": Part(NAMES, EQUAL, (600, 300, 1200), 20),
    "rivals": Part(("sentiment", "urgency"), TUNED, (600,), 20),
    "hard": Part(HARD, EQUAL, (600,), 20),
    "pass": Part(tuple(LABELS), PASSES, (BY_SAMPLES,), 20),
    "faults": Part(FAULTY, RIVALS, (600,), 20),
    "astray": Part(
        ("sentiment", "urgency"), (*RIVALS, "TGD 4, 1,000 characters, gate"), (600,), 30, critic="astray"
    ),
    "width": Part(tuple(LABELS), [f"EditTGD, {lr} chains" for lr in WIDTHS], (4800,), 10),
    "time": Part(
        tuple(LABELS),
        (
            *EQUAL,
            *FAST,
            "GEPA, 64 in flight",
            "TextGrad, 64 in flight",
        ),
        (600,),
        5,
        latencies=(1.0, 0.2),
    ),
}


@dataclass(slots=True)
class Runner:
    """Does runs that a file doesn't have yet.

    Attributes:
        endpoint: makes the endpoint of a latency.
        batch: samples of a step, for methods that don't say how many.
        subset: at most so many items of training, validation and test.
        late: returns True when no further run is to begin.
    """

    file: RunFile
    endpoint: Callable[[float], AbstractContextManager[Endpoint]]
    batch: int = BATCH
    subset: Sequence[int] | None = None
    late: Callable[[], bool] = lambda: False

    def run(self, keys: Sequence[Key]) -> Iterator[Outcome]:
        """Yield the outcome of each missing run as it ends; a peer that can't be had has one that says why."""
        missing = [key for key in dict.fromkeys(keys) if key not in self.file.found]
        for latency, some in groupby(missing, key=lambda key: key[5]):
            with ExitStack() as stack:
                endpoint = stack.enter_context(self.endpoint(latency))
                probe = endpoint if latency == 0 else stack.enter_context(self.endpoint(0.0))
                for name, same in groupby(some, key=lambda key: key[0]):
                    yield from self._method(name, list(same), endpoint, probe)

    def _method(
        self, name: str, keys: Sequence[Key], endpoint: Endpoint, probe: Endpoint
    ) -> Iterator[Outcome]:
        if name in PEERS:
            # Few at a time in one process: it takes seconds to start, and a broken run costs the rest of them.
            for some in batched(keys, _TOGETHER):
                yield from self._peer(name, some, endpoint, probe)
            return
        for key in keys:
            if self.late():
                return
            yield self._keep(key, self._trial(key, endpoint, probe).run(method_of(name).make))

    def _peer(self, name: str, keys: Sequence[Key], endpoint: Endpoint, probe: Endpoint) -> Iterator[Outcome]:
        if self.late():
            return
        trials = [self._trial(key, endpoint, probe) for key in keys]
        waiting = iter(keys)
        try:
            for outcome in run_peer(PEERS[name], trials):
                yield self._keep(next(waiting), outcome)
        except PeerError as error:
            key = next(waiting)
            yield Outcome(name, key[1], key[3], key[2], note=f"it was not run: {error}")

    def _keep(self, key: Key, outcome: Outcome) -> Outcome:
        _, _, outcome.budget, _, outcome.critic, outcome.latency = key
        self.file.add(outcome)
        return outcome

    def _trial(self, key: Key, endpoint: Endpoint, probe: Endpoint) -> Trial:
        name, task, calls, seed, critic, latency = key
        method = None if name in PEERS else method_of(name)
        todo: Task = load(task).subset(self.subset)
        if method is not None and method.pooled:
            todo = replace(todo, train=[*todo.train, *todo.val])
        batch = method.batch if method is not None and method.batch else self.batch
        samples = method.samples if method is not None else None
        return Trial(
            name,
            todo,
            drawn_for(endpoint, repr(key), critic),
            seed,
            calls if samples is None else 10**9,
            batch,
            None if samples is None else samples // batch,
            probe,
            latency > 0,
            method is not None and method.gated,
        )


def batched(keys: Iterable[Key], size: int) -> Iterator[list[Key]]:
    """Yield the keys in lists of at most `size`."""
    waiting = list(keys)
    for start in range(0, len(waiting), size):
        yield waiting[start : start + size]
