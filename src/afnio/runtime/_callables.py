"""User callables: where they run, and how many samples may fail.

A `def` runs in a worker thread, because it may block; an `async def` runs on the runtime's loop. `call_in_node` calls
the callables of nodes (evaluators, `map`, hooks), `to_thread` a function of the user's own that may read pending
values. The two have separate thread limits. With a shared one, `to_thread` functions that wait for nodes could hold
every thread that those nodes need.

`tolerate` sets the fraction of a batch that must succeed; `batch_failure` applies it to a node's outcomes.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar, cast, final

import anyio
import anyio.to_thread

from afnio.errors import BatchError, ScoreError, likeness, reason
from afnio.runtime._kernel import Failure, Job, Launch, Runtime, Slot, within
from afnio.runtime._loop import running_library
from afnio.runtime._settings import Setting
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, inside_node

P = ParamSpec("P")
T = TypeVar("T")

NODE_THREADS: Final = 32
"""The most worker threads that node callables use."""
STEP_THREADS: Final = 32
"""The most worker threads that `to_thread` uses."""
QUICK: Final[Sequence[Any]] = (sum, len, min, max, abs, round, any, all, sorted, str, int, float, bool)
"""Callables that run on the loop itself: a thread would cost more than they do."""


@final
class _Threads:
    """The limiters of a runtime's worker threads."""

    def __init__(self) -> None:
        self.nodes = anyio.CapacityLimiter(NODE_THREADS)
        self.steps = anyio.CapacityLimiter(STEP_THREADS)

    async def aclose(self) -> None:
        return


def _threads(runtime: Runtime) -> _Threads:
    return runtime.resource(_Threads, _Threads)


