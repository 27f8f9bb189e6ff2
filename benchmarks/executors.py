"""Executors: a serving call beside evaluators that compute, a pool's gain through the engine, and the cost of a lane.

Wall times mean something only if the machine has as many idle cores as the pool has workers. The bare pool runs in the
same minute, by turns with the engine, so their ratio survives some load; CPU times survive all. loky and a local Ray
are measured where they are installed.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import psutil

import afnio
from afnio.cognitive import functional
from afnio.errors import AfnioError, BatchError
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider
from benchmarks.children.texts import REPLY
from benchmarks.report import Claim, show

SPAWN = multiprocessing.get_context("spawn")
WORKERS = functools.partial(ProcessPoolExecutor, 2, mp_context=SPAWN)
LATENCY = 0.2
MEDIAN, P95 = 0.24, 0.30
"""Seconds of the serving call."""
GAIN = 0.95
"""The engine's evaluations/s by those of the bare pool."""
OVERHEAD, RAY_OVERHEAD = 0.3, 2.0
"""Milliseconds of CPU time for an evaluation: of the driver with a pool, of all processes with Ray."""


def engines() -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Return what makes two workers, by engine, and a note for each engine that can't be measured here."""
    found: dict[str, Callable[[], Any]] = {"spawn": WORKERS}
    notes: list[str] = []
    if find_spec("loky"):
        import loky

        found["loky"] = functools.partial(loky.get_reusable_executor, 2)
    if find_spec("ray"):
        from afnio.ray import RayExecutor

        found["Ray"] = RayExecutor
    for name, executor in list(found.items()):
        try:
            _ = afnio.Variable([1, 2, 3, 4]).map(nothing, executor=executor).data
        except (AfnioError, BatchError) as error:
            del found[name]
            why = " ".join(str(error.exceptions[0] if isinstance(error, BatchError) else error).split())
            notes.append(f"{name} was not measured: {why}")
    missing = [name for name in ("loky", "ray") if not find_spec(name)]
    return found, [*notes, *(f"{name} isn't installed here, so it was not measured" for name in missing)]


def busy(prediction: Any, target: Any = None, *, milliseconds: float = 60.0) -> bool:
    """Compute for as long, in CPU time."""
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        sum(range(1000))
    return True


def _is_there(score: Any) -> bool:
    return all(slot.done for slot in score.cell()[0])


def brief(prediction: Any) -> bool:
    return busy(prediction, milliseconds=20.0)


def nothing(prediction: Any) -> Any:
    return prediction


def main(*, full: bool = False) -> list[Claim]:
    """Print the tables and return the claims."""
    claims = serve(evaluations=300 if full else 100)
    claims += gain(lanes=400 if full else 150, repeats=5 if full else 3)
    return claims + overhead(lanes=4000 if full else 1000, repeats=5 if full else 3)


def serve(*, evaluations: int) -> list[Claim]:
    """Make one serving call after another while evaluators compute, in threads and in each kind of worker."""
    rows: list[list[Any]] = []
    claims: list[Claim] = []
    found, notes = engines()
    with Provider.process(latency=LATENCY, reply=REPLY) as provider:
        client = AsyncOpenAI(base_url=provider.base_url, api_key="any")
        for where, executor in {"threads": None, **found}.items():
            predictions = afnio.Variable([str(number) for number in range(evaluations)])
            score, _ = functional.deterministic_evaluator(
                predictions, None, busy, "busyness", executor=executor
            )
            seconds: list[float] = []
            while not _is_there(score):
                begun = time.perf_counter()
                client.chat(messages=[{"role": "user", "content": f"{len(seconds)}"}], model="m")
                seconds.append(time.perf_counter() - begun)
            assert evaluations == score.data
            median, p95 = statistics.median(seconds), sorted(seconds)[int(0.95 * (len(seconds) - 1))]
            rows.append([where, evaluations, len(seconds), median, p95])
            if executor is not None:
                claims += [
                    Claim(f"a serving call of {LATENCY} s beside {where}: median s", median, MEDIAN),
                    Claim(f"a serving call of {LATENCY} s beside {where}: p95 s", p95, P95),
                ]
    show(
        "executors: serving",
        ["evaluators in", "evaluations", "calls", "median s", "p95 s"],
        rows,
        ["evaluators of 60 ms of CPU time, 2 workers", *notes],
        claims,
    )
    return claims


def gain(*, lanes: int, repeats: int) -> list[Claim]:
    """Measure lanes/s of the bare pool and through the engine, by turns."""
    samples = [str(number) for number in range(lanes)]
    bare: list[float] = []
    engine: list[float] = []
    with WORKERS() as pool:
        list(pool.map(brief, samples[:4]))
        _ = afnio.Variable(samples[:4]).map(brief, executor=WORKERS).data
        for _ in range(repeats):
            begun = time.perf_counter()
            list(pool.map(brief, samples))
            bare.append(lanes / (time.perf_counter() - begun))
            begun = time.perf_counter()
            _ = afnio.Variable(samples).map(brief, executor=WORKERS).data
            engine.append(lanes / (time.perf_counter() - begun))
    ratio = statistics.median(e / b for e, b in zip(engine, bare, strict=True))
    rows = [["bare", lanes, statistics.median(bare)], ["engine", lanes, statistics.median(engine)]]
    claims = [Claim("a pool of 2: lanes/s by those of the bare pool", ratio, GAIN, at_least=True)]
    notes = [f"20 ms of CPU time each; medians of {repeats}, the ratio is that of pairs"]
    show("executors: gain", ["pool of 2", "lanes", "lanes/s"], rows, notes, claims)
    return claims


def overhead(*, lanes: int, repeats: int) -> list[Claim]:
    """Measure the CPU time for a lane that does nothing: the driver's, and that of the whole process tree."""
    samples = afnio.Variable([str(number) for number in range(lanes)])
    rows: list[list[Any]] = []
    found, notes = engines()
    for where, executor in {"threads": None, **found}.items():
        driver: list[float] = []
        tree: list[float] = []
        for _ in range(repeats + 1):
            own, others = time.process_time(), _cpu_of_children()
            _ = samples.map(nothing, executor=executor).data
            driver.append((time.process_time() - own) / lanes * 1000)
            tree.append(driver[-1] + (_cpu_of_children() - others) / lanes * 1000)
        rows.append([where, lanes, min(driver[1:]), min(tree[1:])])  # in the first, workers start
    measured = {row[0]: (float(row[2]), float(row[3])) for row in rows}
    spawn, ray = measured["spawn"][0], measured["Ray"][1] if "Ray" in measured else None
    claims = [
        Claim("the driver's CPU ms for an evaluation, spawn", spawn, OVERHEAD),
        Claim("CPU ms of all processes for an evaluation, Ray", ray, RAY_OVERHEAD, why="; ".join(notes)),
    ]
    show(
        "executors: overhead",
        ["runs in", "lanes", "driver, CPU ms/lane", "all processes"],
        rows,
        [f"the best of {repeats}; all processes: with workers, and Ray's own servers", *notes],
        claims,
    )
    return claims


def _cpu_of_children() -> float:
    """Return the CPU seconds of all processes that this one has started and that live, in steps of 10 ms each."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    main(full=parser.parse_args().full)
