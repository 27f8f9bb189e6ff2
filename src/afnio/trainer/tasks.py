"""Tasks: a task group whose error comes out as it was raised, not in a group around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """Run tasks as `anyio.create_task_group` does; of several errors the first one is raised."""
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        error = alone(group)
    else:
        return
    raise error  # here, so that the group is not its context


def alone(error: BaseException) -> BaseException:
    """Return the error in the groups that task groups made of it; a `BatchError` is no such group.

    >>> alone(ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("no")]))
    ValueError('no')
    """
    while type(error) in (BaseExceptionGroup, ExceptionGroup):
        assert isinstance(error, BaseExceptionGroup)
        cancelled = anyio.get_cancelled_exc_class() if _on_a_loop() else ()
        errors = [each for each in error.exceptions if not isinstance(each, cancelled)]
        error = (errors or list(error.exceptions))[0]
    return error


def _on_a_loop() -> bool:
    from afnio.runtime._loop import running_library

    return running_library() is not None
