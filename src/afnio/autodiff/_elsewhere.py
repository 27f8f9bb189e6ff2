"""The forward of a Function in a worker process.

A `ctx` leads to the graph and its slots, so it stays. The worker gets a `WorkerContext` with the same plain attributes;
what `forward` sets on it comes back with the result, for `backward`, which runs here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

from afnio.runtime._callables import call_in_node
from afnio.runtime._executors import Workers
from afnio.runtime._kernel import Job
from afnio.runtime._remote import Remote

if TYPE_CHECKING:
    from afnio.autodiff._function import Context, Function


@final
class WorkerContext:
    """The `ctx` of a forward in a worker. Its attributes are those of `Context`."""

    def __init__(
        self,
        needs_input_grad: tuple[bool, ...],
        input_roles: Sequence[str],
        output_roles: Sequence[str],
        lane: int | None,
        address: str | None,
    ) -> None:
        self.needs_input_grad = needs_input_grad
        self.input_roles = input_roles
        self.output_roles = output_roles
        self.lane = lane
        self.address = address
        self._given = frozenset(self.__dict__)

    def save_for_backward(self, *values: Any) -> None:
        """Keep values for `backward`; read them there as `ctx.saved_values`."""
        self._saved = values

    @property
    def saved_values(self) -> tuple[Any, ...]:
        saved: tuple[Any, ...] = self.__dict__.get("_saved", ())
        return saved

    def added(self) -> dict[str, Any]:
        """Return what forward has set."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in self._given and name != "_given"
        }


def packed_forward(function: type[Function]) -> Remote:
    """Pack the forward of `function` for its executor, on the line of the launch."""
    assert function.executor is not None
    run = partial(run_in_worker, function.forward)
    return Remote(run, Workers.of(function.executor), name=function.__name__)


def run_in_worker(forward: Callable[..., Any], context: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
    """Run one lane's forward; in the worker. Returns its result and what it has set on `ctx`."""
    ctx = WorkerContext(*context)
    result = forward(ctx, *args, **kwargs)
    if not inspect.iscoroutine(result):
        return result, ctx.added()

    async def finish() -> Any:
        return await result, ctx.added()

    return finish()


async def forward_elsewhere(job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one lane's forward in a worker, and take over what it has set on `ctx`."""
    context = (ctx.needs_input_grad, tuple(ctx.input_roles), tuple(ctx.output_roles), ctx.lane, ctx.address)
    assert ctx.elsewhere is not None
    result, added = await call_in_node(job, ctx.elsewhere, context, args, kwargs)
    ctx.__dict__.update(added)
    return result
