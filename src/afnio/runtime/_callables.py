"""User callables: `def` runs in a worker thread, `async def` on the runtime's loop.

Node callables and the bodies of steps have separate limiters. With one, step bodies that wait for nodes
could hold every thread that those nodes need.
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
from afnio.runtime._settings import Setting
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, inside_node

P = ParamSpec("P")
T = TypeVar("T")

NODE_THREADS: Final = 32
"""Worker threads for node callables of one runtime, at most."""
STEP_THREADS: Final = 32
"""Worker threads for `to_thread`, at most."""
QUICK: Final[Sequence[Any]] = (sum, len, min, max, abs, round, any, all, sorted, str, int, float, bool)
"""Callables that run on the loop itself; a thread would cost them more than they do."""


@final
class _Threads:
    """The limiters of the worker threads; one pair for each runtime."""

    def __init__(self) -> None:
        self.nodes = anyio.CapacityLimiter(NODE_THREADS)
        self.steps = anyio.CapacityLimiter(STEP_THREADS)

    async def aclose(self) -> None:
        return


def _threads(runtime: Runtime) -> _Threads:
    return runtime.resource(_Threads, _Threads)


def is_async(function: Callable[..., object]) -> bool:
    """Whether calling `function` gives a coroutine: `async def`, a partial of one, an async `__call__`."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - its colour is asked for, not its presence
    )


async def call_in_node(job: Job, function: Callable[..., Any], *args: Any) -> Any:
    """Call a node's callable for one lane, on the runtime's loop or in a worker thread.

    It may launch, under an address below the lane's; only an `async def` may await what it launched.
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
            # A `def` or lambda that hands on a coroutine: its body belongs to the loop.
            return await result if inspect.iscoroutine(result) else result
        finally:
            inside_node.reset(token)


def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Pending[T]:
    """Run `function` in a worker thread, where it may read pending values; await the result.

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
    """Run an awaitable to its end from code that has no event loop, and return its result.

    >>> async def double(x):
    ...     return 2 * x
    >>> run(double(4))
    8
    """
    from afnio.runtime._loop import running_library

    library = running_library()
    if library is not None:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(f"afnio.run() was called on a running {library} loop; write `await` instead")

    async def main() -> T:
        return await awaitable

    return anyio.run(main)


# Tolerance: how many of a node's samples may fail before a batch does.


_ROUNDING: Final = 1e-9
"""What a product of floats may be too large by."""
MAX_REASONS: Final = 3
"""Different errors that a message tells of."""

_quorum: Final[Setting[float | None]] = Setting("quorum", None)


class tolerate(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801
    """Let samples fail in the block, as long as `quorum` of a node's non-missing samples succeed.

    Failed samples read as None, are left out of scores and gradients, and are listed in `errors`.

    Args:
        quorum: the fraction that must succeed, above 0 and at most 1.

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
    """Return the quorum that holds here, None where no sample may fail."""
    return _quorum.get()


def quorum_holds(succeeded: int, present: int, quorum: float) -> bool:
    """Whether `succeeded` of `present` are at least the fraction `quorum` of them.

    >>> quorum_holds(55, 100, 0.55)  # where 0.55 * 100 is 55.00000000000001
    True
    """
    return succeeded >= quorum * present - _ROUNDING


def batch_failure(
    outcomes: Sequence[Any], name: str, quorum: float | None, lanes: Sequence[int] | None = None
) -> BatchError | ScoreError | None:
    """Return the error of a node whose failed samples are too many; None if they may fail, noting that.

    A `ScoreError` stands for its launch, whatever the quorum; so does an error that was a batch's already.

    Args:
        outcomes: one for each lane.
        name: what to call the node in the message, if the samples failed in it.
        quorum: the fraction of the non-missing lanes that must succeed; None for all.
        lanes: the lanes' sample indices, where they aren't 0, 1, 2, ….
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
    """Return an error that stands for the whole batch: a wrong argument, or what all samples failed with at once."""
    for error in errors:
        if isinstance(error, ScoreError):
            return error
    first = errors[0]
    if isinstance(first, BatchError) and not masked and all(error is first for error in errors):
        return first
    return None


def _reasons(failed: Mapping[int, Failure], place: str, need: str) -> str:
    """Return why the samples failed: each different reason with its samples, the most frequent ones first."""
    alike: dict[object, list[int]] = {}
    for number, failure in failed.items():
        alike.setdefault((failure.place or place, likeness(failure.error)), []).append(number)
    told = []
    for samples in sorted(alike.values(), key=len, reverse=True)[:MAX_REASONS]:
        failure = failed[samples[0]]
        elsewhere = "" if failure.place in (None, place) else f" of {failure.place}"
        listed = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        if len(alike) == 1:
            return f" (sample {listed}){need}: {reason(failure.error)}"
        told.append(f"{reason(failure.error)} (sample {listed}{elsewhere})")
    if len(alike) > MAX_REASONS:
        told.append(f"{len(alike) - MAX_REASONS} other errors")
    return f"{need}: {'; '.join(told)}"


def _exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