def is_async(function: Callable[..., object]) -> bool:
    """Return True if calling `function` gives a coroutine: an `async def`, a partial of one, an async `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the question is if it is async, not if it exists
    )


async def call_in_node(job: Job, function: Callable[..., Any], *args: Any) -> Any:
    """Call a node's callable for one lane, on the runtime's loop or in a worker thread.

    Its launches get addresses below the job's. Only an `async def` can await them: a blocking read here raises.
    """
    if function in QUICK:
        return function(*args)
    with within(job.scope):
        token = inside_node.set(True)
        try:
            if is_async(function):
                return await function(*args)
            result = await anyio.to_thread.run_sync(
                partial(function, *args),
                limiter=_threads(job.launch.runtime).nodes,
                abandon_on_cancel=True,
            )
            # A `def` or lambda that returned a coroutine: run that on the loop.
            return await result if inspect.iscoroutine(result) else result
        finally:
            inside_node.reset(token)


def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
    """Run `function` in a worker thread, where it may read pending values. Await the result.

    A cancelled thread can't be stopped: it runs to its end, and its launches raise.

    >>> import afnio
    >>> async def main():
    ...     return await afnio.to_thread(lambda: (afnio.Variable(1) + afnio.Variable(1)).data)
    >>> afnio.run(main())
    2
    """
    launch = Launch(f"to_thread({getattr(function, '__name__', function)!s})")
    slot = Slot(launch)

    async def body(job: Job, values: list[Any]) -> list[Any]:
        token = inside_node.set(False)
        try:
            result = await anyio.to_thread.run_sync(
                partial(function, *args, **kwargs),
                limiter=_threads(launch.runtime).steps,
                abandon_on_cancel=True,
            )
        finally:
            inside_node.reset(token)
        return [(result,)]

    launch.add(body, [], [slot])
    launch.start()
    return Pending(slot, lambda outcome: cast("T", outcome[0]))


@folding
def run(awaitable: Awaitable[T]) -> T:
    """Run an awaitable to its end in code without an event loop, and return its result.

    Raises:
        RuntimeError: on a running event loop; write `await` there.

    >>> async def double(x):
    ...     return 2 * x
    >>> run(double(4))
    8
    """
    library = running_library()
    if library is not None:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(f"afnio.run() was called on a running {library} loop; write `await` instead")

    async def main() -> T:
        return await awaitable

    return anyio.run(main)


# Tolerance


_ROUNDING: Final = 1e-9
"""The largest rounding error of `quorum * present`."""
MAX_REASONS: Final = 3
"""The most different errors that one message lists."""

_quorum: Final[Setting[float | None]] = Setting("quorum", None)


class tolerate(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801
    """Let samples fail in the block if at least `quorum` of a node's non-missing samples succeed.

    Failed samples read as None, are left out of scores and gradients, and are listed in `Variable.errors`. Below the
    quorum the whole batch fails with a `BatchError`.

    Args:
        quorum: the fraction that must succeed, above 0 and at most 1.

    Raises:
        ValueError: for a quorum outside of that range.

    >>> with tolerate(quorum=0.9):
    ...     pass
    """

    def __init__(self, quorum: float = 0.9) -> None:
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum}); 0.9 lets a tenth fail")
        self._value = quorum
        self._entered: list[AbstractContextManager[float | None]] = []

    def __enter__(self) -> None:
        override = _quorum.override(self._value)
        override.__enter__()
        self._entered.append(override)

    def __exit__(self, *exc: object) -> None:
        self._entered.pop().__exit__(None, None, None)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


def current_quorum() -> float | None:
    """Return the quorum of this context, or None if no sample may fail."""
    return _quorum.get()


def quorum_holds(succeeded: int, present: int, quorum: float) -> bool:
    """Return True if `succeeded` is at least the fraction `quorum` of `present`.

    >>> quorum_holds(55, 100, 0.55)  # where 0.55 * 100 is 55.00000000000001
    True
    """
    return succeeded >= quorum * present - _ROUNDING


def batch_failure(
    outcomes: Sequence[Any], name: str, quorum: float | None, lanes: Sequence[int] | None = None
) -> BatchError | ScoreError | None:
    """Return the error of a node with too many failed samples, or None if the quorum holds.

    If it holds, the failures count as read. A `ScoreError` is returned regardless of the quorum: the evaluator's
    arguments are wrong for every sample.

    Args:
        outcomes: one for each lane.
        name: the node's name in the message, if the samples failed in this node.
        quorum: the fraction of the non-missing lanes that must succeed. None means all.
        lanes: the lanes' sample indices. The default is 0, 1, 2, ….
    """
    numbers = range(len(outcomes)) if lanes is None else lanes
    failed = {
        number: outcome
        for number, outcome in zip(numbers, outcomes, strict=True)
        if isinstance(outcome, Failure)
    }
    if not failed:
        return None
    errors = [failure.error for failure in failed.values()]
    present = sum(outcome is not None for outcome in outcomes)
    masked = quorum is not None and quorum_holds(present - len(failed), present, quorum)
    whole = _of_all(errors, masked=masked)
    if whole is not None or masked:
        for failure in failed.values():
            failure.mark_read()
        return whole
    places = {failure.place or name for failure in failed.values()}
    place = places.pop() if len(places) == 1 else name
    need = "" if quorum is None else f", and quorum={quorum} allows fewer"
    error = BatchError(
        f"{len(failed)} of {present} samples of {place} failed{_reasons(failed, place, need)}",
        [_exception(error) for error in errors],
        list(failed),
    )
    if len(failed) < present and quorum is None:
        error.add_note("`with afnio.tolerate(quorum=…):` leaves failed samples out")
    error.failures = tuple(failed.values())
    return error


def _of_all(errors: Sequence[BaseException], *, masked: bool) -> BatchError | ScoreError | None:
    """Return an error of the whole batch: a `ScoreError`, or a `BatchError` that all samples share."""
    for error in errors:
        if isinstance(error, ScoreError):
            return error
    first = errors[0]
    if isinstance(first, BatchError) and not masked and all(error is first for error in errors):
        return first
    return None


def _reasons(failed: Mapping[int, Failure], place: str, need: str) -> str:
    """Return the reasons with their samples, as a part of a message. The most frequent ones come first."""
    alike: dict[object, list[int]] = {}
    for number, failure in failed.items():
        alike.setdefault((failure.place or place, likeness(failure.error)), []).append(number)
    listed_reasons = []
    for samples in sorted(alike.values(), key=len, reverse=True)[:MAX_REASONS]:
        failure = failed[samples[0]]
        elsewhere = "" if failure.place in (None, place) else f" of {failure.place}"
        listed = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        if len(alike) == 1:
            return f" (sample {listed}){need}: {reason(failure.error)}"
        listed_reasons.append(f"{reason(failure.error)} (sample {listed}{elsewhere})")
    if len(alike) > MAX_REASONS:
        listed_reasons.append(f"{len(alike) - MAX_REASONS} other errors")
    return f"{need}: {'; '.join(listed_reasons)}"


def _exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
