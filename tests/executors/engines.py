"""Cases that hold on each executor: `python engines.py executor url folder` prints one JSON object for each.

More arguments name cases.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import kit
from kit import errands

import afnio
import afnio.cognitive.functional as F
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import Limits, current_runtime
from afnio.testing import ScriptedClient


def executor_of(name: str) -> Any:
    if name == "spawn":
        return functools.partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))
    if name == "loky":
        import loky

        return functools.partial(loky.get_reusable_executor, 2)
    if name == "ray":
        import afnio.ray

        return afnio.ray.RayExecutor
    import dask
    import distributed

    # Else a local cluster ends a worker for good that is down 15 s after an earlier end of it.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"})
    client = distributed.Client(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    return client.get_executor


def of_main(x: Any) -> Any:
    return x + 1


def order(make: Any, url: str, folder: Path) -> Any:
    """Values, scores and feedback in order; functions of all kinds; a quorum."""
    rows = afnio.Variable(list(range(40)))
    third = 3
    values = [
        rows.map(errands.double, executor=make).data == [2 * n for n in range(40)],
        rows.map(errands.later, executor=make).data == [n + 1 for n in range(40)],
        rows.map(of_main, executor=make).data == [n + 1 for n in range(40)],
        rows.map(lambda n: n * third, executor=make).data == [n * 3 for n in range(40)],
    ]
    prediction = afnio.Variable(["a", "b", "c"], requires_grad=True)
    score, explanation = F.deterministic_evaluator(
        prediction, ["a", "x", "c"], errands.match, "match", executor=make
    )
    explanation.backward()
    errands.Measured.executor = make
    text = afnio.Variable(["one two", "three"], requires_grad=True)
    size, shout = errands.Measured.apply(text)
    shout.backward(afnio.Variable(["longer", "shorter"]))
    grads = [str(each) for each in text.grad[0].data]
    return values, score.data, prediction.grad[0].data, size.data, grads


def agent(make: Any, url: str, folder: Path) -> Any:
    """The critic reads the calls that an agent made in a worker."""
    critic = ScriptedClient(lambda request: "no JSON")
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    made = afnio.cognitive.Agent(errands.agent, prompts={"system": "Be brief:"}, executor=make)
    found = made(["a", "b"], url=url)
    data = found.data
    with suppress(afnio.errors.BatchError):
        found.backward(afnio.Variable(["wrong", "wrong"]))
    return data, ["BE BRIEF: A" in str(request.messages) for request in critic.requests[:1]]


def pickles(make: Any, url: str, folder: Path) -> Any:
    """Results and errors that can't be pickled lose no other lane."""
    with afnio.tolerate(quorum=0.1):
        found = afnio.Variable([0, 1, 2, 3]).map(errands.fail, executor=make)
        odd = afnio.Variable([0, 1]).map(errands.unpicklable, executor=make)
        data = found.data, odd.data
    errors = [f"{type(error).__name__}: {error}" for error in (*found.errors.values(), *odd.errors.values())]
    return data, errors, afnio.Variable([1]).map(errands.double, executor=make).data


def poison(make: Any, url: str, folder: Path) -> Any:
    """A lane that always ends its worker fails alone, and the executor works afterwards."""
    rows = [*range(8), -1, *range(8)]
    with afnio.tolerate(quorum=0.5):
        found = afnio.Variable(rows).map(errands.poison, executor=make)
        right = found.data == [None if n < 0 else 2 * n for n in rows]
    errors = {lane: f"{type(error).__name__}: {error}" for lane, error in found.errors.items()}
    return right, errors, afnio.Variable([1, 2]).map(errands.double, executor=make).data


def executors() -> list[Any]:
    return [each.state() for each in current_runtime().resources() if hasattr(each, "state")]


def running_now() -> int:
    return sum(state.running for state in executors())


def places(make: Any, url: str, folder: Path) -> Any:
    """At most `max_in_flight` lanes are submitted, by default 4 for each worker."""
    seen = []
    for number, (workers, expected) in enumerate([(afnio.Workers(make, max_in_flight=3), 3), (make, 8)]):
        path = folder / f"end{number}"
        running = afnio.Variable([str(path)] * 12).map(errands.wait_for, executor=workers)
        while running_now() < expected:
            Event().wait(0.02)
        Event().wait(0.3)  # for one too many
        (state,) = executors()
        seen.append([state.running, state.waiting, state.workers, state.engine])
        path.touch()
        assert running.data == [str(path)] * 12
    return seen


def calls(make: Any, url: str, folder: Path) -> Any:
    """One quota, journal, budget and trace; a resumed run replays."""
    client = AsyncOpenAI(base_url=url, api_key="any-key-0123", limits=Limits(max_in_flight=3))
    call = functools.partial(errands.ask_slowly, url)
    rows = [f"row {number}" for number in range(20)]
    seen: list[Any] = []
    for _ in range(2):
        with afnio.journal(folder / "calls.journal"), afnio.budget() as spent, kit.events() as events:
            right = afnio.Variable(rows).map(call, executor=make).data == [row.upper() for row in rows]
        kinds = [type(event).__name__ for event in events]
        lanes = [getattr(event, "lane", None) for event in events if type(event).__name__.startswith("Call")]
        seen.append(
            [
                right,
                kinds.count("CallEnded"),
                kinds.count("CallReplayed"),
                sorted(lanes) == sorted([*range(20)] * 2),
                spent.ledger.total.calls,
            ]
        )
    with afnio.budget(max_calls=2):
        try:
            _ = afnio.Variable(["x", "y", "z"]).map(functools.partial(errands.ask, url), executor=make).data
        except afnio.errors.BatchError as error:
            seen.append("max_calls=2" in str(error))
    del client
    return seen


def durable(make: Any, url: str, folder: Path) -> Any:
    """Results are recorded, and not computed again."""
    counted = functools.partial(errands.counted, str(folder / "runs"))
    for _ in range(2):
        with afnio.journal(folder / "durable.journal") as journal:
            score, _ = F.deterministic_evaluator(
                afnio.Variable(["1", "2"]), "2", counted, "equality", executor=make, durable=1
            )
            assert score.data == 1, score.data
            assert journal is not None
            journal.flush()
            calls_made = journal.spent().total.calls
    return len((folder / "runs").read_text()), calls_made


CASES: list[Callable[[Any, str, Path], Any]] = [places, order, agent, pickles, calls, durable, poison]


def main() -> None:
    name, url, folder, *only = sys.argv[1:]
    make = executor_of(name)
    for case in CASES:
        if only and case.__name__ not in only:
            continue
        found: Any
        try:
            found = case(make, url, Path(folder))
        except Exception:
            found = traceback.format_exc()
        print(json.dumps({case.__name__: found}), flush=True)
    afnio.runtime.close()


if __name__ == "__main__":
    main()
