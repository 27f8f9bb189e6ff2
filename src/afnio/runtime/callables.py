"""User callables: `def` runs in a worker thread, `async def` on the runtime's loop.

Node callables and the bodies of steps have separate limiters. With one, step bodies that wait for nodes
could hold every thread that those nodes need.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar, cast, final

import anyio
import anyio.to_thread

from afnio.runtime.fold import folding
from afnio.runtime.launch import Job, Launch
from afnio.runtime.runtime import Runtime
from afnio.runtime.scope import within
from afnio.runtime.slot import Slot
from afnio.runtime.waiting import inside_node
from afnio.runtime.work import Work

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


def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Work[T]:
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
    return Work(slot, lambda outcome: cast("T", outcome[0]))


@folding
def run(awaitable: Awaitable[T]) -> T:
    """Run an awaitable to its end from code that has no event loop, and return its result.

    >>> async def double(x):
    ...     return 2 * x
    >>> run(double(4))
    8
    """
    from afnio.runtime.loop import running_library

    library = running_library()
    if library is not None:
        if inspect.iscoroutine(awaitable):
            awaitable.close()
        raise RuntimeError(f"afnio.run() was called on a running {library} loop; write `await` instead")

    async def main() -> T:
        return await awaitable

    return anyio.run(main)
